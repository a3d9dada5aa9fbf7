//! The device's updates that brokers did not use: in the log, and the newest in what is measured.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jobs::device::Refusal;
use jobs::id::Millis;
use jobs::spec::TaskId;

/// Refusals that are remembered, at most: every measurement has them.
const REMEMBERED_MAX: usize = 8;
/// Characters of a reason that are kept.
const REASON_MAX: usize = 300;

/// The newest refusals, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    /// A broker told that it could not use what a task gave; it may tell so twice.
    pub(crate) fn note(&self, at: Millis, task: &TaskId, reason: &str) {
        let reason: String = reason.chars().take(REASON_MAX).collect();
        let refusal = Refusal { job: task.job.clone(), round: task.round, at, reason };
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |known: &Refusal| Refusal { at, ..known.clone() } == refusal;
        if newest.iter().any(is_known) {
            return;
        }
        let (job, round) = (&task.job, task.round.0);
        tracing::warn!(%job, round, reason = refusal.reason, "this device's update was not used");
        newest.push_back(refusal);
        if newest.len() > REMEMBERED_MAX {
            newest.pop_front();
        }
    }

    /// What is remembered, the newest last.
    pub(crate) fn newest(&self) -> Vec<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::{Attempt, RoundNumber};
    use jobs::spec::Purpose;

    use super::*;

    fn task(round: u32) -> TaskId {
        let (job, purpose) = ("job".parse().unwrap(), Purpose::Train);
        TaskId { job, round: RoundNumber(round), purpose, attempt: Attempt(0) }
    }

    #[test]
    fn the_newest_are_kept_each_once() {
        let refusals = Refusals::default();
        for round in 1..=20 {
            refusals.note(Millis(round.into()), &task(round), "NaN");
            refusals.note(Millis(99), &task(round), "NaN");
        }
        let newest = refusals.newest();
        let rounds: Vec<u32> = newest.iter().map(|refusal| refusal.round.0).collect();
        assert_eq!(rounds, (13..=20).collect::<Vec<_>>());
        assert_eq!(newest[0].at, Millis(13), "when it was told first");
        refusals.note(Millis(1), &task(20), &"x".repeat(1000));
        assert_eq!(refusals.newest().last().unwrap().reason.len(), REASON_MAX);
    }
}
