//! What a training tells of itself.

use super::{Candidate, Ending, Enough, Phase, Training, seed_of};
use crate::id::{BlobRef, DeviceId, Millis, RoundNumber};
use crate::round::{Outcome, Round, Stragglers};
use crate::spec::TrainSpec;

impl Training {
    /// The newest rounds that ended, oldest first: [`OUTCOMES_MAX`](super::OUTCOMES_MAX) at most,
    /// and fewer when they name many devices.
    pub fn history(&self) -> &[Outcome] {
        &self.history
    }

    /// The round at work.
    pub fn round(&self) -> Option<&Round> {
        self.round.as_ref()
    }

    /// Whether a device is in the round at work, or at work since an earlier one, or in a round whose
    /// outcome is [known](Training::history).
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.round.as_ref().is_some_and(|round| round.is_invited(device))
            || self.stragglers().devices().any(|straggler| straggler == device)
            || self.history.iter().any(|outcome| outcome.names(device))
    }

    /// Whether a device's update from a round may still come. One that trains for it in vain was
    /// not there when it was told to stop.
    pub fn awaits(&self, round: RoundNumber, device: &DeviceId) -> bool {
        let at_work = self.round.as_ref().filter(|at_work| at_work.plan().round == round);
        at_work.is_some_and(|at_work| at_work.awaits(device))
            || self.stragglers().awaits(round, device)
    }

    /// The number of the newest round, at work or not.
    pub fn number(&self) -> RoundNumber {
        self.number
    }

    /// The number of a round if those of the jobs that this one goes on from are counted too.
    pub(super) fn in_all(&self, round: RoundNumber) -> u32 {
        self.rounds_before.saturating_add(round.0)
    }

    /// The [seed](seed_of) of a round.
    pub fn seed(&self, round: RoundNumber) -> u64 {
        seed_of(self.spec.seed, self.in_all(round))
    }

    /// All is over by then.
    pub fn deadline(&self) -> Millis {
        self.deadline
    }

    /// What is trained, and how.
    pub fn spec(&self) -> &TrainSpec {
        &self.spec
    }

    /// The newest global parameters.
    pub fn parameters(&self) -> &BlobRef {
        &self.parameters
    }

    /// What the server optimizer keeps with [`Training::parameters`].
    pub fn server_state(&self) -> Option<&BlobRef> {
        self.server_state.as_ref()
    }

    /// Devices that train from an earlier round's parameters.
    pub fn stragglers(&self) -> &Stragglers {
        self.round.as_ref().map_or(&self.stragglers, Round::stragglers)
    }

    /// [`Training::parameters`] as they travel to devices, where they are encoded.
    pub fn encoded(&self) -> Option<&BlobRef> {
        self.encoded.as_ref()
    }

    /// What a device gets in place of parameters that it is offered, where they are encoded.
    pub fn encoded_of(&self, parameters: &BlobRef) -> Option<&BlobRef> {
        let made = self.round.as_ref().and_then(Round::made);
        let made = made.map(|made| (&made.parameters, &made.encoded));
        let earlier = self.stragglers().bases().map(|base| (&base.parameters, &base.encoded));
        let mut known = made.into_iter().chain([(&self.parameters, &self.encoded)]).chain(earlier);
        known.find(|(known, _)| *known == parameters)?.1.as_ref()
    }

    /// What is registered if no further round follows.
    pub fn result(&self) -> Candidate {
        self.progress.kept(&self.spec).cloned().unwrap_or_else(|| Candidate {
            round: self.made_by,
            rounds_done: self.succeeded,
            parameters: self.parameters.clone(),
            accuracy: self.accuracy,
        })
    }

    /// Rounds that gave new parameters.
    pub fn rounds_done(&self) -> u32 {
        self.succeeded
    }

    /// The accuracy of the newest parameters that were evaluated.
    pub fn accuracy(&self) -> Option<f64> {
        self.accuracy
    }

    /// How it ended, if it did.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Ended { ending } => Some(ending),
            Phase::Training | Phase::Resting { .. } | Phase::Registering => None,
        }
    }

    /// Whether a round that gave new parameters was the last one, and why.
    pub(super) fn enough(&self) -> Option<Enough> {
        let judged = self.history.last().and_then(Outcome::accuracy);
        if self.succeeded >= self.spec.rounds {
            Some(Enough::Rounds)
        } else if self.spec.target_accuracy.zip(judged).is_some_and(|(target, now)| now >= target) {
            Some(Enough::TargetAccuracy)
        } else {
            let stale = self.spec.early_stopping.filter(|early| self.progress.is_stale(early));
            let stale = stale.map(|_| Enough::EarlyStopping);
            stale.or_else(|| self.budget_spent().map(|_| Enough::PrivacyBudget))
        }
    }
}
