//! Trainings with a privacy budget: what can be seen of the data is paid for in what is stored, once
//! for each round, and never more than the budget.

use jobs::id::RoundNumber;
use jobs::report::FailureCode;
use jobs::round::Outcome;
use jobs::spec::{Privacy, PrivacyMode};
use jobs::training::{Ending, Enough};

use crate::world::World;

/// What seeds promise by the broker or by the devices: enough for three rounds. Late updates do not
/// go with it.
pub(crate) fn promise(seed: u64) -> Option<Privacy> {
    let mode = match seed / 8 % 3 {
        1 if seed % 3 != 1 => "central",
        2 if seed % 3 != 1 => "local",
        _ => return None,
    };
    let promise = format!("{mode}:norm=1,noise_multiplier=2,delta=1e-5,epsilon_budget=4");
    Some(promise.parse().unwrap())
}

impl World {
    pub(crate) fn is_private(&self, mode: PrivacyMode) -> bool {
        self.spec.privacy.is_some_and(|privacy| privacy.mode == mode)
    }

    /// Something of a round is about to be seen: noise on a mean of these updates, or devices are
    /// asked that add noise themselves.
    pub(crate) fn release(&mut self, round: RoundNumber, updates: &[u64]) -> Result<(), String> {
        let stored = serde_json::to_value(&self.stored.machine).unwrap();
        let paid = stored["ledger"]["last"].as_u64().unwrap_or_default();
        if paid < round.0.into() {
            return Err(format!("round {round} is seen, stored as paid for is {paid}"));
        }
        // Two means of one round tell more than one.
        let before = self.released.entry(round).or_insert_with(|| updates.to_vec());
        if *before != updates {
            return Err(format!("round {round} is seen of {updates:?} after {before:?}"));
        }
        let (seen, privacy) = (self.released.len(), self.spec.privacy.unwrap());
        if !privacy.allows(u32::try_from(seen).unwrap()) {
            return Err(format!("{seen} rounds are seen, the budget allows for fewer"));
        }
        Ok(())
    }
}

/// A round that is published says what was spent: nothing that was seen is forgotten.
pub(crate) fn published(world: &mut World, outcome: &Outcome) -> Result<(), String> {
    let Some(privacy) = world.spec.privacy else { return Ok(()) };
    let round = outcome.round;
    let Some(spent) = outcome.privacy else {
        return Err(format!("round {round} does not say what was spent"));
    };
    let seen = world.released.range(..=round).count();
    if (spent.rounds as usize) < seen || !privacy.allows(spent.rounds) {
        return Err(format!("round {round}: {} rounds are paid for, {seen} seen", spent.rounds));
    }
    if outcome.failure.is_none() && !world.released.contains_key(&round) {
        return Err(format!("round {round} gave parameters that nobody paid for"));
    }
    world.counts.rounds_private += 1;
    Ok(())
}

/// Whether the budget is why there are no more than so many good rounds.
pub(crate) fn is_spent(world: &World, ending: &Ending, good: usize) -> bool {
    let last = world.published.values().next_back().and_then(|outcome| outcome.privacy);
    let Some((privacy, spent)) = world.spec.privacy.zip(last) else { return false };
    let code = ending.failure.as_ref().map(|failure| failure.code);
    let said = match good {
        0 => code == Some(FailureCode::BudgetSpent),
        _ => ending.enough == Some(Enough::PrivacyBudget),
    };
    said && !privacy.allows(spent.rounds + 1)
}
