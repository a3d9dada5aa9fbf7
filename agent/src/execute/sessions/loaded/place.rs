//! An engine, and the model in it if it is there.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use models::engine::choice::{Standing, State};

use super::super::health::Health;
use crate::engines::AnySession;

/// After so long a trial that was asked for and did not end is asked for again.
const TRIAL_LOST: Duration = Duration::from_mins(5);

/// Numbers of examples that are remembered, at most.
const SEEN_MAX: usize = 64;

/// What came of a trial.
#[derive(Debug)]
pub(in crate::execute::sessions) enum Trial {
    /// It may answer, if it is one of the CPU's or was measured.
    Well(State, AnySession),
    /// It was not asked: others were at work.
    Busy,
    /// It is not to be had on this device, or does not take the model.
    Refused(String),
    /// It failed, which may pass.
    Failed(String),
    /// It gave other numbers than the CPU.
    Wrong(String),
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well(state, _) => write!(f, "{state:?}"),
            Self::Busy => f.write_str("others were at work"),
            Self::Refused(reason) | Self::Failed(reason) | Self::Wrong(reason) => {
                f.write_str(reason)
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) engine: &'static str,
    /// Whether it is one of the CPU's.
    pub(super) cpu: bool,
    pub(super) state: State,
    pub(super) session: Option<AnySession>,
    pub(super) health: Health,
    /// When a trial in the background was asked for, until it has ended.
    pub(super) trial: Option<Instant>,
    /// Since when it is being tried, where it is.
    pub(super) tried_since: Option<Instant>,
    /// Whether a request is to be answered by it, so that it keeps the model.
    pub(super) wanted: bool,
    /// Calls that go on though nobody waits any more.
    pub(super) late: u32,
    /// Numbers of examples that this session has answered for.
    seen: BTreeSet<usize>,
}

impl Place {
    pub(super) fn new(engine: &'static str, cpu: bool) -> Self {
        let (state, health) = (State::Untried, Health::default());
        let (session, trial, tried_since) = (None, None, None);
        let (wanted, late, seen) = (false, 0, BTreeSet::new());
        Self { engine, cpu, state, session, health, trial, tried_since, wanted, late, seen }
    }

    /// How it stands now; a reason says when it is tried again.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let state = match (&self.state, self.health.rests_for(now)) {
            (State::Failed(reason), Some(rest)) => {
                let seconds = rest.as_secs_f64().ceil();
                State::Failed(format!("{reason} (it is tried again in {seconds} s)"))
            }
            (state, _) => state.clone(),
        };
        Standing { engine: self.engine, cpu: self.cpu, state }
    }

    /// Whether a request that allows no engine that is ready may wait for it.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Untried => true,
            State::Ready | State::Measured(_) => self.session.is_none() || !self.cpu,
            // Behind the CPU's there is no other.
            State::Failed(_) => self.cpu || self.health.is_due(now),
            State::Refused(_) => false,
        }
    }

    /// Whether it is to be tried in the background, which is asked for once.
    pub(super) fn take_trial(&mut self, now: Instant) -> bool {
        let due = match self.state {
            State::Failed(_) => self.health.is_due(now),
            State::Untried | State::Ready => !self.cpu,
            State::Measured(_) | State::Refused(_) => false,
        };
        let asked = self.trial.is_some_and(|since| now.duration_since(since) < TRIAL_LOST);
        if due && !asked {
            self.trial = Some(now);
        }
        due && !asked
    }

    /// Notes what came of a trial.
    pub(super) fn put(&mut self, trial: Trial, now: Instant) {
        (self.trial, self.tried_since) = (None, None);
        // The golden input is one example.
        self.seen = BTreeSet::from([1]);
        (self.state, self.session) = match trial {
            Trial::Well(state, session) => (state, Some(session)),
            Trial::Busy => (State::Untried, None),
            Trial::Refused(reason) => (State::Refused(reason), None),
            Trial::Failed(reason) => {
                self.health.trial_failed(now);
                (State::Failed(reason), None)
            }
            Trial::Wrong(reason) => {
                self.health.lose();
                (State::Failed(reason), None)
            }
        };
    }

    /// Notes that it answered for so many examples.
    pub(super) fn answered(&mut self, examples: usize) {
        self.health.answered();
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(examples);
        }
    }

    /// Whether it has answered for so many examples.
    pub(super) fn has_seen(&self, examples: usize) -> bool {
        self.seen.contains(&examples)
    }

    /// Notes that it failed with a request.
    pub(super) fn fail(&mut self, reason: String, now: Instant) {
        self.health.failed(now);
        self.gone(reason);
    }

    /// Notes that its process is gone, by another model's fault.
    pub(super) fn gone(&mut self, reason: String) {
        self.session = None;
        self.state = State::Failed(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(2);

    #[test]
    fn who_failed_is_tried_again_after_a_while_and_says_when() {
        let now = Instant::now();
        let mut place = Place::new("cuda", false);
        assert!(place.is_open(now) && place.take_trial(now));
        assert!(!place.take_trial(now), "it was asked for");
        place.put(Trial::Failed("out of memory".into()), now);
        assert!(!place.is_open(now) && !place.take_trial(now), "no request waits for it");
        let State::Failed(reason) = place.standing(now).state else { panic!("{place:?}") };
        assert!(reason.starts_with("out of memory (it is tried again in "), "{reason}");
        assert!(place.is_open(now + LONG) && place.take_trial(now + LONG));
        let State::Failed(reason) = place.standing(now + LONG).state else { panic!("{place:?}") };
        assert_eq!(reason, "out of memory");
        assert!(place.take_trial(now + LONG + TRIAL_LOST), "a trial that was lost");
    }

    #[test]
    fn who_was_not_asked_is_tried_with_the_next_request() {
        let now = Instant::now();
        let mut place = Place::new("cuda", false);
        place.put(Trial::Busy, now);
        assert!(place.is_open(now) && place.take_trial(now));
    }

    #[test]
    fn who_cannot_or_is_wrong_is_not_tried_again() {
        let now = Instant::now();
        for trial in [Trial::Refused("operator Mod".into()), Trial::Wrong("it differs".into())] {
            let mut place = Place::new("cuda", false);
            place.put(trial, now);
            assert!(!place.is_open(now + LONG) && !place.take_trial(now + LONG), "{place:?}");
        }
    }

    #[test]
    fn a_number_of_examples_is_new_until_it_was_answered() {
        let now = Instant::now();
        let mut place = Place::new("webgpu", false);
        place.put(Trial::Busy, now);
        assert!(place.has_seen(1) && !place.has_seen(16));
        place.answered(16);
        assert!(place.has_seen(16));
        place.put(Trial::Busy, now);
        assert!(!place.has_seen(16), "another session compiles again");
    }

    #[test]
    fn the_cpus_engine_is_open_to_requests_while_it_rests() {
        let now = Instant::now();
        let mut place = Place::new("tract", true);
        place.put(Trial::Failed("signal 9".into()), now);
        assert!(place.is_open(now) && !place.take_trial(now));
    }
}
