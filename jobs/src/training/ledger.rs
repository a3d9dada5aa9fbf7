//! What a private training has spent.

use serde::{Deserialize, Serialize};

use super::Training;
use crate::id::RoundNumber;
use crate::privacy::Spent;
use crate::round::{self, Outcome, mixed};
use crate::spec::{Noised, Privacy, PrivacyMode, Purpose, SecureAggregation, TrainSpec};

/// The rounds that were paid for. A round is paid for before anything of it can be seen: in the
/// state that is stored before its updates are combined, or before devices are asked that add
/// noise themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ledger {
    rounds: u32,
    /// The newest round that was paid for.
    last: RoundNumber,
    /// The longest update that counts in the round at work.
    norm: f64,
}

impl Ledger {
    pub(super) fn of(privacy: &Privacy) -> Self {
        Self { rounds: 0, last: RoundNumber(0), norm: privacy.initial_norm() }
    }

    /// Pays for a round, once.
    pub(super) fn pay(&mut self, round: RoundNumber) {
        if self.last < round {
            (self.rounds, self.last) = (self.rounds.saturating_add(1), round);
        }
    }

    /// See [`Ledger`].
    pub(super) fn norm(&self) -> f64 {
        self.norm
    }

    /// A round gave new parameters: the norm follows what it found.
    pub(super) fn adapt(&mut self, privacy: &Privacy, within: Option<f64>) {
        self.norm = privacy.next_norm(self.norm, within);
    }

    /// Why there cannot be another round, if there cannot.
    pub(super) fn exhausted(&self, privacy: &Privacy) -> Option<String> {
        let next = self.rounds.saturating_add(1);
        if privacy.allows(next) {
            return None;
        }
        let (rounds, budget, delta) = (self.rounds, privacy.epsilon_budget, privacy.delta);
        let (spent, next) = (privacy.epsilon(rounds), privacy.epsilon(next));
        Some(format!(
            "the privacy budget is spent: epsilon {spent:.4} of {budget} at delta {delta} after \
             {rounds} rounds, another would make it {next:.4}"
        ))
    }

    /// What was spent until now.
    pub(super) fn spent(&self, spec: &TrainSpec) -> Option<Spent> {
        let privacy = spec.privacy.as_ref()?;
        let planned = match privacy.mode {
            PrivacyMode::Central => spec.participation.devices,
            PrivacyMode::Local => None,
        };
        Some(Spent {
            rounds: self.rounds,
            epsilon: privacy.epsilon(self.rounds),
            delta: privacy.delta,
            noise_multiplier: privacy.noise_multiplier,
            sampling_rate: privacy.sampling_rate,
            planned,
            norm: self.norm,
        })
    }
}

/// What a private job is allowed.
impl Training {
    /// The longest update that counts in the round at work of a private job.
    pub fn norm(&self) -> Option<f64> {
        self.ledger.as_ref().map(Ledger::norm)
    }

    /// What devices do to their updates in a job that is private by them.
    pub fn noised(&self) -> Option<Noised> {
        let privacy = self.spec.privacy.filter(|it| it.mode == PrivacyMode::Local)?;
        let norm = self.norm()?;
        Some(Noised { norm, noise_multiplier: privacy.noise_multiplier })
    }

    /// The longest update that devices send in the round at work of a job that is private by the
    /// broker, which does not see how long they are.
    pub fn update_norm_max(&self) -> Option<f64> {
        let masked = self.spec.secure_aggregation.is_some();
        self.spec.privacy.filter(|it| masked && it.mode == PrivacyMode::Central)?;
        self.norm()
    }

    /// How updates of the round at work are masked. Those that are shortened to a norm move no
    /// parameter farther, so that devices which do not shorten theirs cannot either.
    pub fn secure_aggregation(&self) -> Option<SecureAggregation> {
        let secure = self.spec.secure_aggregation?;
        #[expect(clippy::cast_possible_truncation, reason = "norms are within the range of f32")]
        let norm = self.update_norm_max().map_or(secure.clip, |norm| norm as f32);
        Some(SecureAggregation { clip: secure.clip.min(norm), ..secure })
    }

    /// Why the budget of a private job allows for no further round, if it does not.
    pub(super) fn budget_spent(&self) -> Option<String> {
        let (privacy, ledger) = self.spec.privacy.as_ref().zip(self.ledger.as_ref())?;
        ledger.exhausted(privacy)
    }

    /// A private round is paid for before its effects are performed.
    pub(super) fn pay_for(&mut self, effect: &round::Effect) {
        let (Some(privacy), Some(ledger)) = (&self.spec.privacy, &mut self.ledger) else { return };
        let shows = match (privacy.mode, effect) {
            (
                PrivacyMode::Central,
                round::Effect::Aggregate { .. } | round::Effect::Unmask { .. },
            ) => true,
            (PrivacyMode::Local, round::Effect::Offer { purpose, .. }) => {
                *purpose == Purpose::Train
            }
            (PrivacyMode::Central | PrivacyMode::Local, _) => false,
        };
        if shows {
            ledger.pay(self.number);
        }
    }

    /// Says in an outcome what was spent until then.
    pub(super) fn account(&mut self, outcome: &mut Outcome) {
        let (Some(privacy), Some(ledger)) = (&self.spec.privacy, &mut self.ledger) else { return };
        outcome.privacy = ledger.spent(&self.spec);
        if outcome.failure.is_none() {
            ledger.adapt(privacy, outcome.within);
        }
    }

    /// How a round of a private job draws devices, if it does.
    pub(super) fn sampling(&self) -> Option<round::Sampling> {
        let rate = self.spec.privacy.as_ref()?.sampling_rate;
        let secret = mixed(self.secret_seed.unwrap_or_default());
        let seed = mixed(secret ^ mixed(u64::from(self.number.0)));
        (rate < 1.0).then_some(round::Sampling { rate, seed })
    }
}
