//! Devices that say and do what agents do in a round without training, many in one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::device::{DatasetFacts, Facts, Heartbeat, Hello};
use jobs::id::{BlobRef, Millis};
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport, UpdateReport};
use jobs::spec::{Offer, Task, TaskId, TaskWork};
use jobs::subject::{self, FleetTopic};
use jobs::wire;
use link::blobs::{BlobError, Blobs, Existing};

/// Which devices one process plays.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Plays devices on this NATS server until it is killed
    #[arg(long, hide = true)]
    simulate: Option<String>,
    /// The number of the first device
    #[arg(long, hide = true, default_value_t = 0)]
    first: u32,
    /// How many
    #[arg(long, hide = true, default_value_t = 1)]
    count: u32,
    /// Devices that share a connection
    #[arg(long, hide = true, default_value_t = 1)]
    sharing: u32,
    /// Time between two heartbeats of a device
    #[arg(long, hide = true, default_value_t = 2000)]
    heartbeat_ms: u64,
    /// Pixels across and down of the data set's pictures
    #[arg(long, hide = true, default_value_t = 8)]
    side: u32,
}

impl Options {
    pub(crate) fn server(&self) -> Option<&str> {
        self.simulate.as_deref()
    }
}

#[derive(Clone)]
struct Device {
    hello: Arc<Hello>,
    client: Client,
    blobs: Blobs,
}

/// Plays the devices; never returns.
pub(crate) async fn play(server: &str, options: &Options) {
    let mut devices = tokio::task::JoinSet::new();
    let numbers: Vec<u32> = (options.first..options.first + options.count).collect();
    for numbers in numbers.chunks(options.sharing.max(1) as usize) {
        let client = async_nats::ConnectOptions::new()
            .client_capacity(1024)
            .read_buffer_capacity(8192)
            .connect(server)
            .await
            .unwrap();
        for number in numbers {
            let device = Device {
                hello: Arc::new(hello(*number, options)),
                blobs: Blobs::new(client.clone()),
                client: client.clone(),
            };
            devices.spawn(device.live());
        }
    }
    devices.join_all().await;
}

fn hello(number: u32, options: &Options) -> Hello {
    let side = options.side;
    Hello {
        device: format!("device-{number:05}").parse().unwrap(),
        instance: format!("instance-{number}"),
        started_at: Millis(1),
        heartbeat_ms: Millis(options.heartbeat_ms),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        groups: Vec::new(),
        labels: BTreeMap::new(),
        datasets: vec![DatasetFacts {
            name: "blank".parse().unwrap(),
            format: "idx".to_owned(),
            shape: vec![1, side, side],
            classes: 8,
            train_examples: 8,
            test_examples: 8,
            train_class_counts: Vec::new(),
            columns: Vec::new(),
            labels: Vec::new(),
            mean: Vec::new(),
            std: Vec::new(),
            channel_mean: Vec::new(),
            channel_std: Vec::new(),
        }],
        engines: vec!["native".to_owned()],
        engine_facts: Vec::new(),
        facts: Facts::default(),
        slots: 1,
    }
}

impl Device {
    async fn live(self) {
        let id = &self.hello.device;
        let subjects =
            [subject::offer(id), subject::command_all("hello"), subject::command(id, "hello")];
        let mut messages = futures::stream::SelectAll::new();
        for subject in subjects {
            messages.push(self.client.subscribe(subject).await.unwrap());
        }
        self.say(FleetTopic::Hello, wire::encode(&*self.hello)).await;
        let every = Duration::from_millis(self.hello.heartbeat_ms.0);
        // Devices are not in step with each other.
        let shift =
            every.mul_f64(f64::from(id.as_str()[7..].parse::<u32>().unwrap() % 997) / 997.0);
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + shift, every);
        let mut sequence = 0;
        loop {
            tokio::select! {
                Some(message) = messages.next() => {
                    let device = self.clone();
                    tokio::spawn(async move { device.hear(message).await });
                }
                _ = beat.tick() => {
                    sequence += 1;
                    self.beat(sequence).await;
                }
            }
        }
    }

    async fn say(&self, topic: FleetTopic, payload: Bytes) {
        let subject = subject::fleet(&self.hello.device, topic);
        self.client.publish(subject, payload).await.unwrap();
    }

    async fn beat(&self, sequence: u64) {
        let Hello { device, instance, .. } = &*self.hello;
        let (device, instance) = (device.clone(), instance.clone());
        let (tasks, models) = (Vec::new(), Vec::new());
        let beat = Heartbeat { device, instance, sequence, tasks, models };
        self.say(FleetTopic::Heartbeat, wire::encode(&beat)).await;
    }

    async fn hear(&self, message: Message) {
        if !message.subject.starts_with("offer.") {
            return self.say(FleetTopic::Hello, wire::encode(&*self.hello)).await;
        }
        let Offer::Task(task) = wire::decode(&message.payload).unwrap() else { return };
        if let TaskWork::Train(work) = &task.work {
            self.report(&task, ReportBody::Accepted, "accepted").await;
            let body = match self.update(&task.id, &work.parameters).await {
                Ok(update) => ReportBody::Trained(update),
                Err(error) => ReportBody::Failed(Failure::new(
                    FailureCode::BlobUnavailable,
                    error.to_string(),
                )),
            };
            self.report(&task, body, "last").await;
        }
    }

    /// Gets the parameters and sends them back, as an agent does in no epoch of training.
    async fn update(&self, id: &TaskId, received: &BlobRef) -> Result<UpdateReport, BlobError> {
        let bytes = self.blobs.get(received).await?;
        let TaskId { job, round, attempt, .. } = id;
        let name = format!("update/{job}/{round}/{}/{attempt}", self.hello.device);
        let parameters = BlobRef { name: Some(name), ..received.clone() };
        self.blobs.put_as(&parameters, bytes, Existing::Replace).await?;
        Ok(UpdateReport {
            parameters,
            examples: 8,
            loss: 0.0,
            accuracy: 0.0,
            steps: 0,
            duration_ms: Millis(1),
            engine: "native".to_owned(),
            initial_loss: None,
            control_change: None,
        })
    }

    async fn report(&self, task: &Task, body: ReportBody, kind: &str) {
        let device = self.hello.device.clone();
        let subject = subject::report(&task.id.job, &device);
        let id = format!("{}-{device}-{kind}", task.id);
        let report = TaskReport { task: task.id.clone(), device, body };
        let context = async_nats::jetstream::new(self.client.clone());
        let payload = wire::encode(&report);
        link::publish::store(&context, &subject, &id, HeaderMap::new(), payload).await.unwrap();
    }
}
