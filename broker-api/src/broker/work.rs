//! The work queue: every broker takes jobs from it, and drives them until they are over.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use jobs::id::{DeviceId, JobId};
use jobs::job::JobState;
use jobs::report::{Failure, FailureCode, ReportBody};
use jobs::spec::{JobKind, WorkSpec};
use jobs::subject;
use tokio::sync::watch;

use super::durable::JobEnd;
use super::{Core, Signal};
use crate::error::{ApiCode, ApiError};
use crate::gateway::Ending;
use crate::gateway::input::Binary;
use crate::record::{EventBody, JobResult, StoredJob};
use crate::store::{StoreError, unavailable};

/// The consumer that all brokers share.
const CONSUMER: &str = "brokers";
/// Jobs that all brokers together drive at the same time; the others stay in the queue.
const DRIVEN_MAX: i64 = 2048;
/// How long the queue waits for a sign of life before it gives a job to another broker.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// How often a broker gives one.
const ALIVE_EVERY: Duration = Duration::from_secs(4);
/// How long a job that met a fault of NATS rests.
const REST: Duration = Duration::from_secs(2);

/// Takes jobs until the broker closes.
pub(crate) async fn run(core: Arc<Core>) {
    while !core.closing.is_cancelled() {
        if let Err(error) = take(&core).await {
            tracing::warn!(%error, "the work queue does not answer");
        }
        let rest = tokio::time::sleep(REST);
        core.closing.run_until_cancelled(rest).await;
    }
}

async fn take(core: &Arc<Core>) -> Result<(), StoreError> {
    let doing = "taking work";
    let stream = core.store.stream(subject::STREAM_WORK).await?;
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: DRIVEN_MAX,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(CONSUMER, config).await;
    let consumer = consumer.map_err(|error| unavailable(doing, &error))?;
    let messages = consumer.messages().await.map_err(|error| unavailable(doing, &error))?;
    let mut messages = messages.take_until(core.closing.clone().cancelled_owned()).boxed();
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| unavailable(doing, &error))?;
        core.spawn(core.clone().drive(message));
    }
    Ok(())
}

impl Core {
    async fn drive(self: Arc<Self>, message: Message) {
        let id = message.subject.rsplit('.').next().and_then(|id| JobId::parse(id).ok());
        let Some(id) = id else {
            acknowledge(&message, AckKind::Term).await;
            return;
        };
        let alive = async {
            loop {
                tokio::time::sleep(ALIVE_EVERY).await;
                acknowledge(&message, AckKind::Progress).await;
            }
        };
        let outcome = tokio::select! {
            outcome = self.drive_job(&id, &message) => outcome,
            () = alive => return,
            () = self.closing.cancelled() => {
                acknowledge(&message, AckKind::Nak(None)).await;
                return;
            }
        };
        match outcome {
            Ok(()) => acknowledge(&message, AckKind::Ack).await,
            Err(error) => {
                tracing::warn!(job = %id, %error, "a job rests");
                acknowledge(&message, AckKind::Nak(Some(REST))).await;
            }
        }
    }

    /// Brings a job to its end, or its training to its beginning. An error leaves the job in the
    /// queue.
    async fn drive_job(self: &Arc<Self>, id: &JobId, message: &Message) -> Result<(), ApiError> {
        let Some(stored) = self.store.jobs.get(id.as_str()).await? else { return Ok(()) };
        let stored = stored.value;
        if stored.record.state.is_final() {
            return Ok(self.tell_end(&stored.record).await?);
        }
        let end = match stored.record.spec.work.kind() {
            JobKind::Train => return Ok(self.trainings.begin(id).await?),
            JobKind::Infer => {
                let delivery = message.info().map_or(0, |info| info.delivered);
                self.drive_infer(&stored, delivery).await?
            }
            JobKind::Telemetry => self.drive_telemetry(&stored).await?,
        };
        Ok(self.end_job(id, end).await?)
    }

    async fn drive_infer(
        self: &Arc<Self>,
        stored: &StoredJob,
        delivery: i64,
    ) -> Result<JobEnd, ApiError> {
        let record = &stored.record;
        let binary = match &stored.input {
            None => Binary::Here(Bytes::new()),
            Some(blob) => Binary::Stored(blob.clone()),
        };
        let (id, spec) = (record.id.clone(), record.spec.clone());
        let mut errand = match self.gateway.errand(id, spec, record.accepted_at, binary).await {
            Ok(errand) => errand,
            Err(error) if error.code == ApiCode::Unavailable => return Err(error),
            Err(error) => return Ok(failed(as_failure(&error))),
        };
        errand.patient = true;
        let mut placements = 0_u32;
        let mut placed = |device: DeviceId| {
            placements += 1;
            let event = format!("placed.{delivery}.{placements}");
            let (core, id) = (self.clone(), record.id.clone());
            async move { core.note_placed(&id, &device, &event).await }.boxed()
        };
        let signal = self.index.watch(&record.id);
        match self.gateway.run(&errand, Some(signal), Some(&mut placed)).await {
            Ok(ending) => self.ended(ending).await,
            Err(error) if error.code == ApiCode::Unavailable => Err(error),
            Err(error) => Ok(failed(as_failure(&error))),
        }
    }

    /// Shows that a job is at a device; that it does not show is no reason to stop.
    pub(super) async fn note_placed(&self, id: &JobId, device: &DeviceId, event: &str) {
        let change = |stored: &mut StoredJob| {
            let placed = !stored.record.state.is_final();
            if placed {
                stored.record.state = JobState::Placed;
                stored.record.placed_on(device);
            }
            placed
        };
        let shown = async {
            self.store.jobs.modify(id.as_str(), change).await?;
            let body = EventBody::Placed { device: device.clone() };
            self.store.publish_event(id, event, body).await
        };
        if let Err(error) = shown.await {
            tracing::warn!(job = %id, %error, "a placement was not noted");
        }
    }

    async fn ended(&self, ending: Ending) -> Result<JobEnd, ApiError> {
        let Ending { state, report, outputs, failure } = ending;
        let result = match report.map(|report| (report.device, report.body)) {
            Some((device, ReportBody::Inferred(report))) => {
                let outputs = if outputs.is_empty() {
                    None
                } else {
                    let put = self.store.blobs.put(outputs).await;
                    Some(put.map_err(StoreError::from)?)
                };
                Some(JobResult::Infer { device, report: Box::new(report), outputs })
            }
            Some(_) | None => None,
        };
        Ok(JobEnd { state, failure, result })
    }

    async fn drive_telemetry(&self, stored: &StoredJob) -> Result<JobEnd, ApiError> {
        let record = &stored.record;
        let WorkSpec::Telemetry = record.spec.work else {
            return Ok(failed(Failure::new(FailureCode::Internal, "not a telemetry job")));
        };
        let mut signal = self.index.watch(&record.id);
        let mut chances = self.fleet.chances();
        let ends_at = record.accepted_at.plus(record.spec.deadline_ms);
        loop {
            let left = ends_at.since(self.fleet.now());
            if signal.borrow().cancel {
                let failure = Failure::new(FailureCode::Cancelled, "stopped on request");
                return Ok(JobEnd { state: JobState::Cancelled, ..failed(failure) });
            }
            let outcome = self.gateway.measure(&record.id, &record.spec.selector, left).await;
            let error = match outcome {
                Ok(devices) => {
                    let result = Some(JobResult::Telemetry { devices });
                    return Ok(JobEnd { state: JobState::Succeeded, failure: None, result });
                }
                Err(error) => error,
            };
            if left.0 == 0 {
                return Ok(failed(as_failure(&error)));
            }
            tokio::select! {
                _ = chances.changed() => {}
                () = asked_to_stop(&mut signal) => {}
                () = tokio::time::sleep(Duration::from_millis(left.0)) => {}
            }
        }
    }
}

/// Waits until someone asks a job to stop.
pub(crate) async fn asked_to_stop(signal: &mut watch::Receiver<Signal>) {
    if signal.wait_for(|signal| signal.cancel && !signal.ended).await.is_err() {
        std::future::pending::<()>().await;
    }
}

pub(crate) fn failed(failure: Failure) -> JobEnd {
    JobEnd { state: JobState::Failed, failure: Some(failure), result: None }
}

/// An error of the broker as the failure of a job.
pub(crate) fn as_failure(error: &ApiError) -> Failure {
    let code = match error.code {
        ApiCode::Job(code) => code,
        ApiCode::InvalidBody | ApiCode::InvalidSpec | ApiCode::UnsupportedMediaType => {
            FailureCode::InvalidSpec
        }
        ApiCode::UnknownModel => FailureCode::UnknownModel,
        ApiCode::UnknownDataset => FailureCode::UnknownDataset,
        ApiCode::TooLarge => FailureCode::TooLarge,
        ApiCode::UnknownJob
        | ApiCode::UnknownRound
        | ApiCode::UnknownDevice
        | ApiCode::UnknownPath
        | ApiCode::MethodNotAllowed
        | ApiCode::CrossSite
        | ApiCode::Conflict
        | ApiCode::NotEnded
        | ApiCode::Unavailable
        | ApiCode::Overloaded
        | ApiCode::Internal => FailureCode::Internal,
    };
    let message = if error.hint.is_empty() {
        error.detail.clone()
    } else {
        format!("{}: {}", error.detail, error.hint)
    };
    Failure::new(code, message)
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "the work queue got no acknowledgement");
    }
}
