//! Devices that say and do what agents do in a round without training, many in one process.
//!
//! With `--adds` each adds its number to every value of the parameters, so that the result of a
//! round tells exactly whose updates are in it, with `--masks` in secure aggregations too. With
//! `--moves` they know parameters and updates of 8 bits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::device::{DatasetFacts, Facts, Heartbeat, Hello};
use jobs::held::HeldRequest;
use jobs::id::{BlobRef, Bytes as Size, Millis};
use jobs::report::{
    EvaluationReport, ExchangeReport, Failure, FailureCode, ReportBody, TaskReport, UpdateReport,
};
use jobs::spec::{MaskedTrainTask, Offer, Task, TaskId, TaskWork, TrainTask};
use jobs::subject::{self, FleetTopic};
use jobs::wire;
use link::blobs::{BlobError, Blobs, Existing, Listening};
use models::dataset::Dataset;
use models::federated::encoding::decode_parameters;

mod attacker;
mod masker;
mod mover;

use self::masker::Masker;

/// Examples of a data set of which there is nothing but the name.
const BLANK_EXAMPLES: u64 = 8;

/// Which devices one process plays.
#[derive(Debug, Clone, clap::Parser)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct Options {
    /// The NATS servers
    #[arg(long)]
    pub nats: String,
    /// The number of the first device
    #[arg(long, default_value_t = 0)]
    pub first: u32,
    /// How many
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// Devices that share a connection
    #[arg(long, default_value_t = 1)]
    pub sharing: u32,
    /// Time between two heartbeats of a device
    #[arg(long, default_value_t = 2000)]
    pub heartbeat_ms: u64,
    /// Pixels across and down of the data set's pictures
    #[arg(long, default_value_t = 8)]
    pub side: u32,
    /// Each device adds its number to every value
    #[arg(long)]
    pub adds: bool,
    /// Each device takes part in secure aggregations, and adds its number there
    #[arg(long)]
    pub masks: bool,
    /// Each task fails
    #[arg(long)]
    pub fails: bool,
    /// Each device moves every value a little, and encodes what it sends if the task says so
    #[arg(long)]
    pub moves: bool,
    /// The data set's name
    #[arg(long, default_value = "blank")]
    pub dataset: String,
    /// Where it is; nothing but a name otherwise
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Trains, and sends the opposite of what was learnt, so many times as far
    #[arg(long, requires = "data")]
    pub flips: Option<f32>,
    /// How long each task takes
    #[arg(long, default_value_t = 0)]
    pub delay_ms: u64,
    /// Where the parameters go that the first device is given, a file for each round
    #[arg(long)]
    pub record: Option<PathBuf>,
}

#[derive(Clone)]
struct Device {
    number: u32,
    options: Arc<Options>,
    dataset: Option<Arc<Dataset>>,
    hello: Arc<Hello>,
    client: Client,
    blobs: Blobs,
    /// The update that the broker may ask for, with its name.
    held: Arc<Mutex<Option<(String, Bytes)>>>,
    /// Its part in a secure aggregation.
    masker: Arc<Mutex<Option<Masker>>>,
    /// The upload of the next round's parameters.
    next: Arc<Mutex<Option<Listening>>>,
}

/// Plays the devices; never returns.
pub async fn play(options: Options) {
    let options = Arc::new(options);
    let dataset = options.data.as_deref().map(|folder| Arc::new(crate::data::read(folder)));
    let mut devices = tokio::task::JoinSet::new();
    let numbers: Vec<u32> = (options.first..options.first + options.count).collect();
    for numbers in numbers.chunks(options.sharing.max(1) as usize) {
        let client = async_nats::ConnectOptions::new()
            .client_capacity(1024)
            .read_buffer_capacity(if options.count > 100 { 8192 } else { 65535 })
            .connect(options.nats.split(',').collect::<Vec<&str>>())
            .await
            .unwrap();
        for number in numbers {
            let device = Device {
                number: *number,
                options: options.clone(),
                hello: Arc::new(hello(*number, &options, dataset.as_deref())),
                dataset: dataset.clone(),
                blobs: Blobs::new(client.clone()),
                client: client.clone(),
                held: Arc::default(),
                masker: Arc::default(),
                next: Arc::default(),
            };
            devices.spawn(device.live());
        }
    }
    devices.join_all().await;
}

fn hello(number: u32, options: &Options, dataset: Option<&Dataset>) -> Hello {
    let facts = dataset.map(|dataset| attacker::facts(&options.dataset, dataset));
    Hello {
        device: format!("device-{number:05}").parse().unwrap(),
        instance: format!("{number}-{}", std::process::id()),
        started_at: Millis(1),
        heartbeat_ms: Millis(options.heartbeat_ms),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        groups: Vec::new(),
        labels: BTreeMap::new(),
        datasets: vec![facts.unwrap_or_else(|| blank(options))],
        engines: vec!["native".to_owned()],
        engine_facts: Vec::new(),
        facts: Facts::default(),
        slots: 1,
        masks: options.masks,
        masks_within: false,
    }
}

/// A data set of which there is nothing but the name.
fn blank(options: &Options) -> DatasetFacts {
    DatasetFacts {
        name: options.dataset.parse().unwrap(),
        format: "idx".to_owned(),
        shape: vec![1, options.side, options.side],
        classes: 8,
        train_examples: BLANK_EXAMPLES,
        test_examples: BLANK_EXAMPLES,
        train_class_counts: Vec::new(),
        columns: Vec::new(),
        labels: Vec::new(),
        mean: Vec::new(),
        std: Vec::new(),
        channel_mean: Vec::new(),
        channel_std: Vec::new(),
    }
}

impl Device {
    async fn live(self) {
        let id = &self.hello.device;
        let subjects = [
            subject::offer(id),
            subject::held(id),
            subject::command_all("hello"),
            subject::command(id, "hello"),
        ];
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
        if message.subject.starts_with("held.") {
            return self.give(&message).await;
        }
        if !message.subject.starts_with("offer.") {
            return self.say(FleetTopic::Hello, wire::encode(&*self.hello)).await;
        }
        let headers = message.headers.as_ref();
        let length = headers.and_then(|headers| headers.get(wire::JSON_LENGTH_HEADER));
        let length = length.map(|length| length.as_str().parse().unwrap());
        let offer = wire::decode_with_binary(&message.payload, length).unwrap();
        let (Offer::Task(task), question) = offer else { return };
        let delay = Duration::from_millis(self.options.delay_ms);
        let body = match &task.work {
            _ if self.options.fails => {
                ReportBody::Failed(Failure::new(FailureCode::Internal, "this device always fails"))
            }
            TaskWork::Train(work) => {
                self.report(&task, ReportBody::Accepted, "accepted").await;
                tokio::time::sleep(delay).await;
                reported(self.update(&task.id, work).await)
            }
            TaskWork::TrainMasked(work) => {
                tokio::time::sleep(delay).await;
                reported(self.masked(&task.id, work).await)
            }
            TaskWork::Exchange => {
                tokio::time::sleep(delay).await;
                self.exchanged(&task.id, &question).await
            }
            TaskWork::Evaluate(_) if self.dataset.is_some() => {
                let (code, message) = (FailureCode::InvalidDataset, "there are no test examples");
                ReportBody::Declined(Failure::new(code, message))
            }
            TaskWork::Evaluate(_) => {
                tokio::time::sleep(delay).await;
                let (loss, accuracy, duration_ms) = (0.5, 0.5, Millis(1));
                let evaluation = EvaluationReport { examples: 8, loss, accuracy, duration_ms };
                ReportBody::Evaluated(evaluation)
            }
            TaskWork::Infer(_) | TaskWork::Telemetry => return,
        };
        self.report(&task, body, "last").await;
    }

    /// Gets the parameters and sends them back, as an agent does in no epoch of training.
    async fn update(&self, id: &TaskId, work: &TrainTask) -> Result<UpdateReport, BlobError> {
        let received = &work.parameters;
        let encoded = work.encoded.as_ref().filter(|_| self.options.moves);
        let mut bytes = self.fetched(encoded.unwrap_or(received)).await?;
        if let Some(object) = &work.next {
            let listening = self.blobs.listen(object, received.size, Vec::new()).await?;
            *self.next.lock().unwrap() = Some(listening);
        }
        if encoded.is_some() {
            bytes = decode_parameters(&bytes).unwrap().into();
        }
        self.record(id, &bytes);
        let given = bytes.clone();
        let name = self.update_name(id);
        let update = if let (Some(factor), Some(dataset)) = (self.options.flips, &self.dataset) {
            let (graph, dataset) = (self.blobs.get(&work.graph).await?, dataset.clone());
            let work = work.clone();
            let train = move || attacker::flipped(&dataset, &graph, &bytes, &work, factor);
            tokio::task::spawn_blocking(train).await.unwrap().into()
        } else if self.options.moves {
            let (work, seed) = (work.clone(), self.number.into());
            let move_all = move || mover::moved(&bytes, &work, seed);
            tokio::task::spawn_blocking(move_all).await.unwrap().into()
        } else if self.options.adds {
            added(&bytes, self.number).into()
        } else {
            bytes
        };
        // What is sent back as it came is not digested again.
        let digest = (encoded.is_none() && update == given).then(|| received.digest.clone());
        let digest = digest.unwrap_or_else(|| link::digest::of(&update));
        let crc32 = work.hold.then(|| link::digest::crc32(&update));
        let size = Size(update.len() as u64);
        let parameters = BlobRef { name: Some(name), ..BlobRef::by_digest(digest, size) };
        if work.hold {
            *self.held.lock().unwrap() = Some((parameters.object_name().to_owned(), update));
        } else {
            self.blobs.put_as(&parameters, update, Existing::Replace).await?;
        }
        Ok(UpdateReport { held: work.hold, crc32, ..self.trained(parameters) })
    }

    /// What a device says of a training in which nothing is learnt.
    fn trained(&self, parameters: BlobRef) -> UpdateReport {
        let dataset = self.dataset.as_ref();
        UpdateReport {
            parameters,
            examples: dataset.map_or(BLANK_EXAMPLES, |dataset| dataset.train.len() as u64),
            loss: 0.0,
            accuracy: 0.0,
            steps: 0,
            duration_ms: Millis(1),
            engine: "native".to_owned(),
            initial_loss: None,
            control_change: None,
            held: false,
            crc32: None,
            control_anew: false,
        }
    }

    fn update_name(&self, TaskId { job, round, attempt, .. }: &TaskId) -> String {
        format!("update/{job}/{round}/{}/{attempt}", self.hello.device)
    }

    fn record(&self, id: &TaskId, parameters: &[u8]) {
        if let Some(folder) = &self.options.record
            && self.number == self.options.first
        {
            std::fs::write(folder.join(id.round.to_string()), parameters).unwrap();
        }
    }

    /// Sends keys in an update's place; the same ones in all attempts of a round.
    async fn masked(&self, id: &TaskId, work: &MaskedTrainTask) -> Result<UpdateReport, BlobError> {
        let bytes = self.blobs.get(&work.train.parameters).await?;
        self.record(id, &bytes);
        let keys = {
            let mut masker = self.masker.lock().unwrap();
            let known = masker.take().filter(|known| known.is_of(id));
            let made = known.unwrap_or_else(|| {
                let what = (self.number, BLANK_EXAMPLES);
                Masker::new((id.job.clone(), id.round), &bytes, what, work.levels)
            });
            masker.insert(made).keys()
        };
        let parameters = self.blobs.put_named(self.update_name(id), keys.into()).await?;
        Ok(self.trained(parameters))
    }

    /// Answers at a stage, if it knows what it said before.
    async fn exchanged(&self, id: &TaskId, question: &[u8]) -> ReportBody {
        let answer = {
            let mut masker = self.masker.lock().unwrap();
            let known = masker.as_mut().filter(|known| known.is_of(id));
            let known = known.ok_or_else(|| "this device has forgotten the round".to_owned());
            known.and_then(|known| known.answer(id.purpose, question))
        };
        match answer {
            Ok(answer) => {
                let TaskId { job, round, purpose, attempt } = id;
                let (purpose, device) = (purpose.as_str(), &self.hello.device);
                let name = format!("exchange/{job}/{round}/{purpose}/{device}/{attempt}");
                match self.blobs.put_named(name, answer.into()).await {
                    Ok(message) => ReportBody::Exchanged(ExchangeReport { message }),
                    Err(error) => failed(&error),
                }
            }
            Err(reason) => ReportBody::Failed(Failure::new(FailureCode::InvalidInput, reason)),
        }
    }

    async fn fetched(&self, blob: &BlobRef) -> Result<Bytes, BlobError> {
        let next = self.next.lock().unwrap().take();
        if let Some(listening) = next
            && let Some(heard) = listening.blob(blob).await
        {
            return Ok(heard.bytes);
        }
        self.blobs.get(blob).await
    }

    /// Gives the part of the held update that is asked for.
    async fn give(&self, message: &Message) {
        let request: HeldRequest = wire::decode(&message.payload).unwrap();
        let reply = message.reply.as_ref().unwrap();
        let held = self.held.lock().unwrap().clone();
        let held = held.filter(|(name, _)| *name == request.name);
        let [from, bytes] =
            [request.from, request.bytes.0].map(|number| usize::try_from(number).unwrap());
        match held {
            Some((_, update)) => {
                self.blobs.give(reply, request.from, update.slice(from..from + bytes)).await
            }
            None => self.blobs.refuse(reply, "there is no such update").await,
        }
        .unwrap();
    }

    /// Until it is stored: NATS may be away.
    async fn report(&self, task: &Task, body: ReportBody, kind: &str) {
        let device = self.hello.device.clone();
        let subject = subject::report(&task.id.job, &device);
        let id = format!("{}-{device}-{kind}", task.id);
        let report = TaskReport { task: task.id.clone(), device, body };
        let context = async_nats::jetstream::new(self.client.clone());
        let payload = wire::encode(&report);
        let (mut rest, headers) = (Duration::from_millis(100), HeaderMap::new());
        while link::publish::store(&context, &subject, &id, headers.clone(), payload.clone())
            .await
            .is_err()
        {
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(Duration::from_secs(2));
        }
    }
}

fn reported(update: Result<UpdateReport, BlobError>) -> ReportBody {
    update.map_or_else(|error| failed(&error), ReportBody::Trained)
}

fn failed(error: &BlobError) -> ReportBody {
    ReportBody::Failed(Failure::new(error.code(), error.to_string()))
}

/// Parameters, as safetensors, with a number added to every value.
pub fn added(parameters: &[u8], number: u32) -> Vec<u8> {
    let number = f32::from(u16::try_from(number).unwrap());
    let mut bytes = parameters.to_vec();
    let (length, _) = parameters.split_first_chunk().unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(*length)).unwrap();
    for value in bytes[header..].as_chunks_mut().0 {
        *value = (f32::from_le_bytes(*value) + number).to_le_bytes();
    }
    bytes
}
