//! A federated round: select, collect, quorum, aggregate, evaluate, end.
//!
//! The round counts updates and judges deadlines; it never sees a weight.
//!
//! ```text
//!                      masked: sharing ─▶ masking ─▶ unmasking
//!                            ▲                           │
//!                            │                           ▼
//!  selecting ──▶ collecting ─┴───────────────▶ aggregating ──▶ evaluating ──▶ ended
//!      │             │                              │                           ▲
//!      └─────────────┴──────────────────────────────┴── no quorum, cancelled ───┘
//! ```
//!
//! - Selecting: asks for devices every second until `devices` are there (the quorum, when all
//!   take part); after a while the quorum is enough. A seed decides who is invited: `devices`
//!   and a share of `over_selection` more, or all; or the order in which devices are given, where
//!   the job [remembers](Experience) them. The others are in reserve. While hours of the day
//!   decide who is there, it waits without an end of its own.
//! - Collecting: an update that arrives is checked. It closes when the target number of checked
//!   updates is there (the surplus is withdrawn), when everyone who is not lost has answered and
//!   the quorum is met, or at the deadline, after the checks of what had arrived. A device that
//!   failed, or is lost, is replaced from the reserve. A transient failure gets one more offer; a
//!   device that comes back is offered the same work as a newer attempt. An update that a device
//!   made again because it had forgotten the first is taken instead of that, once. When the quorum
//!   is out of reach the round fails at once. A round that is sampled invites each eligible device
//!   by chance, replaces none, and closes with whatever there is, be it nothing.
//! - Sharing, masking, unmasking, where updates are masked: the devices that have trained answer
//!   each stage, with a deadline of its own. Who does not has dropped out; below the quorum the
//!   round fails. Who has sent a masked update counts.
//! - Where late updates count, who is at work when collecting closes becomes a straggler: it goes
//!   on, and the next round takes its update, which it would otherwise be told to drop. A buffer of
//!   updates keeps as many at work as were invited: who delivers is replaced from the reserve.
//! - Aggregating: the counted updates, ordered by device, once per device.
//! - Evaluating: devices whose update counts judge the result, or the broker, or both, for half of
//!   the round's deadline at most. It never fails a round.
//!
//! Checks and aggregation have no deadline here: the shell answers each, after a restart too. The
//! broker's judgement is asked for again then.

use serde::{Deserialize, Serialize};

pub use self::aggregate::{Aggregate, Influence, Moved, Verdict};
use self::ending::{ask_again_ms, offer_evaluation};
pub use self::experience::Experience;
use self::masked::Said;
pub use self::masked::{Exchange, MASKED_DEVICES_MAX};
use self::member::{Member, shortened};
pub use self::outcome::{Judgement, Outcome};
use self::phase::Phase;
pub use self::plan::Plan;
pub use self::quarantine::Quarantines;
pub use self::select::Sampling;
pub(crate) use self::select::mixed;
pub use self::status::Status;
pub use self::straggler::{Base, Stragglers, Versions};
use self::traffic::Exchanged;
use self::update::Update;
use crate::id::{Attempt, BlobRef, DeviceId, Millis, RoundNumber};
use crate::report::{EvaluationReport, Failure, Progress, UpdateReport};
use crate::spec::{Purpose, is_default};

mod aggregate;
mod collect;
mod ending;
mod experience;
mod masked;
mod member;
mod outcome;
mod phase;
mod plan;
mod quarantine;
mod refusals;
mod select;
mod status;
mod straggler;
mod traffic;
mod update;

/// What happened to a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The shell looked up who is eligible and online; asked for by [`Effect::FindDevices`].
    /// While there are too few, the round asks again at [`Round::wake_at`].
    DevicesFound {
        /// Eligible devices; those to be invited first where the job remembers them.
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
    /// What a device says at a stage of a round with masks is in the object store.
    MessageReceived {
        /// Who.
        device: DeviceId,
        /// The stage.
        purpose: Purpose,
        /// Which offer.
        attempt: Attempt,
        /// What it says.
        message: BlobRef,
    },
    /// The shell looked into such a message; asked for by [`Effect::CheckMessage`].
    MessageChecked {
        /// Whose.
        device: DeviceId,
        /// The stage.
        purpose: Purpose,
        /// Which.
        message: BlobRef,
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
    /// The broker judged the new parameters; asked for by [`Effect::Evaluate`].
    Judged {
        /// The judgement.
        evaluation: EvaluationReport,
    },
    /// The broker cannot judge them.
    JudgementFailed {
        /// Why.
        failure: Failure,
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
    /// The new parameters are in the object store; asked for by [`Effect::Aggregate`].
    Aggregated(Aggregate),
    /// Aggregation, or a stage before it, is impossible.
    AggregationFailed {
        /// Why.
        failure: Failure,
    },
    /// An update that counts cannot be had any more, so new parameters have to be made without it; a
    /// possible answer to [`Effect::Aggregate`].
    UpdateGone {
        /// Whose.
        device: DeviceId,
        /// What became of it.
        failure: Failure,
    },
    /// The job ends before the round does.
    CancelRequested {
        /// Why.
        reason: String,
    },
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
        /// What it was trained from, unless that is the round's own.
        base: Option<Box<Base>>,
    },
    /// Look into what a device said at a stage, answer with [`Event::MessageChecked`].
    CheckMessage {
        /// Whose.
        device: DeviceId,
        /// The stage.
        purpose: Purpose,
        /// What was reported.
        message: BlobRef,
    },
    /// Make new parameters of masked updates, answer with [`Event::Aggregated`].
    Unmask {
        /// What devices reported of the updates that are in the sum, ordered by device.
        updates: Vec<(DeviceId, UpdateReport)>,
        /// What they said at each stage.
        exchange: Box<Exchange>,
    },
    /// Make new parameters of these, in this order, answer with [`Event::Aggregated`] or
    /// [`Event::UpdateGone`].
    Aggregate {
        /// Accepted updates, ordered by device.
        updates: Vec<(DeviceId, UpdateReport)>,
        /// Those of them that were trained from an earlier version, in the same order.
        stale: Vec<(DeviceId, Base)>,
    },
    /// An effect on a task of an earlier round, which a training makes one of that round.
    Earlier {
        /// Which round.
        round: RoundNumber,
        /// What.
        effect: Box<Effect>,
    },
    /// Judge the new parameters on data of the broker's own, answer with [`Event::Judged`] or
    /// [`Event::JudgementFailed`].
    Evaluate {
        /// What to judge.
        parameters: BlobRef,
    },
    /// The round is over.
    End(Box<Outcome>),
}

/// Devices that are invited or held in reserve in one round, at most: the stored state has to
/// fit into one message.
pub const DEVICES_MAX: usize = 1000;

/// The machine of one round; its whole state, so it can be stored after each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    plan: Plan,
    started_at: Millis,
    phase: Phase,
    /// Updates at which collecting closes; known when devices are invited.
    target: usize,
    /// Devices that were there then, those at work since earlier rounds included.
    #[serde(default, skip_serializing_if = "is_default")]
    there: usize,
    /// Everyone invited, ordered by device.
    members: Vec<Member<Update>>,
    /// Eligible devices that were not invited, the next one last.
    spares: Vec<DeviceId>,
    /// Eligible devices that would have been invited, had the round room for them; as many as are
    /// named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<DeviceId>,
    /// Those who train from an earlier round's parameters.
    #[serde(default, skip_serializing_if = "Stragglers::is_empty")]
    stragglers: Stragglers,
    /// Those who judge the result, ordered by device.
    judges: Vec<Member<EvaluationReport>>,
    /// What the broker says of the result, or why it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    judgement: Option<Judgement>,
    /// Those who are asked at the stage at work, ordered by device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    speakers: Vec<Member<Said>>,
    /// What devices said at the stages before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exchange: Option<Box<Exchange>>,
    /// How many bytes that was.
    #[serde(default, skip_serializing_if = "Exchanged::is_nothing")]
    exchanged: Exchanged,
}

impl Round {
    /// Begins a round; the effects are the first ones to perform.
    pub fn begin(now: Millis, plan: Plan) -> (Self, Vec<Effect>) {
        Self::begin_with(now, plan, Stragglers::default())
    }

    /// The same with devices that are at work since earlier rounds.
    pub fn begin_with(now: Millis, plan: Plan, mut stragglers: Stragglers) -> (Self, Vec<Effect>) {
        let mut effects = vec![Effect::FindDevices];
        effects.extend(plan.versions.iter().flat_map(|versions| stragglers.outdate(*versions)));
        let ask_again_at = now.plus(ask_again_ms(&plan.participation));
        let round = Self {
            plan,
            started_at: now,
            phase: Phase::Selecting { ask_again_at, found: 0 },
            target: 0,
            there: 0,
            members: Vec::new(),
            spares: Vec::new(),
            passed_over: Vec::new(),
            stragglers,
            judges: Vec::new(),
            judgement: None,
            speakers: Vec::new(),
            exchange: None,
            exchanged: Exchanged::default(),
        };
        (round, effects)
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    ///
    /// `now` of a report is the time at which the stream stored it, so that what waited there
    /// while no broker was up is judged by when it arrived; after a restart ticks come only when
    /// all that waited was applied.
    pub fn step(&mut self, now: Millis, event: &Event) -> Vec<Effect> {
        if let Some(effects) = self.step_earlier(now, self.plan.round, event) {
            return effects;
        }
        match event {
            Event::DevicesFound { devices } => self.devices_found(now, devices),
            Event::Accepted { device, purpose, attempt } => {
                self.accepted(device, *purpose, *attempt);
                Vec::new()
            }
            Event::Progressed { .. } => Vec::new(),
            Event::UpdateReceived { device, attempt, update } => {
                self.update_received(now, device, *attempt, update)
            }
            Event::UpdateChecked { device, parameters, refused } => {
                self.update_checked(now, device, parameters, refused.as_ref())
            }
            Event::MessageReceived { device, purpose, attempt, message } => {
                self.said(now, device, *purpose, *attempt, message)
            }
            Event::MessageChecked { device, purpose, message, refused } => {
                self.said_checked(now, device, *purpose, message, refused.as_ref())
            }
            Event::EvaluationReceived { device, attempt, evaluation } => {
                self.evaluation_received(now, device, *attempt, evaluation)
            }
            Event::Judged { evaluation } => self.broker_judged(now, evaluation),
            Event::JudgementFailed { failure } => {
                self.broker_said(now, Judgement::Missing(shortened(failure)))
            }
            Event::TaskFailed { device, purpose, attempt, failure } => {
                self.task_failed(now, device, *purpose, *attempt, failure)
            }
            Event::DeviceLost { device } => self.device_lost(now, device),
            Event::DeviceReturned { device } => self.device_returned(now, device),
            Event::Aggregated(aggregate) => self.aggregated(now, aggregate),
            Event::AggregationFailed { failure } => match self.phase {
                Phase::Aggregating { .. } | Phase::Exchanging { .. } => self.fail(now, failure),
                Phase::Selecting { .. }
                | Phase::Collecting { .. }
                | Phase::Evaluating { .. }
                | Phase::Ended { .. } => Vec::new(),
            },
            Event::UpdateGone { device, failure } => self.update_gone(now, device, failure),
            Event::CancelRequested { reason } => self.cancel(now, reason),
            Event::Tick => self.tick(now),
        }
    }

    /// Applies what happened to a task of round `of`; `None` when that is no straggler's.
    pub fn step_earlier(
        &mut self,
        now: Millis,
        of: RoundNumber,
        event: &Event,
    ) -> Option<Vec<Effect>> {
        if matches!(self.phase, Phase::Ended { .. }) {
            return None;
        }
        let mut effects = self.stragglers.step(now, of, event)?;
        effects.extend(self.settle(now));
        Some(effects)
    }

    /// Those who go on when the round has ended.
    pub(crate) fn take_stragglers(&mut self) -> Stragglers {
        std::mem::take(&mut self.stragglers).accounted()
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        let late = self.stragglers.due_at();
        match &self.phase {
            Phase::Selecting { ask_again_at, .. } => {
                [Some(*ask_again_at), self.deadline(), late].into_iter().flatten().min()
            }
            Phase::Collecting { closed: false, .. } => {
                let due = self.members.iter().filter_map(Member::due_at);
                due.chain(self.deadline()).chain(late).min()
            }
            Phase::Evaluating { .. } => {
                let due = self.judges.iter().filter_map(Member::due_at);
                due.chain(self.deadline()).chain(late).min()
            }
            Phase::Exchanging { closed: false, .. } => {
                self.speakers.iter().filter_map(Member::due_at).chain(self.deadline()).min()
            }
            Phase::Collecting { closed: true, .. }
            | Phase::Exchanging { closed: true, .. }
            | Phase::Aggregating { .. }
            | Phase::Ended { .. } => None,
        }
    }

    /// The effects that are still owed in this state: what to perform after a restart.
    /// Offers are repeated as the same attempts, which devices recognise.
    pub fn pending_effects(&self) -> Vec<Effect> {
        let mut owed = match &self.phase {
            Phase::Selecting { .. } => vec![Effect::FindDevices],
            Phase::Collecting { .. } => {
                let owed = self.members.iter().filter_map(|member| match member.answer() {
                    Some(update) => (!update.checked).then(|| Effect::CheckUpdate {
                        device: member.device.clone(),
                        update: update.report.clone(),
                        base: None,
                    }),
                    None => member.is_at_work().then(|| self.offer_training(member)),
                });
                owed.collect()
            }
            Phase::Exchanging { purpose, .. } => self.stage_owes(*purpose),
            Phase::Aggregating { .. } => vec![self.aggregate_counted()],
            Phase::Evaluating { aggregate, .. } => {
                let owed = self.judges.iter().filter(|judge| judge.is_at_work());
                let parameters = &aggregate.parameters;
                let offers = owed.map(|judge| offer_evaluation(judge, parameters));
                offers.chain(self.evaluation_owed(parameters)).collect()
            }
            Phase::Ended { outcome } => return vec![Effect::End(outcome.clone())],
        };
        owed.extend(self.stragglers.pending());
        owed
    }
}

#[cfg(test)]
mod tests;
