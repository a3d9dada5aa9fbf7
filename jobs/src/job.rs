//! The life of a job at the broker: accepted, placed, running, ended.
//!
//! Infer and telemetry jobs are placed on a device, and again on another one while that may
//! help; training jobs run as a [`crate::training::Training`] and only begin and end here.

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, DeviceId, JobId, Millis};
use crate::report::{Failure, TaskReport};
use crate::spec::JobSpec;

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
}

impl Job {
    /// A job that was just accepted; the effects are the first ones to perform.
    pub fn accept(_now: Millis, _id: JobId, _spec: JobSpec) -> (Self, Vec<Effect>) {
        unimplemented!()
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    pub fn step(&mut self, _now: Millis, _event: &Event) -> Vec<Effect> {
        unimplemented!()
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        unimplemented!()
    }

    /// The effects still owed in this state: what to perform after a restart.
    pub fn pending_effects(&self) -> Vec<Effect> {
        unimplemented!()
    }
}
