//! The life of a job at the broker: accepted, placed, running, ended.
//!
//! Infer and telemetry jobs are placed on a device, and again on another one while that may
//! help; training jobs run as a [`crate::training::Training`] and only begin and end here.
//!
//! ```text
//!  accepted ── device chosen: Offer ──▶ placed ── Accepted ──▶ running ── result ──▶ succeeded
//!    │   ▲                                │                      │
//!    │   └─ lost, too slow, transient ────┴──────────────────────┘
//!    └──── deadline, permanent failure, too many attempts ──▶ failed;  request ──▶ cancelled
//! ```
//!
//! - A device has 5 s to accept an offer (half of the remaining time when that is less), and
//!   then half of the remaining time, but at least 30 s, to answer.
//! - [`TRIES_MAX`] attempts may fail. That a device is busy does not count: the job waits for it,
//!   as it waits for a first device, until its deadline.
//! - A device that failed is only tried again after a pause; another one at once. One whose engines
//!   cannot answer, and say the same of it again, is not asked a third time.
//! - The result of an attempt that was given up is taken if it comes after all.

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, DeviceId, JobId, Millis};
use crate::report::{Failure, FailureCode, ReportBody, TaskReport};
use crate::spec::{JobKind, JobSpec};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Stored; no device yet.
    Accepted,
    /// Offered to a device.
    Placed,
    /// A device, or a training, is at it.
    Running,
    /// Done.
    Succeeded,
    /// Not done, for the reason given.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        match self {
            JobState::Accepted | JobState::Placed | JobState::Running => false,
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
        }
    }
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The shell looked for a device; asked for by [`Effect::FindDevice`].
    DeviceChosen {
        /// The best device now, or none.
        device: Option<DeviceId>,
    },
    /// The shell looked for a device, and goes on looking.
    Unplaced {
        /// Why there is none now.
        failure: Failure,
    },
    /// A device said something about its task.
    Reported(Box<TaskReport>),
    /// A device is offline, or its subject has no subscriber.
    DeviceLost {
        /// Who.
        device: DeviceId,
    },
    /// The training of this job began.
    TrainingBegan,
    /// The training of this job ended.
    TrainingEnded {
        /// Why it did not succeed.
        failure: Option<Failure>,
    },
    /// Someone asked to stop.
    CancelRequested,
    /// Time passed.
    Tick,
}

/// What the shell has to do; each may be done twice without harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Effect {
    /// Look for a device other than those tried, answer with [`Event::DeviceChosen`].
    FindDevice {
        /// Devices that failed this job; only used again when there is no other.
        avoid: Vec<DeviceId>,
    },
    /// Offer the work to a device.
    Offer {
        /// Who.
        device: DeviceId,
        /// How often this job was placed.
        attempt: Attempt,
        /// How long to wait for this attempt.
        timeout_ms: Millis,
    },
    /// Tell a device to stop.
    Withdraw {
        /// Who.
        device: DeviceId,
        /// Which offer.
        attempt: Attempt,
        /// Why.
        reason: String,
    },
    /// Start, or stop, the training of this job.
    BeginTraining,
    /// Ask the training to stop.
    CancelTraining,
    /// The job is over in this state.
    End {
        /// Succeeded, failed or cancelled.
        state: JobState,
        /// The report that ended it well.
        report: Option<Box<TaskReport>>,
        /// Why it did not succeed.
        failure: Option<Failure>,
    },
}

/// Attempts that may fail before the job does.
pub const TRIES_MAX: u32 = 5;
/// How often a device is looked for while there is none.
const ASK_AGAIN_MS: Millis = Millis(1000);
/// How long a device has to accept an offer.
const ACCEPT_MS_MAX: u64 = 5000;
/// How long a device has at least to answer, if the deadline allows.
const ANSWER_MS_MIN: u64 = 30_000;
/// The first pause before a device is tried again; doubled every time.
const PAUSE_MS: u64 = 100;
/// The longest pause.
const PAUSE_MS_MAX: u64 = 2000;
/// Devices that are remembered as to be avoided.
const AVOID_MAX: usize = 16;

/// A job and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Which.
    pub id: JobId,
    /// What.
    pub spec: JobSpec,
    /// When it was accepted.
    pub accepted_at: Millis,
    /// Where it is.
    pub state: JobState,
    /// The newest attempt.
    attempt: Attempt,
    /// Attempts that failed, other than for want of a slot.
    tries: u32,
    /// The newest attempt's place, while it is at work.
    placed: Option<Placed>,
    /// When to look for a device again.
    ask_again_at: Millis,
    /// A device to avoid is not used before.
    pause_until: Millis,
    /// Devices that failed, the newest last.
    avoid: Vec<DeviceId>,
    /// Devices whose engines could not answer, with what they said, the newest last.
    #[serde(default)]
    unavailable: Vec<(DeviceId, String)>,
    /// What went wrong last, and where.
    last: Option<Failure>,
    /// A training was asked to stop.
    cancelling: bool,
    /// What [`Effect::End`] says, once it is over.
    ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Placed {
    device: DeviceId,
    timeout_ms: Millis,
    /// When to give this attempt up.
    until: Millis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ended {
    report: Option<Box<TaskReport>>,
    failure: Option<Failure>,
}

impl Job {
    /// A job that was just accepted; the effects are the first ones to perform.
    pub fn accept(now: Millis, id: JobId, spec: JobSpec) -> (Self, Vec<Effect>) {
        let job = Self {
            id,
            spec,
            accepted_at: now,
            state: JobState::Accepted,
            attempt: Attempt(0),
            tries: 0,
            placed: None,
            ask_again_at: now.plus(ASK_AGAIN_MS),
            pause_until: now,
            avoid: Vec::new(),
            unavailable: Vec::new(),
            last: None,
            cancelling: false,
            ended: None,
        };
        let effects = job.pending_effects();
        (job, effects)
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    pub fn step(&mut self, now: Millis, event: &Event) -> Vec<Effect> {
        if self.state.is_final() {
            return Vec::new();
        }
        match event {
            Event::DeviceChosen { device } => self.device_chosen(now, device.as_ref()),
            Event::Unplaced { failure } => {
                self.unplaced(failure);
                Vec::new()
            }
            Event::Reported(report) => self.reported(now, report),
            Event::DeviceLost { device } => {
                let here = self.placed.as_ref().is_some_and(|placed| placed.device == *device);
                let failure = Failure::new(FailureCode::DeviceLost, "the device went silent");
                if here { self.failed(now, &failure) } else { Vec::new() }
            }
            Event::TrainingBegan => {
                if self.is_training() {
                    self.state = JobState::Running;
                }
                Vec::new()
            }
            Event::TrainingEnded { failure } => match failure {
                _ if !self.is_training() => Vec::new(),
                None => self.end(JobState::Succeeded, None, None),
                Some(failure) if self.cancelling && failure.code == FailureCode::Cancelled => {
                    self.end(JobState::Cancelled, None, Some(failure.clone()))
                }
                Some(failure) => self.end(JobState::Failed, None, Some(failure.clone())),
            },
            Event::CancelRequested if self.is_training() => {
                let asked = std::mem::replace(&mut self.cancelling, true);
                if asked { Vec::new() } else { vec![Effect::CancelTraining] }
            }
            Event::CancelRequested => {
                let failure = Failure::new(FailureCode::Cancelled, "stopped on request");
                let mut effects = self.withdraw(&failure.message);
                effects.extend(self.end(JobState::Cancelled, None, Some(failure)));
                effects
            }
            Event::Tick => self.tick(now),
        }
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        if self.state.is_final() || self.is_training() {
            return None;
        }
        let next = self.placed.as_ref().map_or(self.ask_again_at, |placed| placed.until);
        Some(next.min(self.deadline()))
    }

    /// The effects still owed in this state: what to perform after a restart.
    pub fn pending_effects(&self) -> Vec<Effect> {
        if let Some(Ended { report, failure }) = &self.ended {
            let (report, failure) = (report.clone(), failure.clone());
            return vec![Effect::End { state: self.state, report, failure }];
        }
        if self.is_training() {
            let cancel = self.cancelling.then_some(Effect::CancelTraining);
            return [Effect::BeginTraining].into_iter().chain(cancel).collect();
        }
        match &self.placed {
            Some(Placed { device, timeout_ms, .. }) => vec![Effect::Offer {
                device: device.clone(),
                attempt: self.attempt,
                timeout_ms: *timeout_ms,
            }],
            None => vec![Effect::FindDevice { avoid: self.avoid.clone() }],
        }
    }

    /// Until when the job has to be done.
    pub fn deadline(&self) -> Millis {
        self.accepted_at.plus(self.spec.deadline_ms)
    }

    fn is_training(&self) -> bool {
        match self.spec.work.kind() {
            JobKind::Train => true,
            JobKind::Infer | JobKind::Telemetry => false,
        }
    }

    fn device_chosen(&mut self, now: Millis, device: Option<&DeviceId>) -> Vec<Effect> {
        if self.is_training() || self.placed.is_some() {
            return Vec::new();
        }
        let Some(device) = device else {
            if self.last.is_none() {
                let message = "no device that matches is online";
                self.last = Some(Failure::new(FailureCode::NoDevice, message));
            }
            return Vec::new();
        };
        if self.avoid.contains(device) && now < self.pause_until {
            self.ask_again_at = self.ask_again_at.min(self.pause_until);
            return Vec::new();
        }
        let left = self.deadline().since(now);
        if left == Millis(0) {
            return self.overdue();
        }
        self.attempt = Attempt(self.attempt.0.saturating_add(1));
        self.state = JobState::Placed;
        let until = now.plus(Millis((left.0 / 2).min(ACCEPT_MS_MAX)));
        self.placed = Some(Placed { device: device.clone(), timeout_ms: left, until });
        self.pending_effects()
    }

    /// What a device said counts for more.
    fn unplaced(&mut self, failure: &Failure) {
        let waits =
            |last: &Failure| [FailureCode::NoDevice, FailureCode::Busy].contains(&last.code);
        if !self.is_training() && self.placed.is_none() && self.last.as_ref().is_none_or(waits) {
            self.last = Some(failure.clone());
        }
    }

    fn reported(&mut self, now: Millis, report: &TaskReport) -> Vec<Effect> {
        let attempt = report.task.attempt;
        if self.is_training() || report.task.job != self.id || attempt > self.attempt {
            return Vec::new();
        }
        let here = self.placed.as_ref().is_some_and(|placed| placed.device == report.device);
        let here = here && attempt == self.attempt;
        match (&report.body, self.spec.work.kind()) {
            (ReportBody::Inferred(_), JobKind::Infer)
            | (ReportBody::Measured(_), JobKind::Telemetry) => {
                let effects = if here { Vec::new() } else { self.withdraw("there is a result") };
                let end = self.end(JobState::Succeeded, Some(Box::new(report.clone())), None);
                effects.into_iter().chain(end).collect()
            }
            _ if !here => Vec::new(),
            (ReportBody::Accepted | ReportBody::Progress(_), _) => {
                self.accepted(now);
                Vec::new()
            }
            (ReportBody::Declined(failure) | ReportBody::Failed(failure), _) => {
                self.failed(now, failure)
            }
            (ReportBody::Cancelled, _) => {
                let message = "the device stopped the task by itself";
                self.failed(now, &Failure::new(FailureCode::Internal, message))
            }
            (
                ReportBody::Trained(_)
                | ReportBody::Exchanged(_)
                | ReportBody::Evaluated(_)
                | ReportBody::Inferred(_)
                | ReportBody::Measured(_),
                kind,
            ) => {
                let message = format!("the device answered {} with another thing", kind.as_str());
                self.failed(now, &Failure::new(FailureCode::Internal, message))
            }
        }
    }

    fn accepted(&mut self, now: Millis) {
        let left = self.deadline().since(now).0;
        if let (JobState::Placed, Some(placed)) = (self.state, &mut self.placed) {
            placed.until = now.plus(Millis((left / 2).max(ANSWER_MS_MIN).min(left)));
            self.state = JobState::Running;
        }
    }

    /// Looks for another device if that may help.
    fn failed(&mut self, now: Millis, failure: &Failure) -> Vec<Effect> {
        let Some(Placed { device, .. }) = self.placed.take() else { return Vec::new() };
        let message: String = failure.message.chars().take(500).collect();
        if !failure.code.is_transient() {
            let failure = Failure::new(failure.code, format!("{device}: {message}"));
            return self.end(JobState::Failed, None, Some(failure));
        }
        if failure.code == FailureCode::EngineUnavailable {
            let said = (device.clone(), message.clone());
            if self.unavailable.contains(&said) {
                let failure = Failure::new(failure.code, format!("{device}: {message}"));
                return self.end(JobState::Failed, None, Some(failure));
            }
            self.unavailable.push(said);
        }
        self.tries += u32::from(failure.code != FailureCode::Busy);
        if self.tries >= TRIES_MAX {
            let message =
                format!("{} attempts failed, the last on {device}: {message}", self.tries);
            let failure = Failure::new(failure.code, message);
            return self.end(JobState::Failed, None, Some(failure));
        }
        self.last = Some(Failure::new(failure.code, format!("{device}: {message}")));
        let doublings = self.attempt.0.saturating_sub(1).min(16);
        let pause = Millis((PAUSE_MS << doublings).min(PAUSE_MS_MAX));
        self.pause_until = now.plus(pause);
        self.ask_again_at = now.plus(ASK_AGAIN_MS);
        self.avoid.retain(|avoided| *avoided != device);
        self.avoid.push(device);
        if self.avoid.len() > AVOID_MAX {
            self.avoid.remove(0);
        }
        self.state = JobState::Accepted;
        self.pending_effects()
    }

    fn tick(&mut self, now: Millis) -> Vec<Effect> {
        if self.is_training() {
            return Vec::new();
        }
        if self.deadline() <= now {
            return self.overdue();
        }
        match &self.placed {
            Some(placed) if placed.until <= now => {
                let message = match self.state {
                    JobState::Placed => "the device did not accept the task in time",
                    JobState::Accepted
                    | JobState::Running
                    | JobState::Succeeded
                    | JobState::Failed
                    | JobState::Cancelled => "the device did not answer in time",
                };
                let mut effects = self.withdraw(message);
                let failure = Failure::new(FailureCode::DeadlineExceeded, message);
                effects.extend(self.failed(now, &failure));
                effects
            }
            None if self.ask_again_at <= now => {
                self.ask_again_at = now.plus(ASK_AGAIN_MS);
                self.pending_effects()
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn overdue(&mut self) -> Vec<Effect> {
        let what = match (&self.placed, &self.last) {
            (Some(placed), _) => format!("{} was at it", placed.device),
            (None, Some(last)) => {
                format!("the last reason: {}: {}", last.code.as_str(), last.message)
            }
            (None, None) => "no device was found".to_owned(),
        };
        let message = format!("not done within {} ms; {what}", self.spec.deadline_ms);
        let failure = Failure::new(FailureCode::DeadlineExceeded, message);
        let mut effects = self.withdraw("the job's time is over");
        effects.extend(self.end(JobState::Failed, None, Some(failure)));
        effects
    }

    /// Tells the device that is at it to stop.
    fn withdraw(&self, reason: &str) -> Vec<Effect> {
        let withdrawn = self.placed.as_ref().map(|placed| Effect::Withdraw {
            device: placed.device.clone(),
            attempt: self.attempt,
            reason: reason.to_owned(),
        });
        withdrawn.into_iter().collect()
    }

    fn end(
        &mut self,
        state: JobState,
        report: Option<Box<TaskReport>>,
        failure: Option<Failure>,
    ) -> Vec<Effect> {
        self.state = state;
        self.placed = None;
        self.ended = Some(Ended { report, failure });
        self.pending_effects()
    }
}

#[cfg(test)]
mod tests;
