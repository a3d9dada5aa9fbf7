//! For tests: a nats-server, brokers on it, and devices that speak the real protocol.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::device::{DatasetFacts, Facts, Heartbeat, Hello, Telemetry};
use jobs::id::{BlobRef, DatasetName, DeviceId, JobId, Millis};
use jobs::report::{EvaluationReport, Failure, FailureCode, ReportBody, TaskReport, UpdateReport};
use jobs::spec::{
    Evaluate, JobSpec, ModelQuery, Offer, Participation, Purpose, Task, TaskId, TaskWork,
    TrainSpec, TrainTask, WorkSpec,
};
use jobs::subject::{self, FleetTopic};
use jobs::wire;
use link::blobs::Blobs;
use models::artifact::ModelConfig;
use models::params::Parameters;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::broker::{Broker, BrokerConfig};
use crate::nats_server::{NatsServer, NatsServerConfig};
use crate::record::ModelRecord;

use self::encoded::encoded;

mod encoded;
mod infer;
pub(crate) mod masked;
pub(crate) mod trained;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Heartbeats of test devices.
const BEAT: Millis = Millis(300);

/// A nats-server with a directory of its own.
pub(crate) struct World {
    pub(crate) server: NatsServer,
    _dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = NatsServerConfig {
            program: None,
            store_dir: dir.path().to_owned(),
            host: std::net::Ipv4Addr::LOCALHOST.into(),
            port: None,
        };
        Self { server: NatsServer::start(&config).await.unwrap(), _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    pub(crate) async fn broker(&self) -> Broker {
        Broker::start(self.broker_config()).await.unwrap()
    }

    /// A broker that is killed when its runtime is shut down.
    pub(crate) async fn broker_on(&self, runtime: &tokio::runtime::Runtime) -> Broker {
        runtime.spawn(Broker::start(self.broker_config())).await.unwrap().unwrap()
    }

    pub(crate) fn broker_config(&self) -> BrokerConfig {
        let (nats, data, tried_by) = (self.url(), BTreeMap::new(), None);
        BrokerConfig { nats, body_bytes_max: 64 << 20, replicas: 1, data, tried_by }
    }

    /// For a broker that judges on the data set `tiny` in this folder.
    pub(crate) fn config_with(&self, folder: &std::path::Path) -> BrokerConfig {
        let data = BTreeMap::from([(id("tiny"), folder.to_owned())]);
        BrokerConfig { data, ..self.broker_config() }
    }

    pub(crate) async fn client(&self) -> Client {
        async_nats::connect(self.url()).await.unwrap()
    }
}

pub(crate) fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Registers the family `mlp` for examples of shape [1, 2, 2] and three classes.
pub(crate) async fn register(broker: &Broker, name: &str) -> ModelRecord {
    let onnx = models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    broker.register(&id(name), None, onnx.into(), ModelConfig::default()).await.unwrap()
}

/// What a device does with a task.
pub(crate) enum Action {
    /// The work, as it should be.
    Work,
    /// Nothing at all.
    Silence,
    /// It ends the task so.
    Fail(FailureCode),
    /// It uploads these bytes as its update.
    Upload(Vec<u8>),
    /// The same, once this is true.
    UploadAfter(watch::Receiver<bool>, Vec<u8>),
    /// It reports this blob as its update.
    Claim(BlobRef),
    /// The work, once this is true.
    After(watch::Receiver<bool>),
    /// The work, reported twice.
    Repeat,
    /// The work, as an agent does it that knows no encodings of updates.
    Plain,
}

type Behaviour = Arc<dyn Fn(&Task) -> Action + Send + Sync>;

/// A device; it goes offline without a word when dropped.
pub(crate) struct Device {
    /// Tasks that were offered, in order.
    pub(crate) offered: watch::Receiver<Vec<Task>>,
    /// Tasks that were withdrawn, in order.
    pub(crate) withdrawn: watch::Receiver<Vec<TaskId>>,
    /// Tasks whose results were not used, with the reasons, in order.
    pub(crate) refused: watch::Receiver<Vec<(TaskId, String)>>,
    /// The parameters that training began from, by round.
    pub(crate) given: watch::Receiver<BTreeMap<u32, Parameters>>,
    /// The server's control variates it was given, by round.
    pub(crate) controls: watch::Receiver<BTreeMap<u32, Parameters>>,
    _guard: DropGuard,
}

struct Agent {
    hello: Hello,
    client: Client,
    blobs: Blobs,
    behaviour: Behaviour,
    offered: watch::Sender<Vec<Task>>,
    withdrawn: watch::Sender<Vec<TaskId>>,
    refused: watch::Sender<Vec<(TaskId, String)>>,
    given: watch::Sender<BTreeMap<u32, Parameters>>,
    controls: watch::Sender<BTreeMap<u32, Parameters>>,
    /// By round.
    masked: Mutex<BTreeMap<u32, masked::Masked>>,
}

impl Device {
    pub(crate) async fn start(world: &World, name: &str) -> Self {
        Self::start_as(world, name, |_| Action::Work).await
    }

    pub(crate) async fn start_as(
        world: &World,
        name: &str,
        behaviour: impl Fn(&Task) -> Action + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(world, hello(name), behaviour).await
    }

    pub(crate) async fn start_with(
        world: &World,
        hello: Hello,
        behaviour: impl Fn(&Task) -> Action + Send + Sync + 'static,
    ) -> Self {
        let client = world.client().await;
        let (offered_sender, offered) = watch::channel(Vec::new());
        let (withdrawn_sender, withdrawn) = watch::channel(Vec::new());
        let (refused_sender, refused) = watch::channel(Vec::new());
        let (given_sender, given) = watch::channel(BTreeMap::new());
        let (controls_sender, controls) = watch::channel(BTreeMap::new());
        let agent = Arc::new(Agent {
            blobs: Blobs::new(client.clone()),
            client,
            behaviour: Arc::new(behaviour),
            offered: offered_sender,
            withdrawn: withdrawn_sender,
            refused: refused_sender,
            given: given_sender,
            controls: controls_sender,
            masked: Mutex::default(),
            hello: hello.clone(),
        });
        let token = CancellationToken::new();
        let subjects = [
            subject::offer(&hello.device),
            subject::command_all("hello"),
            subject::command(&hello.device, "hello"),
        ];
        let mut messages = futures::stream::SelectAll::new();
        for subject in subjects {
            messages.push(agent.client.subscribe(subject).await.unwrap());
        }
        agent.say(FleetTopic::Hello, wire::encode(&hello)).await;
        agent.client.flush().await.unwrap();
        let beating = agent.clone();
        tokio::spawn(token.clone().run_until_cancelled_owned(async move { beating.beat().await }));
        let inner = token.clone();
        tokio::spawn(token.clone().run_until_cancelled_owned(async move {
            while let Some(message) = messages.next().await {
                let agent = agent.clone();
                let task = async move { agent.hear(message).await };
                tokio::spawn(inner.clone().run_until_cancelled_owned(task));
            }
        }));
        Self { offered, withdrawn, refused, given, controls, _guard: token.drop_guard() }
    }

    /// Waits until a task of this purpose was offered.
    pub(crate) async fn offered(&mut self, purpose: Purpose) -> Task {
        let is_it = |tasks: &Vec<Task>| tasks.iter().any(|task| task.id.purpose == purpose);
        let offered = tokio::time::timeout(PATIENCE, self.offered.wait_for(is_it)).await;
        let tasks = offered.expect("an offer comes").unwrap();
        tasks.iter().find(|task| task.id.purpose == purpose).unwrap().clone()
    }
}

impl Agent {
    async fn say(&self, topic: FleetTopic, payload: Bytes) {
        let subject = subject::fleet(&self.hello.device, topic);
        self.client.publish(subject, payload).await.unwrap();
    }

    async fn beat(&self) {
        let mut interval = tokio::time::interval(Duration::from_millis(BEAT.0));
        for sequence in 0.. {
            interval.tick().await;
            let heartbeat = Heartbeat {
                device: self.hello.device.clone(),
                instance: self.hello.instance.clone(),
                sequence,
                tasks: Vec::new(),
                models: Vec::new(),
            };
            self.say(FleetTopic::Heartbeat, wire::encode(&heartbeat)).await;
        }
    }

    async fn hear(&self, message: Message) {
        if !message.subject.starts_with("offer.") {
            return self.say(FleetTopic::Hello, wire::encode(&self.hello)).await;
        }
        let length = message.headers.as_ref().and_then(|headers| {
            headers.get(wire::JSON_LENGTH_HEADER).map(|length| length.as_str().parse().unwrap())
        });
        let (offer, binary) = wire::decode_with_binary(&message.payload, length).unwrap();
        let task = match offer {
            Offer::Task(task) => task,
            Offer::Cancel { task, reason, refused: true } => {
                return self.refused.send_modify(|told| told.push((task, reason)));
            }
            Offer::Cancel { task, .. } => {
                return self.withdrawn.send_modify(|tasks| tasks.push(task));
            }
        };
        let mut action = (self.behaviour)(&task);
        let again = self.offered.borrow().iter().any(|known| known.id == task.id);
        self.offered.send_modify(|tasks| tasks.push((*task).clone()));
        if let Action::After(gate) | Action::UploadAfter(gate, _) = &mut action {
            // As an agent, which does not do twice what it is at.
            if again {
                return;
            }
            if task.id.purpose == Purpose::Train {
                self.report(&task, ReportBody::Accepted, &message, "accepted").await;
            }
            gate.wait_for(|open| *open).await.unwrap();
        }
        let repeat = matches!(action, Action::Repeat);
        let encodes = !matches!(action, Action::Plain);
        let body = match (action, &task.work) {
            (Action::Silence, _) => return,
            (Action::Fail(code), _) => ReportBody::Failed(Failure::new(code, "as the test wants")),
            (Action::Upload(bytes) | Action::UploadAfter(_, bytes), _) => {
                self.upload(&task, bytes).await
            }
            (Action::Claim(blob), _) => self.update(blob),
            (_, TaskWork::Train(work)) => self.train(&task, work, encodes).await,
            (_, TaskWork::TrainMasked(work)) => self.train_masked(&task, work).await,
            (_, TaskWork::Exchange) => self.exchange(&task, &binary).await,
            (_, TaskWork::Evaluate(_)) => ReportBody::Evaluated(EvaluationReport {
                examples: 10,
                loss: 0.5,
                accuracy: 0.25,
                duration_ms: Millis(1),
            }),
            (_, TaskWork::Infer(work)) => {
                return self.infer(&task, work, binary, &message).await;
            }
            (_, TaskWork::Telemetry) => {
                ReportBody::Measured(Box::new(Telemetry { uptime_s: 5, ..Telemetry::default() }))
            }
        };
        if repeat {
            self.report(&task, body.clone(), &message, "once").await;
        }
        self.report(&task, body, &message, "last").await;
    }

    async fn report(&self, task: &Task, body: ReportBody, message: &Message, kind: &str) {
        let device = self.hello.device.clone();
        let report = TaskReport { task: task.id.clone(), device: device.clone(), body };
        match task.id.purpose {
            Purpose::Train
            | Purpose::Evaluate
            | Purpose::Share
            | Purpose::Mask
            | Purpose::Unmask => {
                let subject = subject::report(&task.id.job, &device);
                let message_id = format!("{}-{device}-{kind}", task.id);
                let context = async_nats::jetstream::new(self.client.clone());
                let (headers, payload) = (HeaderMap::new(), wire::encode(&report));
                link::publish::store(&context, &subject, &message_id, headers, payload)
                    .await
                    .unwrap();
            }
            Purpose::Infer | Purpose::Telemetry => {
                let reply = message.reply.clone().unwrap();
                self.client.publish(reply, wire::encode(&report)).await.unwrap();
            }
        }
    }

    /// Adds the number of the device (the last character of its name) to every value.
    async fn train(&self, task: &Task, work: &TrainTask, encodes: bool) -> ReportBody {
        let bytes = encoded::received(&self.blobs, work, encodes).await;
        let parameters = Parameters::from_safetensors(&bytes).unwrap();
        let mut items = parameters.items().to_vec();
        self.given.send_modify(|given| drop(given.insert(task.id.round.0, parameters)));
        trained::move_by(&mut items, self.number());
        let trained = Parameters::new(items.clone()).unwrap();
        let update = encodes.then(|| encoded(work, &bytes, &trained)).flatten();
        let body = self.upload(task, update.unwrap_or_else(|| trained.to_safetensors())).await;
        let ReportBody::Trained(mut update) = body else { return body };
        update.initial_loss = work.initial_loss.then(|| initial_loss(&self.hello.device));
        if let Some(control) = &work.control {
            update.control_anew = control.device.is_some() && trained::forgets(&self.hello.device);
            if let Some(server) = &control.server {
                let server = self.blobs.get(server).await.unwrap();
                let server = Parameters::from_safetensors(&server).unwrap();
                self.controls.send_modify(|given| drop(given.insert(task.id.round.0, server)));
            }
            let change = number(&self.hello.device) / 8.0;
            trained::fill(&mut items, change);
            let name = format!("{}/control", update.parameters.object_name());
            let change = Parameters::new(items).unwrap().to_safetensors();
            update.control_change = Some(self.blobs.put_named(name, change.into()).await.unwrap());
        }
        ReportBody::Trained(update)
    }

    async fn upload(&self, task: &Task, bytes: Vec<u8>) -> ReportBody {
        let jobs::spec::TaskId { job, round, attempt, .. } = &task.id;
        let name = format!("update/{job}/{round}/{}/{attempt}", self.hello.device);
        self.update(self.blobs.put_named(name, bytes.into()).await.unwrap())
    }

    fn update(&self, parameters: BlobRef) -> ReportBody {
        ReportBody::Trained(UpdateReport {
            parameters,
            examples: examples(&self.hello.device),
            loss: 0.5,
            accuracy: 0.5,
            steps: steps(&self.hello.device),
            duration_ms: Millis(1),
            engine: "test".to_owned(),
            initial_loss: None,
            control_change: None,
            held: false,
            crc32: None,
            control_anew: false,
        })
    }

    fn number(&self) -> f32 {
        number(&self.hello.device)
    }
}

/// Steps that a device says it takes.
pub(crate) fn steps(device: &DeviceId) -> u64 {
    digit(device).into()
}

/// The loss that a device has before it trains.
pub(crate) fn initial_loss(device: &DeviceId) -> f64 {
    f64::from(number(device)) / 2.0
}

/// What a device adds to each value.
pub(crate) fn number(device: &DeviceId) -> f32 {
    digit(device).into()
}

fn digit(device: &DeviceId) -> u8 {
    let digit = device.as_str().chars().last().and_then(|digit| digit.to_digit(10));
    u8::try_from(digit.unwrap_or(1)).unwrap()
}

/// The weight of a device in the mean.
pub(crate) fn examples(device: &DeviceId) -> u64 {
    if number(device) > 1.0 { 30 } else { 10 }
}

pub(crate) fn hello(name: &str) -> Hello {
    Hello {
        device: id(name),
        instance: crate::broker::new_job_id().to_string(),
        started_at: crate::store::now(),
        heartbeat_ms: BEAT,
        agent_version: "test".to_owned(),
        groups: Vec::new(),
        labels: BTreeMap::new(),
        datasets: vec![DatasetFacts {
            name: DatasetName::parse("tiny").unwrap(),
            format: "idx".to_owned(),
            shape: vec![1, 2, 2],
            classes: 3,
            train_examples: 10,
            test_examples: 10,
            train_class_counts: Vec::new(),
            columns: Vec::new(),
            labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
            mean: vec![0.5],
            std: vec![0.5],
            channel_mean: vec![],
            channel_std: vec![],
        }],
        engines: vec!["native".to_owned()],
        engine_facts: Vec::new(),
        facts: Facts::default(),
        slots: 4,
        masks: true,
        masks_within: true,
    }
}

/// A training of the family `mlp` on the test devices' data set.
pub(crate) fn train_spec(rounds: u32, devices: u32) -> JobSpec {
    let train = TrainSpec {
        model: ModelQuery { name: id("mlp"), version: None },
        begin_from: None,
        dataset: id("tiny"),
        rounds,
        local: jobs::spec::LocalTraining { epochs: 0, ..Default::default() },
        participation: Participation {
            devices: Some(devices),
            quorum: devices,
            deadline_ms: Millis(20_000),
            ..Participation::default()
        },
        strategy: jobs::spec::Strategy::default(),
        rule: None,
        privacy: None,
        update: jobs::spec::UpdateEncoding::default(),
        download: jobs::spec::Download::default(),
        transfer: jobs::spec::Transfer::default(),
        secure_aggregation: None,
        evaluate: Evaluate::Devices,
        target_accuracy: None,
        early_stopping: None,
        keep: jobs::spec::Keep::default(),
        keep_rounds: None,
        register_as: Some(id("tiny-mlp")),
        seed: 7,
    };
    JobSpec {
        selector: jobs::selector::Selector::default(),
        deadline_ms: Millis(60_000),
        work: WorkSpec::Train(Box::new(train)),
    }
}

/// Waits until a job is over.
pub(crate) async fn ended(broker: &Broker, job: &JobId) -> crate::record::JobRecord {
    let patience = u64::try_from(PATIENCE.as_millis()).unwrap();
    let record = broker.wait(job, Millis(patience)).await.unwrap();
    assert!(record.state.is_final(), "{record:?}");
    record
}

/// Waits until so many devices are online.
pub(crate) async fn joined(broker: &Broker, count: usize) {
    let mut chances = broker.core.fleet.chances();
    let online = || {
        let devices = broker.devices();
        devices.iter().filter(|device| device.presence == jobs::device::Presence::Online).count()
    };
    let joining = async {
        while online() < count {
            chances.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, joining).await.expect("devices join");
}
