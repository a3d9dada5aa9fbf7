//! The updates of a training's rounds: read from the object store, checked and averaged on a
//! thread of their own.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, DeviceId, JobId, ObjectId};
use jobs::report::{Failure, FailureCode, UpdateReport};
use jobs::round::{self, Aggregate};
use jobs::spec::{LocalTraining, PrivacyMode, Strategy, TrainSpec};
use link::blobs::{BlobError, Blobs, Pieces};
use models::federated::encoding::EncodingError;
use models::federated::privacy::PrivacyError;
use models::federated::server::ServerError;
use models::federated::statistics::Statistics;
use models::params::ParametersError;
use secagg::QuantisationError;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use self::rules::RuleError;
use self::values::Values;
use super::fold::content::{ContentError, Expected};
use super::fold::{Fold, Part};
use super::masking::MaskingError;
use super::prepare::Model;
use super::state::is_of;
use crate::free_pages;

mod encode;
mod how;
mod masked;
pub(super) mod private;
mod reading;
pub(super) mod rules;
pub(super) mod server;
mod values;

pub(super) use self::encode::encode;
pub(super) use self::how::How;

/// Work that may wait for the thread.
const WORK_WAITING: usize = 8;
/// Updates that are read at the same time.
const READ_AT_ONCE: usize = 2;
/// Bytes of early updates that may wait in memory; larger ones wait in the store.
const ROOM_BYTES: usize = 32 * 1024 * 1024;
/// Bytes by which an update's header may be longer than the broker's own.
const HEADER_SLACK: u64 = 64 * 1024;
/// How often the updates of a round are read again while a device that holds one does not give it.
const AGAIN_MAX: u32 = 3;

type Work = Box<dyn FnOnce(&mut Fold) + Send>;

/// The updates of one training; cheap to clone. The thread ends with the last of the clones.
#[derive(Debug, Clone)]
pub(super) struct Updates {
    blobs: Blobs,
    strategy: Strategy,
    /// What devices were told to do.
    local: Arc<LocalTraining>,
    byte_len: u64,
    /// Whether updates may be differences from the round's parameters.
    differences: bool,
    /// Values of the model.
    length: u64,
    /// Which of them no step moves.
    statistics: Arc<Statistics>,
    work: mpsc::Sender<Work>,
    reading: Arc<Semaphore>,
    /// Told when the turn of another update may have come.
    turn: Arc<Notify>,
    tickets: Arc<AtomicU64>,
    /// How long an update waits for the turn of others, beside what reading it takes.
    patience: Duration,
    /// Whether all updates weigh the same, however many examples made them.
    equal: bool,
    /// Whether updates are added up while they are read, so that once is enough.
    adds: bool,
    /// Who held an update that could not be read.
    to_store: Arc<Mutex<BTreeSet<DeviceId>>>,
    /// Where the next mean is going to be uploaded.
    next: Arc<Mutex<Option<ObjectId>>>,
}

impl Updates {
    /// Starts the thread for a model.
    pub(super) fn start(blobs: Blobs, model: Model, spec: &TrainSpec) -> std::io::Result<Self> {
        let Model { layout: model, statistics } = model;
        let statistics = Arc::new(statistics);
        let noised = spec.privacy.is_some_and(|privacy| privacy.mode == PrivacyMode::Central);
        let adds = rules::rule(spec).is_none() && !noised;
        let (byte_len, length) = (model.byte_len() as u64, model.total_len() as u64);
        free_pages::suit(byte_len);
        let room = ROOM_BYTES / size_of::<f32>();
        let (work, mut inbox) = mpsc::channel::<Work>(WORK_WAITING);
        let measured = statistics.clone();
        std::thread::Builder::new().name("aggregate".to_owned()).spawn(move || {
            let fold = if adds { Fold::new(model, room) } else { Fold::without_mean(model) };
            let mut fold = fold.with_statistics(measured);
            while let Some(work) = inbox.blocking_recv() {
                // Who asked for it finds no answer; the next round is to find the thread.
                if catch_unwind(AssertUnwindSafe(|| work(&mut fold))).is_err() {
                    fold.rest();
                }
            }
        })?;
        Ok(Self {
            blobs,
            strategy: spec.strategy,
            local: Arc::new(spec.local.clone()),
            byte_len,
            differences: spec.update.is_difference(),
            length,
            statistics,
            work,
            reading: Arc::new(Semaphore::new(READ_AT_ONCE)),
            turn: Arc::default(),
            tickets: Arc::default(),
            patience: reading::PATIENCE,
            equal: spec.privacy.is_some(),
            adds,
            to_store: Arc::default(),
            next: Arc::default(),
        })
    }

    /// Whether a device may hold its updates until they are read.
    pub(super) fn may_be_held(&self, device: &DeviceId) -> bool {
        self.adds && !self.to_store().contains(device)
    }

    /// Where the next mean is going to be uploaded, if that is what devices get.
    pub(super) fn next_mean(&self) -> Option<ObjectId> {
        let is_mean = self.adds && server::optimizer(&self.strategy).is_none();
        is_mean.then(|| self.next().get_or_insert_with(|| self.blobs.new_object()).clone())
    }

    fn next(&self) -> MutexGuard<'_, Option<ObjectId>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_store(&self) -> MutexGuard<'_, BTreeSet<DeviceId>> {
        self.to_store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a round of these devices, which train from `base`.
    pub(super) async fn begin(&self, devices: Vec<DeviceId>, base: &BlobRef) {
        let base = self.differences.then(|| base.digest.clone());
        self.tell(move |fold| fold.begin(devices, base)).await;
        self.turn.notify_waiters();
    }

    /// Looks into an update: why it cannot be used, if it cannot.
    pub(super) async fn check(
        &self,
        job: &JobId,
        device: &DeviceId,
        update: &UpdateReport,
        base: Option<&round::Base>,
    ) -> Option<Failure> {
        let invalid = |text: String| Some(Failure::new(FailureCode::InvalidUpdate, text));
        let part = Part { base: base.cloned(), ..self.part(device, update) };
        if part.examples == 0 {
            return invalid(format!("device {device} sent an update of no examples"));
        }
        if let Some(wrong) = self.strategy.refuses(&self.local, update) {
            return invalid(format!("the update of device {device}: {wrong}"));
        }
        if part.held && !self.adds {
            return invalid(format!("device {device} holds its update, which was to be stored"));
        }
        for blob in [Some(&part.parameters), part.control_change.as_ref()].into_iter().flatten() {
            if blob.name.is_some() && !is_of(job, blob) {
                let name = blob.object_name();
                return invalid(format!(
                    "device {device} names blob {name:?}, which is not of this job"
                ));
            }
            let size = blob.size.0;
            if size > self.byte_len + HEADER_SLACK {
                let model = self.byte_len;
                return invalid(format!("device {device}: {size} bytes, the model has {model}"));
            }
        }
        let mut read = self.read(&part).await;
        if let (Ok(()), Some(change)) = (&read, &part.control_change) {
            let Ok(_permit) = self.reading.acquire().await else { return None };
            read = self.check_change(change).await;
        }
        match read {
            Ok(()) => None,
            Err(ReadError::Blob(error)) => {
                if part.held {
                    self.to_store().insert(device.clone());
                }
                let text = format!("the update of device {device}: {error}");
                Some(Failure::new(FailureCode::BlobUnavailable, text))
            }
            Err(ReadError::Content(error)) => {
                invalid(format!("the update of device {device}: {error}"))
            }
            Err(ReadError::Parameters(error)) => {
                invalid(format!("the update of device {device}: {error}"))
            }
            Err(ReadError::Masking(error)) => Some(error.failure()),
            Err(ReadError::Cut) => {
                invalid(format!("device {device}: the change of its control variate is cut"))
            }
            Err(
                ReadError::Thread
                | ReadError::Gone { .. }
                | ReadError::Step(_)
                | ReadError::Rule(_)
                | ReadError::Privacy(_)
                | ReadError::Encoding(_)
                | ReadError::Unmask(_),
            ) => Some(thread_failure()),
        }
    }

    /// New parameters of these updates, in their order, in the object store under the first name:
    /// their mean, or what a server optimizer makes of it. What that keeps is under the second.
    pub(super) async fn aggregate(
        &self,
        names: (String, String),
        updates: &[(DeviceId, UpdateReport)],
        stale: &[(DeviceId, round::Base)],
        how: How,
    ) -> Result<Aggregate, Unmade> {
        let base = |device: &DeviceId| {
            stale.iter().find(|(it, _)| it == device).map(|(_, base)| base.clone())
        };
        let part = |(device, update): &(DeviceId, UpdateReport)| Part {
            base: base(device),
            ..self.part(device, update)
        };
        let parts: Arc<[Part]> = updates.iter().map(part).collect();
        self.combine(names, &parts, how).await.map_err(|error| Unmade::of(&error))
    }

    /// Lets go of all memory until the next round, which has it back then.
    pub(super) async fn rest(&self) {
        let let_go = |fold: &mut Fold| {
            fold.rest();
            free_pages::give_back();
        };
        // Without its thread there is nothing to let go of.
        let _ = self.ask(let_go).await;
    }

    async fn combine(
        &self,
        names: (String, String),
        parts: &Arc<[Part]>,
        how: How,
    ) -> Result<Aggregate, ReadError> {
        if let How::Private(private) = &how {
            return self.private(names, parts, private).await;
        }
        if let How::Rule(start) = how {
            return self.combine_by(names, parts, &start).await;
        }
        let base = how.base().clone();
        let digest = self.differences.then(|| base.digest.clone());
        self.tell(move |fold| fold.expect_from(digest)).await;
        let mut failures = 0;
        loop {
            let known = parts.clone();
            let Some(missing) = self.ask(move |fold| fold.add_known(&known)).await? else { break };
            let part = &parts[missing];
            let Err(error) = self.add_again(part.clone()).await else { continue };
            self.tell(Fold::spoil).await;
            failures += 1;
            let ReadError::Blob(error) = error else { return Err(error) };
            if !part.held {
                return Err(error.into());
            }
            // Its device may come back.
            if failures >= AGAIN_MAX {
                return Err(ReadError::Gone { device: part.device.clone(), error });
            }
        }
        self.hand_out(names, &how).await
    }

    /// Stores what a strategy makes of the mean that is there.
    async fn hand_out(&self, names: (String, String), how: &How) -> Result<Aggregate, ReadError> {
        let size = Size(self.ask(Fold::seal).await?);
        let step = match how {
            How::Step(base) => Some(base),
            How::Private(private) => private.optimizer(),
            How::Mean(_) | How::Rule(_) => None,
        };
        if let Some(base) = step {
            let (parameters, server_state) = Box::pin(self.step(names, None, base)).await?;
            return Ok(Aggregate { server_state, ..Aggregate::of(parameters) });
        }
        let mean = Mean::begin(self, how.base()).await?;
        let object = self.next().take().unwrap_or_else(|| self.blobs.new_object());
        Ok(Aggregate::of(self.blobs.put_pieces_at(&object, names.0, size, mean).await?))
    }

    async fn add_again(&self, part: Part) -> Result<(), ReadError> {
        let mut reader = self.reader(&part).await?;
        self.tell(Fold::open_again).await;
        while let Some(piece) = reader.next().await? {
            let part = part.clone();
            self.ask(move |fold| fold.add_piece(&part, &piece)).await??;
        }
        Ok(self.ask(move |fold| fold.close_again(&part)).await??)
    }

    fn part(&self, device: &DeviceId, update: &UpdateReport) -> Part {
        let part = Part::of(device, update);
        // None are refused.
        let examples = if self.equal { part.examples.min(1) } else { part.examples };
        Part { examples, ..part }
    }

    async fn tell(&self, work: impl FnOnce(&mut Fold) + Send + 'static) {
        // A thread that ended shows in the next question.
        let _ = self.work.send(Box::new(work)).await;
    }

    async fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Fold) -> R + Send + 'static,
    ) -> Result<R, ReadError> {
        let (answer, answered) = oneshot::channel();
        self.tell(move |fold| {
            // Nobody waits for the answer any more when the training was stopped.
            let _ = answer.send(work(fold));
        })
        .await;
        answered.await.map_err(|_| ReadError::Thread)
    }
}

/// The sealed mean, piece by piece.
struct Mean<'a> {
    updates: &'a Updates,
    /// The parameters that differences are from, if there are any, and the model.
    base: Option<(Values, Expected)>,
}

impl<'a> Mean<'a> {
    async fn begin(updates: &'a Updates, base: &BlobRef) -> Result<Self, ReadError> {
        let (needed, model) =
            updates.ask(|fold| (fold.has_differences(), fold.model().clone())).await?;
        let base = if needed {
            let values = Values::of_parameters(&updates.blobs, base).await?;
            Some((values, Expected::parameters(model)))
        } else {
            None
        };
        Ok(Self { updates, base })
    }
}

impl Pieces for Mean<'_> {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        let Some((values, model)) = &mut self.base else {
            return Ok(self.updates.ask(move |fold| fold.next_piece(max, None)).await??.into());
        };
        let length = self.updates.ask(move |fold| fold.next_length(max)).await?;
        let base = values.next(length, model).await?;
        let piece = self.updates.ask(move |fold| fold.next_piece(max, Some(&base))).await??;
        if piece.is_empty() {
            values.end().await?;
        }
        Ok(piece.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Step(#[from] ServerError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(transparent)]
    Privacy(#[from] PrivacyError),
    #[error(transparent)]
    Masking(#[from] MaskingError),
    #[error("the sum of the weights is not one of so many devices: {0}")]
    Unmask(#[from] QuantisationError),
    #[error(
        "the parameters, or what the server optimizer keeps, have another length than the model"
    )]
    Cut,
    #[error("parameters cannot be encoded: {0}")]
    Encoding(#[from] EncodingError),
    #[error("the update of device {device}: {error}")]
    Gone { device: DeviceId, error: BlobError },
    #[error("the thread that averages ended")]
    Thread,
}

/// Why there are no new parameters.
#[derive(Debug)]
pub(super) struct Unmade {
    pub(super) failure: Failure,
    /// Whose update is gone, if there may be new parameters without it.
    pub(super) without: Option<DeviceId>,
}

impl Unmade {
    fn of(error: &ReadError) -> Self {
        let without =
            if let ReadError::Gone { device, .. } = error { Some(device.clone()) } else { None };
        Self { failure: error.failure(), without }
    }
}

impl From<Failure> for Unmade {
    fn from(failure: Failure) -> Self {
        Self { failure, without: None }
    }
}

impl ReadError {
    /// Why there are no new parameters.
    fn failure(&self) -> Failure {
        match self {
            Self::Blob(error) | Self::Gone { error, .. } => {
                Failure::new(error.code(), self.to_string())
            }
            Self::Cut => Failure::new(FailureCode::BlobUnavailable, self.to_string()),
            Self::Parameters(error) => {
                Failure::new(FailureCode::Diverged, format!("the mean of the updates: {error}"))
            }
            Self::Content(error) => {
                Failure::new(FailureCode::Diverged, format!("an update, or parameters: {error}"))
            }
            Self::Encoding(_) => Failure::new(FailureCode::Diverged, self.to_string()),
            Self::Step(error) => {
                Failure::new(FailureCode::Diverged, format!("the server's step: {error}"))
            }
            Self::Thread | Self::Rule(RuleError::Fault) => thread_failure(),
            Self::Rule(_) | Self::Privacy(_) => {
                Failure::new(FailureCode::Diverged, self.to_string())
            }
            Self::Masking(error) => error.failure(),
            Self::Unmask(_) => Failure::new(FailureCode::InvalidUpdate, self.to_string()),
        }
    }
}

fn thread_failure() -> Failure {
    let text = "the thread that averages met a fault of the program: see the broker's log";
    Failure::new(FailureCode::Internal, text)
}
