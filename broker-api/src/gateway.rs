//! Work that is placed on one device: offered, watched, and placed again while that may help.
//!
//! Serves requests that wait for their answer, and durable jobs that a broker drives. What
//! follows from what is decided by [`jobs::job::Job`]; this is its shell.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::header::HeaderMap;
use bytes::Bytes;
use futures::future::BoxFuture;
use jobs::engine::EnginePolicy;
use jobs::id::{Attempt, DeviceId, JobId, Millis, ModelRef, RoundNumber};
use jobs::job::{Effect, Event, Job, JobState};
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport};
use jobs::selector::Selector;
use jobs::spec::{
    InferInput, InferSpec, InferTask, JobSpec, Offer, Purpose, Task, TaskId, TaskWork, WorkSpec,
};
use jobs::{subject, wire};
use link::publish::SendError;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::Answer;
use crate::broker::Signal;
use crate::broker::registry::Registry;
use crate::broker::work::asked_to_stop;
use crate::error::{ApiCode, ApiError};
use crate::fleet::placement::Wanted;
use crate::fleet::{Fleet, Placed, Slot};
use crate::metrics::{Counter, Metrics};
use crate::request;
use crate::store::Store;

pub mod front;
pub mod inbox;
pub mod input;
pub mod micro;
pub mod telemetry;
mod unplaced;

use inbox::{Inbox, Mailbox, Reply};
use input::Binary;
use unplaced::nobody;

/// Requests that are answered at the same time; more are refused.
const REQUESTS_MAX: usize = 4096;

/// Places work on devices; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    store: Store,
    fleet: Fleet,
    inbox: Inbox,
    registry: Registry,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    measuring: Arc<Semaphore>,
}

/// A piece of work for one device, and who waits for it.
#[derive(Debug)]
pub(crate) struct Errand {
    /// Names the task.
    pub(crate) id: JobId,
    /// What, for whom, until when.
    pub(crate) spec: JobSpec,
    /// Since the Unix epoch.
    pub(crate) accepted_at: Millis,
    /// The model, exactly.
    pub(crate) model: ModelRef,
    /// The input as the model declares it.
    pub(crate) input: InferInput,
    /// Classes to name.
    pub(crate) top: u32,
    /// Engines that may answer.
    pub(crate) engine: EnginePolicy,
    /// Engines of which a device has to have one.
    pub(crate) placed_by: EnginePolicy,
    /// The input's bytes.
    pub(crate) binary: Binary,
    /// The inbox of a NATS client that waits.
    pub(crate) answer_to: Option<String>,
    /// Whether to wait for a device when none that matches is online.
    pub(crate) patient: bool,
}

/// Called before each offer.
pub(crate) type Placing<'a> = &'a mut (dyn FnMut(DeviceId) -> BoxFuture<'static, ()> + Send);

/// How an errand ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) state: JobState,
    pub(crate) report: Option<Box<TaskReport>>,
    pub(crate) outputs: Bytes,
    pub(crate) failure: Option<Failure>,
}

/// An offer that was made and is not answered.
struct Attempting {
    device: DeviceId,
    sent: Instant,
    _slot: Option<Slot>,
}

/// The shell around one [`Job`].
struct Driver<'a> {
    gateway: &'a Gateway,
    errand: &'a Errand,
    job: Job,
    effects: VecDeque<Effect>,
    attempting: Option<Attempting>,
    /// Open from the first offer on: the answer to an attempt that was given up counts too.
    mailbox: Option<Mailbox>,
    chosen: Option<(DeviceId, Slot)>,
    /// Set while a device is looked for and none is free.
    looking: Option<Vec<DeviceId>>,
    outputs: Bytes,
}

impl Gateway {
    /// Subscribes to the answers of devices.
    ///
    /// # Errors
    /// When NATS does not take the subscription.
    pub async fn start(
        store: Store,
        fleet: Fleet,
        registry: Registry,
        metrics: Arc<Metrics>,
        token: CancellationToken,
    ) -> anyhow::Result<Self> {
        let inbox = Inbox::start(store.client(), &fleet, token).await?;
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        let measuring = Arc::new(Semaphore::new(telemetry::MEASURED_AT_ONCE));
        Ok(Self { store, fleet, inbox, registry, metrics, permits, measuring })
    }

    /// Answers a request now, or says why not. With `answer_to`, the device sends the whole
    /// answer there, and what comes back here has no outputs.
    ///
    /// # Errors
    /// [`ApiCode::UnknownModel`], [`ApiCode::InvalidSpec`], [`ApiCode::Overloaded`], or why no
    /// device answered.
    pub async fn infer(
        &self,
        spec: InferSpec,
        binary: Bytes,
        selector: Selector,
        deadline: Millis,
        answer_to: Option<String>,
    ) -> Result<Answer, ApiError> {
        let began = Instant::now();
        let _permit = self.permits.try_acquire().map_err(|_| overloaded())?;
        let counted = self.metrics.in_flight.count();
        let answer = self.answer(spec, binary, selector, deadline, answer_to).await;
        drop(counted);
        match &answer {
            Ok(answer) => {
                let engine = Duration::from_micros(answer.report.engine_us);
                self.metrics.infer_engine.observe(engine);
                self.metrics.infer_overhead.observe(began.elapsed().saturating_sub(engine));
            }
            Err(error) => {
                let labels = format!("code=\"{}\"", error.code.as_str());
                self.metrics.add(Counter::RequestErrors, labels, 1);
            }
        }
        answer
    }

    async fn answer(
        &self,
        spec: InferSpec,
        binary: Bytes,
        selector: Selector,
        deadline: Millis,
        answer_to: Option<String>,
    ) -> Result<Answer, ApiError> {
        let spec = JobSpec { selector, deadline_ms: deadline, work: WorkSpec::Infer(spec) };
        let id = crate::broker::new_job_id();
        let mut errand = self.errand(id, spec, self.fleet.now(), Binary::Here(binary)).await?;
        errand.answer_to = answer_to;
        let ending = self.run(&errand, None, None).await?;
        match (ending.report, ending.failure) {
            (Some(report), _) => {
                let device = report.device;
                let ReportBody::Inferred(report) = report.body else {
                    return Err(internal(format!("{device} answered {:?}", report.body)));
                };
                Ok(Answer { device, report, outputs: ending.outputs })
            }
            (None, Some(failure)) => Err(failure.into()),
            (None, None) => Err(internal("the request ended without an answer".to_owned())),
        }
    }

    /// Looks the model up and fits the input to it.
    pub(crate) async fn errand(
        &self,
        id: JobId,
        spec: JobSpec,
        accepted_at: Millis,
        binary: Binary,
    ) -> Result<Errand, ApiError> {
        let WorkSpec::Infer(infer) = &spec.work else {
            return Err(internal(format!("{:?} is placed like a request", spec.work.kind())));
        };
        let model = self.registry.find(&infer.model).await?;
        let input = request::fit(infer.input.clone(), &model.config)?;
        let placed_by = request::placed_by(&infer.engine, model.engine.as_deref())?;
        let (model, top, engine) = (model.reference.clone(), infer.top, infer.engine.clone());
        Ok(Errand {
            id,
            spec,
            accepted_at,
            model,
            input,
            top,
            engine,
            placed_by,
            binary,
            answer_to: None,
            patient: false,
        })
    }

    /// Drives an errand to its end; `placed` is told of each device it is offered to.
    pub(crate) async fn run(
        &self,
        errand: &Errand,
        mut cancel: Option<watch::Receiver<Signal>>,
        mut placed: Option<Placing<'_>>,
    ) -> Result<Ending, ApiError> {
        let (job, effects) =
            Job::accept(errand.accepted_at, errand.id.clone(), errand.spec.clone());
        let mut driver = Driver {
            gateway: self,
            errand,
            job,
            effects: effects.into(),
            attempting: None,
            mailbox: None,
            chosen: None,
            looking: None,
            outputs: Bytes::new(),
        };
        let mut chances = self.fleet.chances();
        loop {
            while let Some(effect) = driver.effects.pop_front() {
                if let (Effect::Offer { device, .. }, Some(placed)) = (&effect, &mut placed) {
                    placed(device.clone()).await;
                }
                if let Some(ending) = driver.perform(effect).await? {
                    return Ok(ending);
                }
            }
            driver.wait(&mut chances, &mut cancel).await?;
        }
    }
}

impl Driver<'_> {
    fn step(&mut self, event: &Event) {
        let effects = self.job.step(self.gateway.fleet.now(), event);
        self.effects.extend(effects);
    }

    async fn perform(&mut self, effect: Effect) -> Result<Option<Ending>, ApiError> {
        match effect {
            Effect::FindDevice { avoid } => self.find(avoid)?,
            Effect::Offer { device, attempt, timeout_ms } => {
                self.offer(device, attempt, timeout_ms).await?;
            }
            Effect::Withdraw { device, attempt, reason } => {
                self.attempting = None;
                let offer = Offer::Cancel { task: self.task_id(attempt), reason, refused: false };
                let subject = subject::offer(&device);
                let client = self.gateway.store.client();
                if let Err(error) = client.publish(subject, wire::encode(&offer)).await {
                    tracing::debug!(%device, %error, "an offer was not withdrawn");
                }
            }
            Effect::BeginTraining | Effect::CancelTraining => {
                return Err(internal("a training is driven like a request".to_owned()));
            }
            Effect::End { state, report, failure } => {
                let outputs = std::mem::take(&mut self.outputs);
                return Ok(Some(Ending { state, report, outputs, failure }));
            }
        }
        Ok(None)
    }

    /// Looks for a device. Who does not wait for one gets an error at once when there is none, and
    /// who waits where those that are there have said that they lack the engines.
    fn find(&mut self, avoid: Vec<DeviceId>) -> Result<(), ApiError> {
        let selector = &self.errand.spec.selector;
        let engine = Some(&self.errand.placed_by);
        let wanted = Wanted { selector, dataset: None, engine, avoid: &avoid };
        match self.gateway.fleet.place(&wanted, Some(&self.errand.model.digest)) {
            Placed::On(device, slot) => {
                self.looking = None;
                self.chosen = Some((device.clone(), slot));
                self.step(&Event::DeviceChosen { device: Some(device) });
                // A device that failed rests for a while before it is tried again.
                if !self.effects.iter().any(|effect| matches!(effect, Effect::Offer { .. })) {
                    self.chosen = None;
                }
            }
            Placed::Busy => {
                let message = "every device that matches has its hands full";
                self.look_again(avoid, FailureCode::Busy, message.to_owned());
            }
            Placed::Nobody => self.unplaced(avoid, nobody(selector), true)?,
            Placed::Lacking { devices, may_come } => {
                let error = unplaced::lacking(selector, &self.errand.placed_by, &devices);
                self.unplaced(avoid, error, may_come)?;
            }
        }
        Ok(())
    }

    async fn offer(
        &mut self,
        device: DeviceId,
        attempt: Attempt,
        timeout_ms: Millis,
    ) -> Result<(), ApiError> {
        let binary = self.gateway.input(&self.errand.binary).await?;
        let slot = self.chosen.take().filter(|(chosen, _)| *chosen == device).map(|(_, slot)| slot);
        let mailbox = match self.mailbox.take() {
            Some(mut mailbox) => {
                mailbox.moved(device.clone());
                mailbox
            }
            None => self.gateway.inbox.open(device.clone()),
        };
        let reply = mailbox.subject();
        self.mailbox = Some(mailbox);
        let errand = self.errand;
        let work = TaskWork::Infer(InferTask {
            model: errand.model.clone(),
            input: errand.input.clone(),
            top: errand.top,
            engine: errand.engine.clone(),
            answer_to: errand.answer_to.clone(),
        });
        let offer = Offer::Task(Box::new(Task { id: self.task_id(attempt), timeout_ms, work }));
        let client = self.gateway.store.client();
        send_offer(client, &device, &offer, &binary, reply).await?;
        self.attempting = Some(Attempting { device, sent: Instant::now(), _slot: slot });
        Ok(())
    }

    async fn wait(
        &mut self,
        chances: &mut watch::Receiver<u64>,
        cancel: &mut Option<watch::Receiver<Signal>>,
    ) -> Result<(), ApiError> {
        let now = self.gateway.fleet.now();
        let wake = self.job.wake_at().map(|at| Duration::from_millis(at.since(now).0));
        let answered = async {
            match &mut self.mailbox {
                Some(mailbox) => mailbox.next().await,
                None => std::future::pending().await,
            }
        };
        let looking = self.looking.is_some();
        tokio::select! {
            reply = answered => self.replied(reply),
            Ok(()) = chances.changed(), if looking => {
                if let Some(avoid) = self.looking.take() {
                    self.find(avoid)?;
                }
            }
            () = cancelled(cancel) => {
                *cancel = None;
                self.step(&Event::CancelRequested);
            }
            () = sleep(wake) => self.step(&Event::Tick),
        }
        Ok(())
    }

    fn replied(&mut self, reply: Reply) {
        match reply {
            Reply::Report(report, binary) => {
                let at_work = self
                    .attempting
                    .take_if(|at| at.device == report.device && report.body.is_final());
                if let ReportBody::Inferred(_) = &report.body {
                    if let Some(at_work) = at_work {
                        let (fleet, model) = (&self.gateway.fleet, &self.errand.model.digest);
                        fleet.measured(&report.device, model, at_work.sent.elapsed());
                    }
                    self.outputs = binary;
                }
                self.step(&Event::Reported(report));
            }
            Reply::NobodyListens => {
                if let Some(Attempting { device, .. }) = self.attempting.take() {
                    self.gateway.fleet.unreachable(&device);
                    self.step(&Event::DeviceLost { device });
                }
            }
            Reply::DeviceLost => {
                if let Some(Attempting { device, .. }) = self.attempting.take() {
                    self.step(&Event::DeviceLost { device });
                }
            }
        }
    }

    fn task_id(&self, attempt: Attempt) -> TaskId {
        task_id(&self.errand.id, Purpose::Infer, attempt)
    }
}

/// The name of a task outside of rounds.
pub(crate) fn task_id(job: &JobId, purpose: Purpose, attempt: Attempt) -> TaskId {
    TaskId { job: job.clone(), round: RoundNumber(0), purpose, attempt }
}

/// Makes an offer that is answered on `reply`.
pub(crate) async fn send_offer(
    client: &async_nats::Client,
    device: &DeviceId,
    offer: &Offer,
    binary: &Bytes,
    reply: String,
) -> Result<(), ApiError> {
    let message = wire::encode_with_binary(offer, binary);
    link::publish::check_size(client, message.payload.len()).map_err(|error| too_large(&error))?;
    let mut headers = HeaderMap::new();
    if let Some(length) = message.json_length {
        headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
    }
    let subject = subject::offer(device);
    client.publish_with_reply_and_headers(subject, reply, headers, message.payload).await.map_err(
        |error| {
            ApiError::new(
                ApiCode::Unavailable,
                format!("NATS does not answer: {error}"),
                "try again",
            )
        },
    )
}

async fn cancelled(cancel: &mut Option<watch::Receiver<Signal>>) {
    match cancel {
        Some(cancel) => asked_to_stop(cancel).await,
        None => std::future::pending().await,
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn too_large(error: &SendError) -> ApiError {
    ApiError::new(
        ApiCode::TooLarge,
        error.to_string(),
        "send a smaller batch or picture, or raise max_payload in the nats-server's configuration",
    )
}

fn overloaded() -> ApiError {
    ApiError::new(
        ApiCode::Overloaded,
        format!("{REQUESTS_MAX} requests are being answered already"),
        "try again in a moment",
    )
}

pub(crate) fn internal(detail: String) -> ApiError {
    ApiError::new(ApiCode::Internal, detail, "please report this")
}
