//! Three nats-servers that hold everything three times, and two brokers.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use serde_json::Value;

use crate::process::{PATIENCE, Process, nats_server};
use crate::world::{World, free_port, start_broker, url};

/// A fleet that goes on when any one of its servers or brokers is killed; gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The first server and the first broker, in the folder for all.
    pub world: World,
    /// The second broker.
    pub second: Process,
    /// The second and the third server.
    others: [Process; 2],
    nats_ports: [u16; 3],
    routes: [u16; 3],
    http_ports: [u16; 2],
}

/// One of the two brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the first and the second")]
pub enum Which {
    First,
    Second,
}

impl Which {
    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

impl Cluster {
    /// Starts everything.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats_ports = [(); 3].map(|()| free_port());
        let routes = [(); 3].map(|()| free_port());
        let http_ports = [(); 2].map(|()| free_port());
        let server = |at| start_server(folder.path(), at, nats_ports, routes);
        let (first, others) = (server(0), [server(1), server(2)]);
        let urls = nats_ports.map(url).join(",");
        let begun = Instant::now();
        // A cluster takes a while until it has elected whom it follows.
        while !is_whole(&urls).await {
            assert!(begun.elapsed() < PATIENCE, "the cluster does not come together");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let broker = |name, port| start_broker(name, folder.path(), &urls, &REPLICAS, port);
        let (broker, second) = (broker("broker", http_ports[0]), broker("broker-2", http_ports[1]));
        let nats = (first, nats_ports[0]);
        let world = World::of(folder, nats, urls.clone(), (broker, http_ports[0])).await;
        Self { world, second, others, nats_ports, routes, http_ports }
    }

    /// Kills a broker; requests go to the other one from now on.
    pub fn kill_broker(&mut self, which: Which) {
        match which {
            Which::First => self.world.broker.kill(),
            Which::Second => self.second.kill(),
        }
        self.world.speak_to(self.http_ports[which.other() as usize]);
    }

    /// Starts a broker again.
    pub fn start_broker(&mut self, which: Which) {
        let port = self.http_ports[which as usize];
        let urls = self.world.nats_url();
        let start = |name| start_broker(name, self.world.folder(), &urls, &REPLICAS, port);
        match which {
            Which::First => self.world.broker = start("broker"),
            Which::Second => self.second = start("broker-2"),
        }
    }

    /// Kills a server, counted from 0.
    pub fn kill_server(&mut self, at: usize) {
        self.server(at).kill();
    }

    /// Starts a server again.
    pub fn start_server(&mut self, at: usize) {
        *self.server(at) = start_server(self.world.folder(), at, self.nats_ports, self.routes);
    }

    /// A server, counted from 0.
    pub fn server(&mut self, at: usize) -> &mut Process {
        match at {
            0 => &mut self.world.nats,
            at => &mut self.others[at - 1],
        }
    }

    /// What is stored of a training, where it is short.
    pub async fn stored(&self, id: &str) -> Value {
        let context = jetstream::new(self.world.client().await);
        let Ok(bucket) = context.get_key_value("trainings").await else { return Value::Null };
        let value = bucket.get(id).await.ok().flatten().unwrap_or_default();
        serde_json::from_slice(&value).unwrap_or_default()
    }
}

const REPLICAS: [&str; 2] = ["--replicas", "3"];

fn start_server(folder: &Path, at: usize, ports: [u16; 3], routes: [u16; 3]) -> Process {
    let name = format!("nats-{at}");
    let urls = routes.map(url).join(", ");
    let config = format!(
        "server_name: {name}\njetstream {{ store_dir: \"{name}\" }}\n\
         cluster {{ name: fleet, listen: \"127.0.0.1:{}\", routes: [{urls}] }}\n",
        routes[at]
    );
    let file = format!("{name}.conf");
    std::fs::write(folder.join(&file), config).unwrap();
    let mut command = Command::new(nats_server());
    command.args(["-a", "127.0.0.1", "-p", &ports[at].to_string(), "-c", &file]);
    command.current_dir(folder);
    Process::start(&name, folder, command)
}

/// Whether all servers hold a new stream together.
async fn is_whole(urls: &str) -> bool {
    let servers: Vec<&str> = urls.split(',').collect();
    let Ok(client) = async_nats::connect(servers).await else { return false };
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(1));
    let (name, num_replicas) = ("WHOLE".to_owned(), 3);
    let config = stream::Config { name, num_replicas, ..stream::Config::default() };
    let made = context.create_stream(config).await.is_ok();
    made && context.delete_stream("WHOLE").await.is_ok()
}
