//! A federated training job: rounds one after another until they are enough.
//!
//! ```text
//!            ┌─── success, not enough ───┐
//!            ▼                           │
//!  begin ─▶ training ── enough ──▶ registering ──▶ ended
//!            │    ▲                                  ▲
//!     failed ▼    │ after a second                   │
//!          resting ── too many failed, deadline, cancelled
//! ```
//!
//! - Every round has a number of its own, also one that repeats a failed one: what was reported
//!   for another round never counts.
//! - Enough: `rounds` rounds gave new parameters, or the judgement (mean weighted by examples)
//!   reached `target_accuracy`, or has not improved for as long as `early_stopping` says. Then the
//!   newest parameters are registered, or with `keep: best` those that were judged best.
//! - Also enough: another round would exceed the budget of a private job. Without new parameters
//!   until then the job fails.
//! - A job that fails registers nothing; the parameters of its rounds were published.
//! - Every round that ended is published, a failed one too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{BlobRef, DeviceId, Millis, ModelRef, RoundNumber};
use crate::report::{Failure, FailureCode};
use crate::round::{
    self, Experience, Outcome, Plan, Quarantines, Round, Stragglers, Versions, mixed,
};
use crate::spec::{Strategy, TrainSpec, is_default};

mod absent;
mod carried;
mod counted;
mod ledger;
mod progress;
mod start;
mod traffic;
mod view;

pub use self::carried::{Anew, Before, Controls, carried};
use self::ledger::Ledger;
use self::progress::Progress;
pub use self::progress::{Best, Candidate, Enough};
pub use self::start::{Start, seed_of};

/// What happened to a training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "they are few, and do not wait")]
pub enum Event {
    /// Something in the round of this number; what is of no round at work, nor a straggler's, is
    /// ignored.
    Round {
        /// Which round.
        round: RoundNumber,
        /// What.
        event: round::Event,
    },
    /// The result is in the registry; asked for by [`Effect::Register`].
    Registered {
        /// Which model.
        model: ModelRef,
    },
    /// The result could not be registered.
    RegistrationFailed {
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
#[expect(clippy::large_enum_variant, reason = "they are few, and do not wait")]
pub enum Effect {
    /// An effect of the round of this number.
    Round {
        /// Which round.
        round: RoundNumber,
        /// What.
        effect: round::Effect,
    },
    /// Tell everyone that a round ended.
    PublishRound(Box<Outcome>),
    /// Register these parameters as a model version, answer with [`Event::Registered`].
    Register {
        /// The result.
        parameters: BlobRef,
    },
    /// The job is over.
    End(Box<Ending>),
}

/// How a training job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// The registered result.
    pub model: Option<ModelRef>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// Of a job that succeeded: the round whose parameters were registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<RoundNumber>,
    /// Of a job that succeeded: why no further round followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enough: Option<Enough>,
}

/// Full outcomes that are kept, at most: they are written and read with each step. All are stored
/// one by one.
pub const OUTCOMES_MAX: usize = 8;
/// Devices named in the outcomes before the last one, at most: the stored state has to fit
/// into one message.
const OUTCOME_DEVICES_MAX: usize = 400;
/// Pause after a failed round, so that whatever failed can recover.
const REST_MS: Millis = Millis(1000);

/// The machine of a training job; its whole state, stored after each step that has effects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    spec: TrainSpec,
    deadline: Millis,
    phase: Phase,
    /// The newest global parameters.
    parameters: BlobRef,
    /// What the server optimizer keeps with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_state: Option<BlobRef>,
    /// The parameters as they travel to devices, where they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded: Option<BlobRef>,
    /// The round that made them; 0 for the initial ones.
    #[serde(default)]
    made_by: RoundNumber,
    /// The number of the newest round.
    number: RoundNumber,
    succeeded: u32,
    failed_in_a_row: u32,
    accuracy: Option<f64>,
    #[serde(default, skip_serializing_if = "Progress::is_empty")]
    progress: Progress,
    /// What was seen of devices, where the selection asks for it.
    #[serde(default, skip_serializing_if = "Experience::is_empty")]
    experience: Experience,
    /// What is held against devices, where the job keeps some out.
    #[serde(default, skip_serializing_if = "Quarantines::is_empty")]
    quarantines: Quarantines,
    round: Option<Round>,
    /// Devices that were there when the newest round invited some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    there: Option<usize>,
    /// Who would have taken part in the round at work, had it been there, and why it was not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    absent: Vec<(DeviceId, Failure)>,
    /// Between two rounds, those who are at work since earlier ones.
    #[serde(default, skip_serializing_if = "Stragglers::is_empty")]
    stragglers: Stragglers,
    /// The newest outcomes, the oldest first.
    history: Vec<Outcome>,
    /// The last round in which a device's update counted, where that is asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    counted: BTreeMap<DeviceId, RoundNumber>,
    /// What devices keep of a job before, until an update of theirs counts in this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controls: Option<Controls>,
    /// Rounds of jobs that this one goes on from.
    #[serde(default, skip_serializing_if = "is_default")]
    rounds_before: u32,
    /// What was spent of the budget of a private job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ledger: Option<Ledger>,
    /// What only those know who may know who takes part in a round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret_seed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Phase {
    /// A round is at work.
    Training,
    /// A round failed, the next one begins then.
    Resting { until: Millis },
    /// Enough rounds: the result goes into the registry.
    Registering,
    /// Over.
    Ended { ending: Box<Ending> },
}

impl Training {
    /// Begins with the initial parameters; all is over by `deadline`, a point in time.
    pub fn begin(
        now: Millis,
        spec: TrainSpec,
        deadline: Millis,
        parameters: BlobRef,
    ) -> (Self, Vec<Effect>) {
        Self::begin_with(now, spec, deadline, Start::of(parameters))
    }

    /// The same with all that there may be to begin with.
    pub fn begin_with(
        now: Millis,
        spec: TrainSpec,
        deadline: Millis,
        Start { parameters, encoded, server_state, controls, rounds_before, secret_seed }: Start,
    ) -> (Self, Vec<Effect>) {
        let mut training = Self {
            ledger: spec.privacy.as_ref().map(Ledger::of),
            secret_seed,
            spec,
            deadline,
            phase: Phase::Training,
            parameters,
            server_state,
            encoded,
            made_by: RoundNumber(0),
            number: RoundNumber(0),
            succeeded: 0,
            failed_in_a_row: 0,
            accuracy: None,
            progress: Progress::default(),
            experience: Experience::default(),
            quarantines: Quarantines::default(),
            round: None,
            there: None,
            absent: Vec::new(),
            stragglers: Stragglers::default(),
            history: Vec::new(),
            counted: BTreeMap::new(),
            controls,
            rounds_before,
        };
        let effects = training.begin_round(now);
        (training, effects)
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    ///
    /// For `now` see [`Round::step`].
    pub fn step(&mut self, now: Millis, event: &Event) -> Vec<Effect> {
        match event {
            Event::Round { round, event } => self.in_round(now, *round, event),
            Event::Registered { model } => match self.phase {
                Phase::Registering => self.end(Some(model.clone()), None),
                Phase::Training | Phase::Resting { .. } | Phase::Ended { .. } => Vec::new(),
            },
            Event::RegistrationFailed { failure } => match self.phase {
                Phase::Registering => self.end(None, Some(failure.clone())),
                Phase::Training | Phase::Resting { .. } | Phase::Ended { .. } => Vec::new(),
            },
            Event::CancelRequested => {
                self.stop(now, Failure::new(FailureCode::Cancelled, "stopped on request"))
            }
            Event::Tick if self.deadline <= now => {
                let (done, wanted) = (self.succeeded, self.spec.rounds);
                let message = format!("the job's time is over after {done} of {wanted} rounds");
                self.stop(now, Failure::new(FailureCode::DeadlineExceeded, message))
            }
            Event::Tick => match self.phase {
                Phase::Training => self.in_round(now, self.number, &round::Event::Tick),
                Phase::Resting { until } if until <= now => self.begin_round(now),
                Phase::Resting { .. } | Phase::Registering | Phase::Ended { .. } => Vec::new(),
            },
        }
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        match self.phase {
            Phase::Training => {
                let round = self.round.as_ref().and_then(Round::wake_at);
                Some(round.map_or(self.deadline, |at| at.min(self.deadline)))
            }
            Phase::Resting { until } => Some(until.min(self.deadline)),
            Phase::Registering | Phase::Ended { .. } => None,
        }
    }

    /// The effects still owed in this state: what to perform after a restart. That the last
    /// round ended may have been published before.
    pub fn pending_effects(&self) -> Vec<Effect> {
        let last = self.history.last().map(|last| Effect::PublishRound(Box::new(last.clone())));
        let mut effects: Vec<Effect> = last.into_iter().collect();
        match &self.phase {
            Phase::Training => {
                let owed = self.round.as_ref().map(Round::pending_effects).unwrap_or_default();
                effects.extend(owed.into_iter().map(|effect| self.of_round(effect)));
            }
            Phase::Resting { .. } => {
                effects.extend(self.stragglers.pending().map(|effect| self.of_round(effect)));
            }
            Phase::Registering => {
                effects.push(Effect::Register { parameters: self.result().parameters });
            }
            Phase::Ended { ending } => effects.push(Effect::End(ending.clone())),
        }
        effects
    }

    /// Begins the next round, or ends where the budget of a private job does not allow for it.
    fn begin_round(&mut self, now: Millis) -> Vec<Effect> {
        match self.budget_spent() {
            Some(_) if self.succeeded > 0 => return self.register(),
            Some(reason) => {
                return self.end(None, Some(Failure::new(FailureCode::BudgetSpent, reason)));
            }
            None => {}
        }
        self.number = RoundNumber(self.number.0.saturating_add(1));
        self.phase = Phase::Training;
        let staleness = self.spec.staleness();
        let (round, effects) = Round::begin_with(
            now,
            Plan {
                round: self.number,
                parameters: self.parameters.clone(),
                encoded: self.encoded.clone(),
                participation: self.spec.participation.clone(),
                evaluate: self.spec.evaluate,
                seed: mixed(self.spec.seed ^ mixed(u64::from(self.in_all(self.number)))),
                sampling: self.sampling(),
                hoped: self.there,
                masked: self.spec.secure_aggregation.map(|secure| secure.stage_deadline_ms),
                versions: staleness.map(|staleness| Versions {
                    newest: self.succeeded,
                    staleness_max: staleness.staleness_max,
                    timeout_ms: self.spec.training_timeout_ms(),
                    refills: matches!(self.spec.strategy, Strategy::FedBuff(_)),
                }),
            },
            std::mem::take(&mut self.stragglers),
        );
        self.round = Some(round);
        effects.into_iter().map(|effect| self.of_round(effect)).collect()
    }

    fn in_round(&mut self, now: Millis, of: RoundNumber, event: &round::Event) -> Vec<Effect> {
        let (mut effects, ended) = self.drive(now, of, event);
        if let Some(outcome) = ended {
            effects.extend(self.after_round(now, &outcome));
        }
        effects
    }

    /// Applies an event on a task of round `of` to the round at work; when that ends, it is
    /// recorded and published.
    fn drive(
        &mut self,
        now: Millis,
        of: RoundNumber,
        event: &round::Event,
    ) -> (Vec<Effect>, Option<Box<Outcome>>) {
        let (last, misses_absent) = (self.last_in_turn(), self.misses_absent());
        let Some(round) = &mut self.round else {
            let late = self.stragglers.between_rounds(now, of, event);
            return (late.into_iter().map(|effect| self.of_round(effect)).collect(), None);
        };
        let (mut effects, mut ended) = (Vec::new(), None);
        let event = &*self.quarantines.admitted(self.number, event);
        for effect in self.experience.step(now, round, of, event, last.as_ref()) {
            if let round::Effect::End(outcome) = effect {
                ended = Some(outcome);
            } else {
                self.pay_for(&effect);
                effects.push(self.of_round(effect));
            }
        }
        if let Some(outcome) = &mut ended {
            self.add_controls(outcome);
            self.subtract_held(outcome);
            let absent = std::mem::take(&mut self.absent);
            outcome.name_absent(if misses_absent { absent } else { Vec::new() });
            if let Some(policy) = &self.spec.participation.quarantine {
                let most = self.spec.left_out_max(outcome.updates.len());
                self.quarantines.ended(policy, most, outcome);
            }
            self.account(outcome);
            if let Some(mut round) = self.round.take() {
                self.there = round.there().or(self.there);
                self.stragglers = round.take_stragglers();
            }
            if outcome.failure.is_none() {
                self.made_by = outcome.round;
                self.succeeded += 1;
                self.failed_in_a_row = 0;
                self.parameters = outcome.parameters.clone();
                self.server_state.clone_from(&outcome.server_state);
                self.encoded.clone_from(&outcome.encoded);
                self.accuracy = outcome.accuracy().or(self.accuracy);
                self.progress.note(&self.spec, outcome, self.succeeded);
                self.count(outcome);
            } else {
                self.failed_in_a_row += 1;
            }
            outcome.best = self.progress.best(&self.spec);
            self.record((**outcome).clone());
            effects.push(Effect::PublishRound(outcome.clone()));
        }
        (effects, ended)
    }

    /// What follows a round that ended.
    fn after_round(&mut self, now: Millis, outcome: &Outcome) -> Vec<Effect> {
        if let Some(last) = &outcome.failure {
            let limit = self.spec.participation.failed_rounds_max.max(1);
            if self.failed_in_a_row < limit {
                self.phase = Phase::Resting { until: now.plus(REST_MS) };
                return Vec::new();
            }
            let message = format!("{limit} rounds in a row failed, the last: {}", last.message);
            return self.end(None, Some(Failure::new(last.code, message)));
        }
        if self.enough().is_some() { self.register() } else { self.begin_round(now) }
    }

    fn register(&mut self) -> Vec<Effect> {
        self.phase = Phase::Registering;
        let mut effects = self.dismiss_stragglers();
        effects.push(Effect::Register { parameters: self.result().parameters });
        effects
    }

    /// Ends the job early, unless the round at work has just become the last one.
    fn stop(&mut self, now: Millis, failure: Failure) -> Vec<Effect> {
        match self.phase {
            Phase::Training => {
                let stopped = round::Event::CancelRequested { reason: failure.message.clone() };
                let (mut effects, ended) = self.drive(now, self.number, &stopped);
                let last = ended.filter(|last| last.failure.is_none());
                effects.extend(match last.and_then(|_| self.enough()) {
                    Some(_) => self.register(),
                    None => self.end(None, Some(failure)),
                });
                effects
            }
            Phase::Resting { .. } => self.end(None, Some(failure)),
            Phase::Registering | Phase::Ended { .. } => Vec::new(),
        }
    }

    fn end(&mut self, model: Option<ModelRef>, failure: Option<Failure>) -> Vec<Effect> {
        let (round, enough) = match &model {
            Some(_) => (Some(self.result().round), self.enough()),
            None => (None, None),
        };
        let ending = Box::new(Ending { model, failure, round, enough });
        self.phase = Phase::Ended { ending: ending.clone() };
        let mut effects = self.dismiss_stragglers();
        effects.push(Effect::End(ending));
        effects
    }

    fn record(&mut self, outcome: Outcome) {
        let mut devices = 0;
        let kept = self.history.iter().rev().take(OUTCOMES_MAX - 1).take_while(|outcome| {
            devices += outcome.updates.len() + outcome.missing.len() + outcome.evaluations.len();
            devices <= OUTCOME_DEVICES_MAX
        });
        let kept = kept.count();
        self.history.drain(..self.history.len() - kept);
        self.history.push(outcome);
    }

    /// Tells those who are at work since earlier rounds to stop.
    fn dismiss_stragglers(&mut self) -> Vec<Effect> {
        let told = self.stragglers.dismiss();
        told.into_iter().map(|effect| self.of_round(effect)).collect()
    }

    fn of_round(&self, effect: round::Effect) -> Effect {
        if let round::Effect::Earlier { round, effect } = effect {
            return Effect::Round { round, effect: *effect };
        }
        Effect::Round { round: self.number, effect }
    }
}

#[cfg(test)]
mod tests;
