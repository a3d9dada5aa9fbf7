//! A nats-server, a broker and agents, each a process that can be killed and started again.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use broker_api::nats_server::{MEMORY, MEMORY_VARIABLE};
use futures::TryStreamExt as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::Disk;
use crate::process::{PATIENCE, Process, nats_server, program};

/// Where the nats-server keeps its data, below the folder.
const NATS_DATA: &str = "nats";

/// A fleet on loopback, in a folder of its own; gone when dropped.
#[derive(Debug)]
pub struct World {
    /// The nats-server.
    pub nats: Process,
    /// `dunlin serve`
    pub broker: Process,
    nats_urls: String,
    nats_port: u16,
    http_port: u16,
    http: reqwest::Client,
    /// Where the nats-server keeps its data, if it is not in the folder.
    disk: Option<Disk>,
    folder: TempDir,
}

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The media type.
    pub media_type: String,
    /// The body; null when it is not JSON.
    pub body: Value,
}

impl World {
    /// Starts a nats-server and a broker.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with more lines for the nats-server's configuration.
    pub async fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nats.conf"), format!("jetstream {{}}\n{config}"))
            .unwrap();
        let (nats_port, http_port) = (free_port(), free_port());
        let nats = start_nats(folder.path(), nats_port, None);
        let nats_urls = url(nats_port);
        let broker = start_broker("broker", folder.path(), &nats_urls, &[], http_port);
        Self::of(folder, (nats, nats_port), nats_urls, (broker, http_port)).await
    }

    /// The same with the nats-server's data on a disk of so many bytes, if there can be one.
    pub async fn start_on_disk(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nats.conf"), "jetstream {}").unwrap();
        let disk = Disk::new(folder.path(), NATS_DATA, bytes)?;
        let (nats_port, http_port) = (free_port(), free_port());
        let nats = start_nats(folder.path(), nats_port, Some(&disk));
        let nats_urls = url(nats_port);
        let broker = start_broker("broker", folder.path(), &nats_urls, &[], http_port);
        let world = Self::of(folder, (nats, nats_port), nats_urls, (broker, http_port)).await;
        Some(Self { disk: Some(disk), ..world })
    }

    /// The disk of the nats-server.
    ///
    /// # Panics
    /// When it was not started on one.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    pub(crate) async fn of(
        folder: TempDir,
        (nats, nats_port): (Process, u16),
        nats_urls: String,
        (broker, http_port): (Process, u16),
    ) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let world =
            Self { nats, broker, nats_urls, nats_port, http_port, http, disk: None, folder };
        world.ready().await;
        world
    }

    /// From now on requests go to a broker that listens on this port.
    pub fn speak_to(&mut self, http_port: u16) {
        self.http_port = http_port;
    }

    /// The folder for logs and data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `nats://127.0.0.1:<port>`, several separated by commas.
    pub fn nats_url(&self) -> String {
        self.nats_urls.clone()
    }

    /// Where the nats-server listens.
    pub fn nats_port(&self) -> u16 {
        self.nats_port
    }

    /// `http://127.0.0.1:<port>`
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// Starts the broker again after it was killed, on the same ports.
    pub async fn restart_broker(&mut self) {
        self.restart_broker_with(&[]).await;
    }

    /// The same with options of `dunlin serve`.
    pub async fn restart_broker_with(&mut self, options: &[&str]) {
        let (folder, urls) = (self.folder.path(), &self.nats_urls);
        self.broker = start_broker("broker", folder, urls, options, self.http_port);
        self.ready().await;
    }

    /// Starts the nats-server again after it was killed, on the same port and data.
    pub fn restart_nats(&mut self) {
        self.nats = start_nats(self.folder.path(), self.nats_port, self.disk.as_ref());
    }

    async fn ready(&self) {
        self.ready_at(self.http_port).await;
    }

    /// Waits until a broker that listens on this port can be asked.
    pub(crate) async fn ready_at(&self, http_port: u16) {
        let url = format!("http://127.0.0.1:{http_port}/readyz");
        self.until("the broker is ready", async || {
            self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }

    /// A command of an agent with a name and a folder of its own, to be started by
    /// [`World::run_agent`].
    pub fn agent_command(&self, name: &str) -> Command {
        self.agent_command_of(&program("dunlin-agent"), name)
    }

    /// The same with a build of one's choice.
    pub fn agent_command_of(&self, program: &Path, name: &str) -> Command {
        self.agent_command_with(program, name, (&self.nats_urls, 300))
    }

    /// The same by another way to NATS, with so many milliseconds between two heartbeats.
    pub fn agent_command_via(&self, (nats, heartbeat_ms): (&str, u32), name: &str) -> Command {
        self.agent_command_with(&program("dunlin-agent"), name, (nats, heartbeat_ms))
    }

    fn agent_command_with(
        &self,
        program: &Path,
        name: &str,
        (nats, heartbeat_ms): (&str, u32),
    ) -> Command {
        let mut command = Command::new(program);
        command.args(["--nats", nats, "--name", name]);
        command.args(["--heartbeat-ms", &heartbeat_ms.to_string()]);
        command.arg("--state-dir").arg(self.folder.path().join(format!("state-{name}")));
        command
    }

    /// Plays devices, with these options of `simulated-devices`.
    pub fn devices(&self, name: &str, options: &[&str]) -> Process {
        self.devices_via(&self.nats_urls, name, options)
    }

    /// The same by another way to NATS.
    pub fn devices_via(&self, nats: &str, name: &str, options: &[&str]) -> Process {
        let mut command = Command::new(program("simulated-devices"));
        command.args(["--nats", nats, "--heartbeat-ms", "300"]).args(options);
        Process::start(name, self.folder.path(), command)
    }

    /// Starts an agent.
    pub fn run_agent(&self, name: &str, command: Command) -> Process {
        Process::start(name, self.folder.path(), command)
    }

    /// Starts an agent with a data set, if one is given, and waits until it is online with it.
    pub async fn join(&self, name: &str, data: Option<(&str, &Path)>) -> Process {
        let mut command = self.agent_command(name);
        if let Some((dataset, path)) = data {
            command.arg("--data").arg(format!("{dataset}={}", path.display()));
        }
        let agent = self.run_agent(name, command);
        self.online(name, data.is_some()).await;
        agent
    }

    /// Waits until a device is online, with a data set if so asked.
    pub async fn online(&self, name: &str, with_data: bool) {
        self.until(&format!("{name} is online"), async || {
            let device = self.get(&format!("/v1/devices/{name}")).await.body;
            let datasets = device["hello"]["datasets"].as_array().map_or(0, Vec::len);
            device["presence"] == "online" && (!with_data || datasets > 0)
        })
        .await;
    }

    /// Waits for a condition, 30 s at most.
    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !condition().await {
            assert!(Instant::now() < until, "waited {PATIENCE:?} until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A request that is built by hand.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        self.http.request(method, format!("{}{path}", self.http_url()))
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request("GET", path)).await
    }

    /// `POST` of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.request("POST", path).json(body)).await
    }

    /// Registers an ONNX file under a name with the next number.
    pub async fn register(&self, name: &str, onnx: Vec<u8>) -> Answer {
        answer(self.request("POST", &format!("/v1/models/{name}")).body(onnx)).await
    }

    /// Submits a job; its id.
    pub async fn submit(&self, job: &Value) -> String {
        let answer = self.post("/v1/jobs", job).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// A job as it is now.
    pub async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.body
    }

    /// Waits until a job is over; two minutes at most.
    pub async fn ended(&self, id: &str) -> Value {
        self.ended_within(id, 4 * PATIENCE).await
    }

    /// Waits until a job is over.
    pub async fn ended_within(&self, id: &str, limit: Duration) -> Value {
        let until = Instant::now() + limit;
        loop {
            // The broker waits, so that reading the job takes no time of what is measured.
            let request = self.request("GET", &format!("/v1/jobs/{id}"));
            let job = answer(request.header("prefer", "wait=2")).await.body;
            if !job["ended_at"].is_null() {
                return job;
            }
            assert!(Instant::now() < until, "job {id} does not end: {job:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to NATS as any client makes it.
    pub async fn client(&self) -> async_nats::Client {
        let servers: Vec<&str> = self.nats_urls.split(',').collect();
        async_nats::connect(servers).await.unwrap()
    }

    /// Names of what is in the object store.
    pub async fn blobs(&self) -> Vec<String> {
        let context = async_nats::jetstream::new(self.client().await);
        let store = context.get_stream_no_info("OBJ_blobs").await.unwrap();
        let found = store.info_with_subjects("$O.blobs.M.>").await.unwrap();
        let found: Vec<(String, usize)> = found.try_collect().await.unwrap();
        let name = |(subject, _): (String, usize)| {
            let encoded = subject.trim_start_matches("$O.blobs.M.");
            String::from_utf8(URL_SAFE.decode(encoded).unwrap()).unwrap()
        };
        found.into_iter().map(name).collect()
    }

    /// Runs the operator's command.
    pub fn dunlin(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("dunlin"));
        command.args(arguments);
        command.env("DUNLIN_SERVER", self.http_url()).env("DUNLIN_NATS", self.nats_url());
        command.output().unwrap()
    }
}

/// Sends a request.
pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let Ok(response) = request.send().await else {
        return Answer { status: 0, media_type: String::new(), body: Value::Null };
    };
    let status = response.status().as_u16();
    let media_type = response.headers().get("content-type");
    let media_type = media_type.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let bytes = response.bytes().await.unwrap_or_default();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status, media_type, body }
}

/// A port that nobody listens on now. Each process looks in a block of its own below the range
/// that systems give out, so that tests side by side do not take each other's.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id() * 16 + step) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn url(nats_port: u16) -> String {
    format!("nats://127.0.0.1:{nats_port}")
}

fn start_nats(folder: &Path, port: u16, disk: Option<&Disk>) -> Process {
    let mut command = Command::new(nats_server());
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c", "nats.conf"]);
    command.args(["-sd", NATS_DATA]).current_dir(folder);
    // As `dunlin up` starts it.
    command.env(MEMORY_VARIABLE, MEMORY);
    let command = match disk {
        Some(disk) => disk.on(&command),
        None => command,
    };
    Process::start("nats-server", folder, command)
}

pub(crate) fn start_broker(
    name: &str,
    folder: &Path,
    nats_urls: &str,
    options: &[&str],
    http_port: u16,
) -> Process {
    let mut command = Command::new(program("dunlin"));
    command.args(["serve", "--nats", nats_urls]).args(options);
    command.args(["--listen", &format!("127.0.0.1:{http_port}")]);
    Process::start(name, folder, command)
}
