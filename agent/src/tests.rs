//! The whole agent against a real nats-server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{Attempt, BlobRef, DeviceId, JobId, Millis, RoundNumber};
use jobs::report::{ReportBody, TaskReport};
use jobs::spec::{Offer, Purpose, Task, TaskId, TaskWork};
use jobs::wire;
use link::blobs::Blobs;
use models::dataset::{Examples, idx};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::engines::testing::{self, Fake};
use crate::server::Server;
use crate::{AgentError, run};

mod control;
mod engines;
mod guards;
mod infer;
mod joining;
mod kept_local;
mod listening;
mod masked;
mod noised;
mod refusals;
mod train;
mod updates;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fleet of one: a server with streams, a broker's connection, a directory.
struct World {
    server: Server,
    client: Client,
    blobs: Blobs,
    dir: tempfile::TempDir,
}

/// A running agent.
struct Agent {
    shutdown: oneshot::Sender<()>,
    running: JoinHandle<Result<(), AgentError>>,
}

impl World {
    async fn new() -> Self {
        let server = Server::start();
        let client = server.client().await;
        let context = async_nats::jetstream::new(client.clone());
        link::layout::ensure(&context, link::layout::Layout::default()).await.unwrap();
        let blobs = Blobs::new(client.clone());
        Self { server, client, blobs, dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> Config {
        let state_dir = self.dir.path().join("state");
        Config {
            heartbeat: Duration::from_millis(100),
            telemetry: Duration::from_millis(200),
            threads: 1,
            tract: Some(testing::write(self.dir.path(), Fake::Plain)),
            ..Config::new(&self.server.url(), device(), state_dir)
        }
    }

    /// A configuration with a data set of two classes that a straight line separates.
    fn config_with_data(&self) -> Config {
        let data = self.dir.path().join("digits");
        write_digits(&data, 64, 32);
        let name = "digits".parse().unwrap();
        Config { data: BTreeMap::from([(name, data)]), ..self.config() }
    }

    /// Starts an agent and waits until it is joined.
    async fn join(&self, config: Config) -> Agent {
        let mut hellos = self.listen("fleet.pi.hello").await;
        let agent = start(config);
        next(&mut hellos).await;
        agent
    }

    /// Subscribes, and waits until the server knows: what others publish from now on is heard.
    async fn listen(&self, subject: &str) -> Subscriber {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        // A flush ends when the bytes are sent; the answer to a request comes after them.
        let answer = self.client.request("nobody.listens", Bytes::new()).await;
        assert_eq!(answer.unwrap_err().kind(), RequestErrorKind::NoResponders);
        subscriber
    }

    async fn ask(&self, subject: &str) -> serde_json::Value {
        let answer = self.client.request(subject.to_owned(), Bytes::new()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Offers a task as a broker does when nobody waits.
    async fn offer(&self, task: &Task) {
        let payload = wire::encode(&Offer::Task(Box::new(task.clone())));
        self.client.publish("offer.pi", payload).await.unwrap();
    }

    async fn put(&self, bytes: Vec<u8>) -> BlobRef {
        self.blobs.put(bytes.into()).await.unwrap()
    }
}

impl Agent {
    async fn stop(self) {
        let _ = self.shutdown.send(());
        let ended = tokio::time::timeout(Duration::from_secs(5), self.running).await;
        ended.expect("the agent ends within 5 s").unwrap().unwrap();
    }
}

fn start(config: Config) -> Agent {
    let (shutdown, wait) = oneshot::channel();
    let running = tokio::spawn(run(config, async {
        let _ = wait.await;
    }));
    Agent { shutdown, running }
}

fn device() -> DeviceId {
    DeviceId::parse("pi").unwrap()
}

fn task(job: &str, purpose: Purpose, attempt: u32, work: TaskWork) -> Task {
    let id = TaskId {
        job: JobId::parse(job).unwrap(),
        round: RoundNumber(1),
        purpose,
        attempt: Attempt(attempt),
    };
    Task { id, timeout_ms: Millis(30_000), work }
}

async fn next(messages: &mut Subscriber) -> Message {
    let message = tokio::time::timeout(PATIENCE, messages.next()).await;
    message.expect("a message comes in time").expect("the subscription lives")
}

async fn next_as<T: DeserializeOwned>(messages: &mut Subscriber) -> T {
    wire::decode(&next(messages).await.payload).unwrap()
}

/// The report that ends a task, and how many came before it.
async fn final_report(reports: &mut Subscriber) -> (TaskReport, usize) {
    let mut before = 0;
    loop {
        let report: TaskReport = next_as(reports).await;
        if report.body.is_final() {
            return (report, before);
        }
        before += 1;
    }
}

fn failure_of(report: TaskReport) -> jobs::report::Failure {
    let (ReportBody::Failed(failure) | ReportBody::Declined(failure)) = report.body else {
        panic!("expected a failure, found {report:?}")
    };
    failure
}

/// IDX files of 4x4 pictures: class 0 is bright on the left, class 1 on the right.
fn write_digits(dir: &Path, train: usize, test: usize) {
    std::fs::create_dir_all(dir).unwrap();
    for (split, count) in [("train", train), ("t10k", test)] {
        let labels: Vec<u32> = (0..u32::try_from(count).unwrap()).map(|n| n % 2).collect();
        let pixel = |label: u32, column: usize, n: usize| {
            let bright = (column < 2) == (label == 0);
            if bright { 200 + u8::try_from(n % 50).unwrap() } else { 10 }
        };
        let pixels = labels
            .iter()
            .enumerate()
            .flat_map(|(n, label)| (0..16).map(move |at| pixel(*label, at % 4, n)))
            .collect();
        let examples = Examples::pictures([1, 4, 4], pixels, labels);
        let (images, labels) = idx::encode(&examples).unwrap();
        std::fs::write(dir.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(dir.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
}

/// Real data beside the workspace; `None`, with a line, where it is absent.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("skipped: {} is absent", path.display());
    }
    None
}
