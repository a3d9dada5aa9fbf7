//! A federated training job: rounds one after another until they are enough.
//!
//! Owns the [`Round`] at work, the history of those before it, and the best parameters.

use serde::{Deserialize, Serialize};

use crate::id::{BlobRef, Millis};
use crate::report::Failure;
use crate::round::{self, Outcome, Round};
use crate::spec::TrainSpec;

/// What happened to a training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// Something in the round of this number; events of other rounds are ignored.
    Round {
        /// Which round.
        round: crate::id::RoundNumber,
        /// What.
        event: round::Event,
    },
    /// The result is in the registry; asked for by [`Effect::Register`].
    Registered {
        /// Which model.
        model: crate::id::ModelRef,
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
pub enum Effect {
    /// An effect of the round of this number.
    Round {
        /// Which round.
        round: crate::id::RoundNumber,
        /// What.
        effect: round::Effect,
    },
    /// Tell everyone that a round ended.
    PublishRound(Box<Outcome>),
    /// Register these parameters as a model version, answer with [`Event::Registered`].
    Register {
        /// The final parameters.
        parameters: BlobRef,
    },
    /// The job is over.
    End(Box<Ending>),
}

/// How a training job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// The registered result.
    pub model: Option<crate::id::ModelRef>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
}

/// The machine of a training job; its whole state, stored after each step that has effects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    spec: TrainSpec,
    round: Option<Round>,
    history: Vec<Outcome>,
}

impl Training {
    /// Begins with the initial parameters.
    pub fn begin(
        _now: Millis,
        _spec: TrainSpec,
        _deadline: Millis,
        _parameters: BlobRef,
    ) -> (Self, Vec<Effect>) {
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

    /// Rounds that ended, oldest first.
    pub fn history(&self) -> &[Outcome] {
        &self.history
    }

    /// The round at work.
    pub fn round(&self) -> Option<&Round> {
        self.round.as_ref()
    }
}
