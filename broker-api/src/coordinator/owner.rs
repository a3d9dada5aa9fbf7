//! One training at its owner: events go in, the machine decides, effects are performed.
//!
//! What may be seen outside (offers, published rounds, the end) is done only after the machine's
//! state is stored; looking into updates and averaging are not seen, and begin at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::push;
use async_nats::{StatusCode, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use jobs::device::Presence;
use jobs::id::{DeviceId, JobId, Millis};
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport};
use jobs::round;
use jobs::spec::{JobSpec, TrainSpec};
use jobs::training::{Effect, Event, Training};
use jobs::{subject, wire};
use link::layout::Made;
use link::secret::Secret;
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio_util::task::TaskTracker;

use super::RENEW_EVERY;
use super::begin::begin;
use super::listed::Listed;
use super::masking::{KeyRing, Masking};
use super::pace::Pace;
use super::prepare::eligible;
use super::reports::next_report;
use super::state::{Prepared, StoredTraining};
use super::updates::Updates;
use super::waiting::Told;
use crate::broker::work::asked_to_stop;
use crate::broker::{Core, Signal};
use crate::fleet::FleetEvent;
use crate::record::EventBody;
use crate::store::{StoreError, Versioned};

/// How long changes that nobody else sees may wait to be stored, at least.
const STORE_WITHIN: Duration = Duration::from_millis(50);
/// Of the time, storing such changes takes this share at most.
const STORING_SHARE: u32 = 10;
/// How long to wait before the store is asked again.
pub(super) const REST: Duration = Duration::from_millis(500);
/// Results of checks and averages that may wait.
pub(super) const DONE_WAITING: usize = 1024;
/// Reports that are applied before their effects are performed, at most.
const BATCH: usize = 256;

/// Why an owner stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// The training is over.
    Over,
    /// Another broker owns the training now.
    Lost,
    /// This broker is closing.
    Closing,
}

/// A training at work.
pub(super) struct Owner {
    pub(super) core: Arc<Core>,
    pub(super) job: JobId,
    pub(super) spec: TrainSpec,
    pub(super) job_spec: JobSpec,
    pub(super) prepared: Prepared,
    pub(super) updates: Updates,
    /// New parameters that are being made; closed, so that it can be waited for.
    pub(super) making: TaskTracker,
    pub(super) machine: Training,
    /// What a private training's noise is made of.
    pub(super) secret: Secret,
    pub(super) stored: StoredTraining,
    /// What of the round at work is in `stored.updates`.
    pub(super) listed: Listed,
    pub(super) revision: u64,
    pub(super) stored_at: Instant,
    /// How long storing took last time.
    pub(super) storing_took: Duration,
    /// Another broker has written.
    pub(super) lost_lease: bool,
    /// Since when there are changes that are not stored.
    pub(super) changed_at: Option<Instant>,
    pub(super) done: mpsc::Sender<Event>,
    /// The round whose devices are known to `updates`.
    pub(super) folding: u32,
    /// The keys of the secure aggregation at work, before its first stage.
    pub(super) key_ring: KeyRing,
    /// The secure aggregation at the stage at work.
    pub(super) masking: Arc<Mutex<Option<Masking>>>,
    /// Where offers that nobody listens to come back.
    pub(super) returns: String,
    pub(super) pace: Pace,
    /// What was told that it waits for.
    pub(super) told: Told,
}

/// What an owner listens to.
pub(super) struct Ears {
    pub(super) reports: Option<push::Ordered>,
    pub(super) returned: Subscriber,
    pub(super) done: mpsc::Receiver<Event>,
    pub(super) fleet: broadcast::Receiver<FleetEvent>,
    pub(super) signal: watch::Receiver<Signal>,
    /// When the streams were made, and that of reports which is read.
    pub(super) made: watch::Receiver<Made>,
    pub(super) reports_at: Option<i128>,
    /// Reports that were in the stream when it was opened are still being read.
    pub(super) behind: bool,
    /// The machine was told which devices are there; changes follow.
    pub(super) presence_known: bool,
}

/// Runs a training until it is over, or not this broker's any more.
pub(super) async fn run(core: Arc<Core>, job: JobId, stored: Versioned<StoredTraining>) {
    let counted = core.metrics.trainings.count();
    let stopped = match Box::pin(begin(&core, &job, stored)).await {
        Ok((mut owner, mut ears, effects)) => owner.run(&mut ears, effects).await,
        Err(stop) => stop,
    };
    drop(counted);
    tracing::info!(%job, ?stopped, "a training is let go of");
}

/// What an owner heard.
enum Heard {
    Report(Option<Message>),
    Done(Event),
    Returned(async_nats::Message),
    /// Streams are others than before.
    Mended,
    Fleet(Option<FleetEvent>),
    Cancel,
    Wake,
    Save,
    MaySend,
}

impl Owner {
    async fn run(&mut self, ears: &mut Ears, effects: Vec<Effect>) -> Stop {
        let mut queue: VecDeque<Effect> = effects.into();
        self.changed_at = Some(Instant::now());
        loop {
            if let Err(stop) = self.perform(&mut queue).await {
                return stop;
            }
            if self.lost_lease {
                return Stop::Lost;
            }
            if let Err(stop) = self.send_offers().await {
                return stop;
            }
            self.tell_waiting().await;
            let closing = self.core.closing.clone();
            let Some(events) = closing.run_until_cancelled(Box::pin(self.hear(ears))).await else {
                self.stored.owner = None;
                // If it is not stored, the lease lapses.
                let _ = self.save_once().await;
                return Stop::Closing;
            };
            for (now, event) in events {
                queue.extend(self.machine.step(now, &event));
            }
        }
    }

    /// Waits for what happens next. Changes that wait to be stored are stored in time, and so
    /// are signs of life.
    async fn hear(&mut self, ears: &mut Ears) -> Vec<(Millis, Event)> {
        if ears.reports.is_none() {
            match self.open_reports().await {
                Ok((reports, pending)) => {
                    ears.reports = Some(reports);
                    ears.behind = pending > 0;
                }
                Err(error) => {
                    tracing::warn!(job = %self.job, %error, "reports cannot be read");
                    tokio::time::sleep(REST).await;
                    return Vec::new();
                }
            }
        }
        let now = self.core.fleet.now();
        // Whose report waits in the stream must not be taken for lost before it is read.
        if !ears.behind && !std::mem::replace(&mut ears.presence_known, true) {
            return self.presence(now);
        }
        let heeds_fleet = ears.presence_known;
        let wake = if ears.behind { None } else { self.machine.wake_at() };
        let wake = wake.map(|at| Duration::from_millis(at.since(now).0));
        let save_at = match self.changed_at {
            Some(at) => {
                let pause = STORE_WITHIN.max(self.storing_took * STORING_SHARE);
                (at + pause).min(self.stored_at + RENEW_EVERY)
            }
            None => self.stored_at + RENEW_EVERY,
        };
        let heard = tokio::select! {
            biased;
            // Reports that come without a pause do not keep the lease from being renewed.
            () = tokio::time::sleep_until(save_at.into()) => Heard::Save,
            report = next_report(&mut ears.reports) => Heard::Report(report),
            Some(event) = ears.done.recv() => Heard::Done(event),
            Some(message) = ears.returned.next() => Heard::Returned(message),
            Ok(()) = ears.made.changed() => Heard::Mended,
            event = ears.fleet.recv(), if heeds_fleet => Heard::Fleet(event.ok()),
            () = asked_to_stop(&mut ears.signal) => Heard::Cancel,
            () = sleep(wake) => Heard::Wake,
            () = sleep(self.pace.wake_at().map(left)) => Heard::MaySend,
        };
        self.understand(ears, heard).await
    }

    async fn understand(&mut self, ears: &mut Ears, heard: Heard) -> Vec<(Millis, Event)> {
        let now = self.core.fleet.now();
        match heard {
            Heard::Report(Some(message)) => {
                let mut events = Vec::new();
                self.note(&message, ears, &mut events).await;
                while events.len() < BATCH
                    && let Some(Some(message)) = next_report(&mut ears.reports).now_or_never()
                {
                    self.note(&message, ears, &mut events).await;
                }
                events
            }
            Heard::Report(None) => {
                ears.reports = None;
                Vec::new()
            }
            Heard::Mended => {
                self.mended(ears);
                Vec::new()
            }
            Heard::Done(event) => {
                self.changed();
                let mut events = vec![(now, event)];
                while let Ok(event) = ears.done.try_recv() {
                    events.push((now, event));
                }
                events
            }
            Heard::Returned(message) => self.offer_returned(now, &message),
            Heard::Fleet(event) => self.fleet_changed(now, event),
            Heard::Cancel => {
                ears.signal = watch::channel(Signal::default()).1;
                self.changed();
                vec![(now, Event::CancelRequested)]
            }
            Heard::Wake => {
                self.changed();
                vec![(now, Event::Tick)]
            }
            Heard::Save => {
                self.renew().await;
                Vec::new()
            }
            Heard::MaySend => Vec::new(),
        }
    }

    /// An offer came back: nobody listens to it.
    fn offer_returned(
        &mut self,
        now: Millis,
        message: &async_nats::Message,
    ) -> Vec<(Millis, Event)> {
        let device = message.subject.rsplit('.').next();
        let device = device.and_then(|device| DeviceId::parse(device).ok());
        match device {
            Some(device) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                self.core.fleet.unreachable(&device);
                self.lost(now, device)
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn fleet_changed(&mut self, now: Millis, event: Option<FleetEvent>) -> Vec<(Millis, Event)> {
        match event {
            Some(FleetEvent::Lost(device)) => self.lost(now, device),
            Some(FleetEvent::Returned(device)) => {
                self.changed();
                let mut events = self.in_round(now, round::Event::DeviceReturned { device });
                // A whole fleet may come at once: it is looked through for those who wait for it.
                if self.waits_for(now).is_some() {
                    self.note_absent();
                    events.extend(self.in_round(now, self.devices_found()));
                }
                events
            }
            // Too many at once.
            None => self.presence(now),
        }
    }

    fn changed(&mut self) {
        self.changed_at.get_or_insert_with(Instant::now);
    }

    fn lost(&mut self, now: Millis, device: DeviceId) -> Vec<(Millis, Event)> {
        self.changed();
        self.pace.lost(&device);
        self.in_round(now, round::Event::DeviceLost { device })
    }

    pub(super) fn in_round(&self, now: Millis, event: round::Event) -> Vec<(Millis, Event)> {
        vec![(now, Event::Round { round: self.machine.number(), event })]
    }

    pub(super) fn devices_found(&self) -> round::Event {
        let devices =
            eligible(&self.core.fleet, &self.job_spec.selector, &self.spec, Some(&self.prepared));
        let devices = devices.into_iter().map(|hello| hello.device).collect();
        round::Event::DevicesFound { devices }
    }

    /// Who is there, and who is not.
    fn presence(&mut self, now: Millis) -> Vec<(Millis, Event)> {
        self.changed();
        let mut events = Vec::new();
        for record in self.core.fleet.records() {
            let device = record.hello.device;
            events.extend(match record.presence {
                Presence::Offline => self.in_round(now, round::Event::DeviceLost { device }),
                Presence::Online => self.in_round(now, round::Event::DeviceReturned { device }),
                Presence::Stale => Vec::new(),
            });
        }
        events
    }

    async fn note(
        &mut self,
        message: &Message,
        ears: &mut Ears,
        events: &mut Vec<(Millis, Event)>,
    ) {
        let Ok(info) = message.info() else { return };
        self.stored.sequence = info.stream_sequence;
        ears.behind = info.pending > 0;
        let arrived = info.published.unix_timestamp_nanos() / 1_000_000;
        let arrived = Millis(u64::try_from(arrived).unwrap_or_default()).min(self.core.fleet.now());
        let device = subject::parse_report(&message.subject).map(|(_, device)| device);
        let mut report: TaskReport = match wire::decode(&message.payload) {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(subject = %message.subject, %error, "a report is not understood");
                return;
            }
        };
        if device.as_ref() != Some(&report.device) || report.task.job != self.job {
            tracing::warn!(subject = %message.subject, "a report names another device or job");
            return;
        }
        if !matches!(report.body, ReportBody::Accepted) {
            self.pace.heard(&report.device);
        }
        if let Err(failure) = self.list(&report) {
            tracing::warn!(job = %self.job, reason = failure.message, "a report is refused");
            report.body = ReportBody::Failed(failure);
        }
        self.tell_lost(&report);
        if !ears.behind {
            self.stop_in_vain(&report).await;
        }
        if let Some(event) = self.understood(report) {
            self.changed();
            events.push((arrived, event));
        }
    }

    fn understood(&self, report: TaskReport) -> Option<Event> {
        let TaskReport { task, device, body } = report;
        let (round, purpose, attempt) = (task.round, task.purpose, task.attempt);
        let event = match body {
            ReportBody::Accepted => round::Event::Accepted { device, purpose, attempt },
            ReportBody::Progress(progress) => {
                let (core, job) = (self.core.clone(), self.job.clone());
                let body = EventBody::Progress { device: device.clone(), round: round.0, progress };
                self.core.spawn(async move { core.store.mention_event(&job, body).await });
                round::Event::Progressed { device, progress }
            }
            ReportBody::Trained(update) => round::Event::UpdateReceived { device, attempt, update },
            ReportBody::Exchanged(said) => {
                let message = said.message;
                round::Event::MessageReceived { device, purpose, attempt, message }
            }
            ReportBody::Evaluated(evaluation) => {
                round::Event::EvaluationReceived { device, attempt, evaluation }
            }
            ReportBody::Declined(failure) | ReportBody::Failed(failure) => {
                round::Event::TaskFailed { device, purpose, attempt, failure }
            }
            ReportBody::Cancelled => {
                let failure = Failure::new(FailureCode::Cancelled, "the device stopped");
                round::Event::TaskFailed { device, purpose, attempt, failure }
            }
            ReportBody::Inferred(_) | ReportBody::Measured(_) => return None,
        };
        Some(Event::Round { round, event })
    }

    /// Does work that may have to wait for the store, and gives signs of life meanwhile.
    pub(super) async fn while_renewing<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        let closing = self.core.closing.clone();
        let mut work = std::pin::pin!(work);
        while !self.lost_lease {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = closing.cancelled() => return Err(Stop::Closing),
                () = tokio::time::sleep_until((self.stored_at + RENEW_EVERY).into()) => {
                    Box::pin(self.renew()).await;
                }
            }
        }
        Err(Stop::Lost)
    }

    /// Stores the machine once, if that goes; notes whether the lease is someone else's.
    async fn renew(&mut self) {
        if let Err(error) = self.save_once().await {
            tracing::warn!(job = %self.job, %error, "a training was not stored");
            self.lost_lease |= matches!(error, StoreError::Conflict { .. });
            self.stored_at = Instant::now();
            self.changed_at = None;
        }
    }

    /// Stores the machine; tries until it is stored, or the lease is someone else's.
    pub(super) async fn save(&mut self) -> Result<(), Stop> {
        loop {
            match self.save_once().await {
                Ok(()) => return Ok(()),
                Err(StoreError::Conflict { .. }) => return Err(Stop::Lost),
                Err(error) => {
                    tracing::warn!(job = %self.job, %error, "a training waits for the store");
                    let rest = tokio::time::sleep(REST);
                    if self.core.closing.run_until_cancelled(rest).await.is_none() {
                        return Err(Stop::Closing);
                    }
                }
            }
        }
    }

    async fn save_once(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        self.stored.machine = Some(self.machine.clone());
        self.stored.write += 1;
        let key = self.job.as_str();
        let trainings = &self.core.store.trainings;
        let saved = match trainings.update(key, &self.stored, self.revision).await {
            Err(error @ StoreError::Conflict { .. }) => {
                // It may be a write of our own whose acknowledgement was lost.
                let found = trainings.get_at_leader(key).await?;
                let ours = found.filter(|found| {
                    found.value.owner.as_deref() == Some(&self.core.name)
                        && found.value.term == self.stored.term
                });
                let Some(ours) = ours else { return Err(error) };
                trainings.update(key, &self.stored, ours.revision).await
            }
            saved => saved,
        };
        self.revision = saved?;
        self.stored_at = Instant::now();
        self.storing_took = begun.elapsed();
        self.changed_at = None;
        Ok(())
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
