//! The updates of a training's rounds: read from the object store, checked and averaged on a
//! thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, DeviceId, JobId};
use jobs::report::{Failure, FailureCode, UpdateReport};
use jobs::round::Aggregate;
use jobs::spec::Strategy;
use jobs::training::Training;
use link::blobs::{BlobError, Blobs, Pieces};
use models::federated::server::ServerError;
use models::params::{Layout, ParametersError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::robust::{Rule, RuleError};
use self::server::Base;
use super::fold::{Fold, Part};
use super::state::is_of;

pub(super) mod robust;
pub(super) mod server;
mod values;

/// Pieces that may wait for the thread.
const PIECES_WAITING: usize = 16;
/// Updates that are read at the same time.
const READ_AT_ONCE: usize = 2;
/// Bytes of early updates that may wait in memory beyond one model.
const ROOM_BYTES: usize = 8 * 1024 * 1024;
/// Bytes by which an update's header may be longer than the broker's own.
const HEADER_SLACK: u64 = 64 * 1024;

/// How updates become new parameters.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// By their mean.
    Mean,
    /// By a server optimizer's step against it.
    Step(Base),
    /// By a rule that bears wrong ones, from these parameters on.
    Robust(Rule, BlobRef),
}

impl How {
    /// As a training's strategy says, in the round at work.
    pub(super) fn of(training: &Training) -> Self {
        let strategy = &training.spec().strategy;
        let parameters = training.parameters().clone();
        match (server::optimizer(strategy), robust::rule(strategy)) {
            (Some(optimizer), _) => {
                let state = training.server_state().cloned();
                Self::Step(Base { optimizer, parameters, state })
            }
            (None, Some(rule)) => Self::Robust(rule, parameters),
            (None, None) => Self::Mean,
        }
    }
}

type Work = Box<dyn FnOnce(&mut Fold) + Send>;

/// The updates of one training; cheap to clone. The thread ends with the last of the clones.
#[derive(Debug, Clone)]
pub(super) struct Updates {
    blobs: Blobs,
    byte_len: u64,
    work: mpsc::Sender<Work>,
    reading: Arc<Semaphore>,
    tickets: Arc<AtomicU64>,
}

impl Updates {
    /// Starts the thread for a model of this layout.
    pub(super) fn start(blobs: Blobs, model: Layout, strategy: &Strategy) -> std::io::Result<Self> {
        let adds = robust::rule(strategy).is_none();
        let byte_len = model.byte_len() as u64;
        let room = model.total_len() + ROOM_BYTES / size_of::<f32>();
        let (work, mut inbox) = mpsc::channel::<Work>(PIECES_WAITING);
        std::thread::Builder::new().name("aggregate".to_owned()).spawn(move || {
            let mut fold = if adds { Fold::new(model, room) } else { Fold::without_mean(model) };
            while let Some(work) = inbox.blocking_recv() {
                work(&mut fold);
            }
        })?;
        Ok(Self {
            blobs,
            byte_len,
            work,
            reading: Arc::new(Semaphore::new(READ_AT_ONCE)),
            tickets: Arc::default(),
        })
    }

    /// Begins a round of these devices.
    pub(super) async fn begin(&self, devices: Vec<DeviceId>) {
        self.tell(move |fold| fold.begin(devices)).await;
    }

    /// Looks into an update: why it cannot be used, if it cannot.
    pub(super) async fn check(
        &self,
        job: &JobId,
        device: &DeviceId,
        update: &UpdateReport,
    ) -> Option<Failure> {
        let invalid = |text: String| Some(Failure::new(FailureCode::InvalidUpdate, text));
        let part = part(device, update);
        if part.parameters.name.is_some() && !is_of(job, &part.parameters) {
            let name = part.parameters.object_name();
            return invalid(format!(
                "device {device} names blob {name:?}, which is not of this job"
            ));
        }
        if part.examples == 0 {
            return invalid(format!("device {device} sent an update of no examples"));
        }
        let size = part.parameters.size.0;
        if size > self.byte_len + HEADER_SLACK {
            let model = self.byte_len;
            return invalid(format!("device {device}: {size} bytes, the model has {model}"));
        }
        let Ok(_permit) = self.reading.acquire().await else { return None };
        match self.read(&part).await {
            Ok(()) => None,
            Err(ReadError::Blob(error)) => {
                let text = format!("the update of device {device}: {error}");
                Some(Failure::new(FailureCode::BlobUnavailable, text))
            }
            Err(ReadError::Parameters(error)) => {
                invalid(format!("the update of device {device}: {error}"))
            }
            Err(ReadError::Thread | ReadError::Step(_) | ReadError::Rule(_) | ReadError::Cut) => {
                Some(thread_failure())
            }
        }
    }

    async fn read(&self, part: &Part) -> Result<(), ReadError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let read = self.read_as(ticket, part).await;
        if read.is_err() {
            self.tell(move |fold| fold.forget(ticket)).await;
        }
        read
    }

    async fn read_as(&self, ticket: u64, part: &Part) -> Result<(), ReadError> {
        let mut reader = self.blobs.open(&part.parameters).await?;
        let part = part.clone();
        self.tell(move |fold| fold.open(ticket, part)).await;
        while let Some(piece) = reader.next().await? {
            self.tell(move |fold| fold.read(ticket, &piece)).await;
        }
        Ok(self.ask(move |fold| fold.close(ticket)).await??)
    }

    /// New parameters of these updates, in their order, in the object store under the first name:
    /// their mean, or what a server optimizer makes of it. What that keeps is under the second.
    pub(super) async fn aggregate(
        &self,
        names: (String, String),
        updates: &[(DeviceId, UpdateReport)],
        how: How,
    ) -> Result<Aggregate, Failure> {
        let parts: Arc<[Part]> =
            updates.iter().map(|(device, update)| part(device, update)).collect();
        self.combine(names, &parts, how).await.map_err(|error| match error {
            ReadError::Blob(error) => Failure::new(FailureCode::BlobUnavailable, error.to_string()),
            ReadError::Parameters(error) => {
                Failure::new(FailureCode::Diverged, format!("the mean of the updates: {error}"))
            }
            ReadError::Step(error) => {
                Failure::new(FailureCode::Diverged, format!("the server's step: {error}"))
            }
            ReadError::Thread | ReadError::Rule(RuleError::Fault) => thread_failure(),
            ReadError::Rule(error) => Failure::new(FailureCode::Diverged, error.to_string()),
            ReadError::Cut => Failure::new(FailureCode::BlobUnavailable, error.to_string()),
        })
    }

    /// Lets go of all memory until the next round.
    pub(super) async fn rest(&self) {
        self.tell(Fold::rest).await;
    }

    async fn combine(
        &self,
        names: (String, String),
        parts: &Arc<[Part]>,
        how: How,
    ) -> Result<Aggregate, ReadError> {
        if let How::Robust(rule, base) = how {
            let (parameters, influences) = self.robust(names.0, parts, rule, &base).await?;
            let devices = parts.iter().map(|part| part.device.clone());
            let influences = devices.zip(influences).collect();
            return Ok(Aggregate { influences, ..Aggregate::of(parameters) });
        }
        loop {
            let known = parts.clone();
            let Some(missing) = self.ask(move |fold| fold.add_known(&known)).await? else { break };
            if let Err(error) = self.add_again(parts[missing].clone()).await {
                self.tell(Fold::spoil).await;
                return Err(error);
            }
        }
        let size = Size(self.ask(Fold::seal).await?);
        if let How::Step(base) = how {
            let (parameters, server_state) = self.step(names, size, &base).await?;
            return Ok(Aggregate { server_state, ..Aggregate::of(parameters) });
        }
        Ok(Aggregate::of(self.blobs.put_pieces(names.0, size, Mean(self)).await?))
    }

    async fn add_again(&self, part: Part) -> Result<(), ReadError> {
        let mut reader = self.blobs.open(&part.parameters).await?;
        self.tell(Fold::open_again).await;
        while let Some(piece) = reader.next().await? {
            let part = part.clone();
            self.ask(move |fold| fold.add_piece(&part, &piece)).await??;
        }
        Ok(self.ask(move |fold| fold.close_again(&part)).await??)
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
struct Mean<'a>(&'a Updates);

impl Pieces for Mean<'_> {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        Ok(self.0.ask(move |fold| fold.next_piece(max)).await??.into())
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    #[error(transparent)]
    Step(#[from] ServerError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(
        "the parameters, or what the server optimizer keeps, have another length than the model"
    )]
    Cut,
    #[error("the thread that averages ended")]
    Thread,
}

fn thread_failure() -> Failure {
    let text = "the thread that averages met a fault of the program: see the broker's log";
    Failure::new(FailureCode::Internal, text)
}

fn part(device: &DeviceId, update: &UpdateReport) -> Part {
    Part {
        device: device.clone(),
        parameters: update.parameters.clone(),
        examples: update.examples,
    }
}
