//! When an engine that failed with a model is tried again: pure, the time is an argument.
//!
//! ```text
//! well    --it failed with a request--> due, at once
//! well    --the IN_A_ROW-th time in a row--> resting
//! well    --it answered GOOD requests--> well, as if it had never failed
//! due     --it was tried, and failed--> resting
//! due     --it was tried, and is trusted--> well
//! resting --REST has passed, twice as long after each rest, REST_MAX at most--> due
//! any     --its numbers were wrong--> lost: never due again
//! ```
//!
//! Requests alone count as answers: an engine that passes its trial and fails with the next request
//! comes to rest.

use std::time::{Duration, Instant};

/// Failures in a row after which an engine rests.
const IN_A_ROW: u32 = 3;
/// Answers without a failure after which the failures before them are forgotten.
const GOOD: u32 = 16;
/// The first rest; tests of whole agents wait for its end.
const REST: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_mins(1) };
/// The longest one.
const REST_MAX: Duration = Duration::from_hours(1);

/// How an engine fared with a model lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// Failures in a row.
    failures: u32,
    /// Answers since the last of them.
    answers: u32,
    /// The last rest.
    rest: Duration,
    until: Option<Instant>,
    lost: bool,
}

impl Health {
    /// It answered a request.
    pub(super) fn answered(&mut self) {
        self.answers = self.answers.saturating_add(1);
        if self.answers >= GOOD && !self.lost {
            *self = Self { answers: GOOD, ..Self::default() };
        }
    }

    /// It failed with a request.
    pub(super) fn failed(&mut self, now: Instant) {
        self.answers = 0;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= IN_A_ROW {
            self.rest(now);
        }
    }

    /// It was tried, and failed.
    pub(super) fn trial_failed(&mut self, now: Instant) {
        self.answers = 0;
        self.rest(now);
    }

    /// It was tried, and gave other numbers than the engine that it is held to.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    /// Whether it may be tried.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.lost && self.until.is_none_or(|until| now >= until)
    }

    /// How long it rests from now on; `None` if it does not.
    pub(super) fn rests_for(&self, now: Instant) -> Option<Duration> {
        let left = self.until?.saturating_duration_since(now);
        (!self.lost && !left.is_zero()).then_some(left)
    }

    fn rest(&mut self, now: Instant) {
        self.rest = (self.rest * 2).clamp(REST, REST_MAX);
        self.until = Some(now + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_tried_at_once_a_few_times_and_then_rests_longer_and_longer() {
        let mut now = Instant::now();
        let mut health = Health::default();
        assert!(health.is_due(now));
        for _ in 1..IN_A_ROW {
            health.failed(now);
            assert!(health.is_due(now) && health.rests_for(now).is_none());
        }
        let mut rest = REST;
        for _ in 0..12 {
            health.failed(now);
            assert_eq!(health.rests_for(now), Some(rest));
            assert!(!health.is_due(now) && !health.is_due(now + rest.saturating_sub(SECOND)));
            now += rest;
            assert!(health.is_due(now) && health.rests_for(now).is_none());
            rest = (rest * 2).min(REST_MAX);
        }
        assert_eq!(rest, REST_MAX);
    }

    #[test]
    fn a_trial_that_failed_is_followed_by_a_rest() {
        let now = Instant::now();
        let mut health = Health::default();
        health.trial_failed(now);
        assert_eq!(health.rests_for(now), Some(REST));
        health.trial_failed(now + REST);
        assert_eq!(health.rests_for(now + REST), Some(2 * REST));
    }

    #[test]
    fn failures_that_lie_far_apart_are_forgotten() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..100 {
            health.failed(now);
            assert!(health.is_due(now));
            for _ in 0..GOOD {
                health.answered();
            }
        }
        health.trial_failed(now);
        for _ in 0..GOOD {
            health.answered();
        }
        health.trial_failed(now);
        assert_eq!(health.rests_for(now), Some(REST), "rests are forgotten as well");
    }

    #[test]
    fn answers_between_failures_do_not_hide_that_there_are_many() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..IN_A_ROW {
            for _ in 1..GOOD {
                health.answered();
            }
            assert!(health.is_due(now));
            health.failed(now);
        }
        assert!(!health.is_due(now));
    }

    #[test]
    fn wrong_numbers_are_final() {
        let now = Instant::now();
        let mut health = Health::default();
        health.lose();
        for _ in 0..2 * GOOD {
            health.answered();
        }
        assert!(!health.is_due(now + 2 * REST_MAX) && health.rests_for(now).is_none());
    }
}
