//! Three nats-servers that hold everything three times, and two brokers.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use serde_json::Value;

use crate::process::{PATIENCE, Process, nats_server};
use crate::proxy::Proxy;
use crate::world::{World, free_port, start_broker, url};
use crate::writes::Stored;

/// A fleet that goes on when any one of its servers or brokers is killed; gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The second broker.
    pub second: Process,
    /// The second and the third server.
    others: [Process; 2],
    /// The first server and the first broker, in the folder for all, which goes last: the logs are
    /// in it.
    pub world: World,
    nats_ports: [u16; 3],
    routes: Routes,
    http_ports: [u16; 2],
}

/// How the servers reach each other.
#[derive(Debug)]
struct Routes {
    ports: [u16; 3],
    /// From one to another, where each way can be cut.
    ways: Vec<(usize, usize, Proxy)>,
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
    /// Starts everything; both brokers know all servers.
    pub async fn start() -> Self {
        Self::start_with(Vec::new(), |urls| [urls.join(","), urls.join(",")]).await
    }

    /// Starts everything so that [`Cluster::cut_off`] can part the first server and the first
    /// broker, which knows no other one, from the rest.
    pub async fn start_in_parts() -> Self {
        let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from != to).collect();
        Self::start_with(pairs, |urls| [urls[0].clone(), urls[1..].join(",")]).await
    }

    async fn start_with(
        pairs: Vec<(usize, usize)>,
        known: impl Fn(&[String; 3]) -> [String; 2],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats_ports = [(); 3].map(|()| free_port());
        let ports = [(); 3].map(|()| free_port());
        let way = |(from, to): (usize, usize)| (from, to, Proxy::to(ports[to]));
        let routes = Routes { ports, ways: pairs.into_iter().map(way).collect() };
        let http_ports = [(); 2].map(|()| free_port());
        let server = |at| start_server(folder.path(), at, nats_ports, &routes);
        let (first, others) = (server(0), [server(1), server(2)]);
        let urls = nats_ports.map(url);
        let known = known(&urls);
        let urls = urls.join(",");
        let begun = Instant::now();
        // A cluster takes a while until it has elected whom it follows.
        while !is_whole(&urls).await {
            assert!(begun.elapsed() < PATIENCE, "the cluster does not come together");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let broker = |name, at: usize| {
            start_broker(name, folder.path(), &known[at], &REPLICAS, http_ports[at])
        };
        let (broker, second) = (broker("broker", 0), broker("broker-2", 1));
        let nats = (first, nats_ports[0]);
        let world = World::of(folder, nats, urls.clone(), (broker, http_ports[0])).await;
        Self { second, others, world, nats_ports, routes, http_ports }
    }

    /// The address of a server, counted from 0.
    pub fn nats_url(&self, at: usize) -> String {
        url(self.nats_ports[at])
    }

    /// Requests go to this broker from now on.
    pub fn speak_to(&mut self, which: Which) {
        self.world.speak_to(self.http_ports[which as usize]);
    }

    /// Cuts the ways between the first server and the others.
    ///
    /// # Panics
    /// When the cluster was not started in parts.
    pub fn cut_off(&self) {
        self.ways_of_first().for_each(Proxy::close);
    }

    /// Mends them.
    pub fn join_again(&self) {
        self.ways_of_first().for_each(Proxy::open);
    }

    fn ways_of_first(&self) -> impl Iterator<Item = &Proxy> {
        assert!(!self.routes.ways.is_empty(), "it was not started in parts");
        let ways = self.routes.ways.iter();
        ways.filter_map(|(from, to, way)| (*from == 0 || *to == 0).then_some(way))
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

    /// Waits until a broker that was started can take trainings over.
    pub async fn ready(&self, which: Which) {
        self.world.ready_at(self.http_ports[which as usize]).await;
    }

    /// The broker that owns a training now, where there is one at most.
    pub async fn owner(&mut self) -> Option<Which> {
        for which in [Which::First, Which::Second] {
            self.speak_to(which);
            let Ok(answer) = self.world.request("GET", "/metrics").send().await else { continue };
            if answer.text().await.is_ok_and(|text| text.contains("\ndunlin_trainings_owned 1\n")) {
                return Some(which);
            }
        }
        None
    }

    /// Kills a server, counted from 0.
    pub fn kill_server(&mut self, at: usize) {
        self.server(at).kill();
    }

    /// Starts a server again.
    pub fn start_server(&mut self, at: usize) {
        *self.server(at) = start_server(self.world.folder(), at, self.nats_ports, &self.routes);
    }

    /// A server, counted from 0.
    pub fn server(&mut self, at: usize) -> &mut Process {
        match at {
            0 => &mut self.world.nats,
            at => &mut self.others[at - 1],
        }
    }

    /// The server that leads a stream, counted from 0, as far as one is known.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        let context = jetstream::new(self.world.client().await);
        let stream = context.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.as_deref()?;
        leader.strip_prefix("nats-")?.parse().ok()
    }

    /// What is stored of a training.
    pub async fn stored(&self, id: &str) -> Value {
        let context = jetstream::new(self.world.client().await);
        let Ok(bucket) = context.get_key_value("trainings").await else { return Value::Null };
        let value = bucket.get(id).await.ok().flatten();
        value.map(|value| Stored::read(&value).0).unwrap_or_default()
    }
}

/// Nobody listens on this port.
const NO_OTHER_WAYS: &str = ", no_advertise: true, advertise: \"127.0.0.1:9\"";
const REPLICAS: [&str; 2] = ["--replicas", "3"];

fn start_server(folder: &Path, at: usize, ports: [u16; 3], routes: &Routes) -> Process {
    let name = format!("nats-{at}");
    let Routes { ports: listen, ways } = routes;
    let (urls, more) = if ways.is_empty() {
        (listen.map(url).to_vec(), "")
    } else {
        let ways = ways.iter().filter(|(from, _, _)| *from == at);
        // What servers tell each other, and clients, would lead past the ways.
        (ways.map(|(_, _, way)| way.url()).collect(), NO_OTHER_WAYS)
    };
    let config = format!(
        "server_name: {name}\njetstream {{ store_dir: \"{name}\" }}\n\
         cluster {{ name: fleet, listen: \"127.0.0.1:{}\", routes: [{}]{more} }}\n",
        listen[at],
        urls.join(", ")
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
