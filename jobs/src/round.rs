//! A federated round: select, collect, quorum, aggregate, evaluate, end.
//!
//! The round counts updates and judges deadlines; it never sees a weight.

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, BlobRef, DeviceId, Millis, RoundNumber};
use crate::report::{EvaluationReport, Failure, Progress, UpdateReport};
use crate::spec::{Participation, Purpose};

/// What happened to a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The shell looked up who is eligible and online; asked for by [`Effect::FindDevices`].
    /// While there are too few, the round asks again at [`Round::wake_at`].
    DevicesFound {
        /// Eligible devices.
        devices: Vec<DeviceId>,
    },
    /// A device took the task.
    Accepted {
        /// Who.
        device: DeviceId,
        /// Train or evaluate.
        purpose: Purpose,
        /// Which offer.
        attempt: Attempt,
    },
    /// A device is on its way.
    Progressed {
        /// Who.
        device: DeviceId,
        /// How far.
        progress: Progress,
    },
    /// A local update is in the object store.
    UpdateReceived {
        /// Who.
        device: DeviceId,
        /// Which offer.
        attempt: Attempt,
        /// The update.
        update: UpdateReport,
    },
    /// The shell looked into an update; asked for by [`Effect::CheckUpdate`].
    UpdateChecked {
        /// Whose.
        device: DeviceId,
        /// Which.
        parameters: BlobRef,
        /// Why it cannot be used.
        refused: Option<Failure>,
    },
    /// A device judged the new parameters.
    EvaluationReceived {
        /// Who.
        device: DeviceId,
        /// Which offer.
        attempt: Attempt,
        /// The judgement.
        evaluation: EvaluationReport,
    },
    /// A device declined, failed or cancelled.
    TaskFailed {
        /// Who.
        device: DeviceId,
        /// Train or evaluate.
        purpose: Purpose,
        /// Which offer.
        attempt: Attempt,
        /// Why.
        failure: Failure,
    },
    /// A device is offline, or its subject has no subscriber.
    DeviceLost {
        /// Who.
        device: DeviceId,
    },
    /// A device came back: a task it still owes may be offered again.
    DeviceReturned {
        /// Who.
        device: DeviceId,
    },
    /// The mean is in the object store; asked for by [`Effect::Aggregate`].
    Aggregated {
        /// The new parameters.
        parameters: BlobRef,
    },
    /// Aggregation is impossible.
    AggregationFailed {
        /// Why.
        failure: Failure,
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
    /// Look up eligible devices, answer with [`Event::DevicesFound`].
    FindDevices,
    /// Offer a task of this round to a device.
    Offer {
        /// Who.
        device: DeviceId,
        /// Train or evaluate.
        purpose: Purpose,
        /// Counts the offers of this purpose to this device.
        attempt: Attempt,
        /// The parameters to start from or to judge.
        parameters: BlobRef,
    },
    /// Tell a device that its work is no longer needed.
    Withdraw {
        /// Who.
        device: DeviceId,
        /// Train or evaluate.
        purpose: Purpose,
        /// Which offer.
        attempt: Attempt,
        /// Why.
        reason: String,
    },
    /// Look into an update, answer with [`Event::UpdateChecked`].
    CheckUpdate {
        /// Whose.
        device: DeviceId,
        /// What was reported.
        update: UpdateReport,
    },
    /// Take the mean of these, in this order, answer with [`Event::Aggregated`].
    Aggregate {
        /// Accepted updates, ordered by device.
        updates: Vec<(DeviceId, UpdateReport)>,
    },
    /// The round is over.
    End(Box<Outcome>),
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which round.
    pub round: RoundNumber,
    /// The parameters after this round: new ones, or the old ones when it failed.
    pub parameters: BlobRef,
    /// Why there are no new parameters.
    pub failure: Option<Failure>,
    /// Whose updates are in the mean, with what they said of them; ordered by device.
    pub updates: Vec<(DeviceId, UpdateReport)>,
    /// Judgements, ordered by device.
    pub evaluations: Vec<(DeviceId, EvaluationReport)>,
    /// Everyone invited whose update is not in the mean, and exactly why; ordered by device.
    pub missing: Vec<(DeviceId, Failure)>,
    /// When it began.
    pub started_at: Millis,
    /// When it ended.
    pub ended_at: Millis,
}

/// What a round is told at its beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Which round.
    pub round: RoundNumber,
    /// The global parameters.
    pub parameters: BlobRef,
    /// Who takes part.
    pub participation: Participation,
    /// Whether devices judge the result.
    pub evaluate: bool,
    /// Seeds the selection.
    pub seed: u64,
}

/// The machine of one round; its whole state, so it can be stored after each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    plan: Plan,
}

impl Round {
    /// Begins a round; the effects are the first ones to perform.
    pub fn begin(_now: Millis, _plan: Plan) -> (Self, Vec<Effect>) {
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

    /// The effects that are still owed in this state: what to perform after a restart.
    pub fn pending_effects(&self) -> Vec<Effect> {
        unimplemented!()
    }
}
