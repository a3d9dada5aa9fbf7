//! What is done with the updates of a round.

use jobs::id::BlobRef;
use jobs::training::Training;
use link::secret::Secret;

use super::private::Private;
use super::rules::{self, Start};
use super::server::{self, Base};

/// How updates become new parameters.
#[derive(Debug, Clone)]
pub(in crate::coordinator) enum How {
    /// By their mean; they were trained from these parameters.
    Mean(BlobRef),
    /// By a server optimizer's step against it.
    Step(Base),
    /// By a rule that looks at all of them, and a server optimizer's step against its result if
    /// there is one.
    Rule(Box<Start>),
    /// By their mean with noise.
    Private(Box<Private>),
}

impl How {
    /// As a training's strategy says, in the round at work.
    pub(in crate::coordinator) fn of(training: &Training, secret: &Secret) -> Self {
        if let Some(private) = Private::of(training, secret) {
            return Self::Private(Box::new(private));
        }
        let spec = training.spec();
        let parameters = training.parameters().clone();
        let state = training.server_state().cloned();
        let optimizer = server::optimizer(&spec.strategy).map(|optimizer| Base {
            optimizer,
            parameters: parameters.clone(),
            state: state.clone(),
        });
        match (optimizer, rules::rule(spec)) {
            (optimizer, Some(rule)) => {
                let population = training.population();
                let (control, version) = (state, training.rounds_done());
                Self::Rule(Box::new(Start {
                    rule,
                    parameters,
                    control,
                    population,
                    optimizer,
                    version,
                }))
            }
            (Some(base), None) => Self::Step(base),
            (None, None) => Self::Mean(parameters),
        }
    }

    /// What the updates were trained from.
    pub(super) fn base(&self) -> &BlobRef {
        match self {
            Self::Mean(parameters) => parameters,
            Self::Step(base) => &base.parameters,
            Self::Rule(start) => &start.parameters,
            Self::Private(private) => &private.base,
        }
    }
}
