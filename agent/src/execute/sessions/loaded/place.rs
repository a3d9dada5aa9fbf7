//! An engine, and the model in it if it is there.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use models::engine::choice::{Standing, State};
use models::engine::frames::Cause;

use super::super::health::Health;
use crate::engines::{AnySession, HelperError, SessionError};

/// After so long a trial that was asked for and did not end is asked for again.
const TRIAL_LOST: Duration = Duration::from_mins(5);

/// Numbers of examples that are remembered, at most.
const SEEN_MAX: usize = 64;

/// Examples of the trial of a batch: as many as need a run of each size that engines have, 16, 4
/// and 1.
pub(in crate::execute::sessions) const BATCH: u32 = 21;

/// What is known of many examples at once in an engine that is none of the CPU's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::execute::sessions) enum Batches {
    /// They were not compared with the CPU's so far: it gets one example at a time.
    #[default]
    Untried,
    /// The same from now on: it failed with them, or they cannot be compared.
    Singly,
    /// It gets them; those of [`BATCH`] took so long, if they were measured.
    Whole(Option<Duration>),
}

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

impl Trial {
    /// Of an engine that did not load the model; what it lacks `passes`, such as memory, or tells of
    /// the model.
    pub(in crate::execute::sessions) fn of_loading(error: &SessionError, passes: bool) -> Self {
        let reason = error.to_string();
        match error {
            SessionError::Helped(HelperError::Busy(_)) => Self::Busy,
            SessionError::Helped(HelperError::Failed(_) | HelperError::Gone(_)) => {
                Self::Failed(reason)
            }
            SessionError::Helped(HelperError::Refused { cause: Cause::Other, .. }) if passes => {
                Self::Failed(reason)
            }
            SessionError::Own(_)
            | SessionError::Absent(_)
            | SessionError::Helped(HelperError::Refused { .. }) => Self::Refused(reason),
        }
    }
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
    batches: Batches,
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
        let (batches, wanted, late) = (Batches::default(), false, 0);
        let seen = BTreeSet::new();
        Self {
            engine,
            cpu,
            state,
            batches,
            session,
            health,
            trial,
            tried_since,
            wanted,
            late,
            seen,
        }
    }

    /// How it stands now towards a request of so many examples; a reason says when it is tried
    /// again.
    pub(super) fn standing(&self, examples: usize, now: Instant) -> Standing {
        let state = match (&self.state, self.health.rests_for(now)) {
            (State::Measured(one), _) => State::Measured(self.time(*one, examples)),
            (State::Failed(reason), Some(rest)) => {
                let seconds = rest.as_secs_f64().ceil();
                State::Failed(format!("{reason} (it is tried again in {seconds} s)"))
            }
            (state, _) => state.clone(),
        };
        Standing { engine: self.engine, cpu: self.cpu, state }
    }

    /// The time for so many examples, of which one takes `one`: on the line through what was
    /// measured.
    fn time(&self, one: Duration, examples: usize) -> Duration {
        let examples = u32::try_from(examples).unwrap_or(u32::MAX);
        let each = match self.batches {
            Batches::Whole(Some(all)) => all.saturating_sub(one) / (BATCH - 1),
            Batches::Whole(None) | Batches::Untried | Batches::Singly => one,
        };
        one.saturating_add(each.saturating_mul(examples.saturating_sub(1)))
    }

    /// Examples that it is given at once, at most.
    pub(super) fn most(&self) -> usize {
        match self.batches {
            Batches::Untried | Batches::Singly if !self.cpu => 1,
            Batches::Untried | Batches::Singly | Batches::Whole(_) => usize::MAX,
        }
    }

    /// Its session, where it is to be held to the CPU's with many examples too.
    pub(super) fn uncompared(&self) -> Option<&AnySession> {
        let due = self.batches == Batches::Untried && matches!(self.state, State::Measured(_));
        self.session.as_ref().filter(|_| due && !self.cpu)
    }

    /// Whether it is at work for a trial, and may answer meanwhile.
    pub(super) fn is_tried(&self) -> bool {
        !self.cpu && self.tried_since.is_some()
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
            State::Measured(_) => self.uncompared().is_some(),
            State::Refused(_) => false,
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
        if let Batches::Whole(_) = self.batches {
            self.batches = Batches::Untried;
        }
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

    /// It is to be held to an engine of the CPU before it answers again.
    pub(super) fn compare(&mut self) {
        self.cpu = false;
        if let State::Measured(_) = self.state {
            self.state = State::Ready;
        }
        if let Batches::Whole(_) = self.batches {
            self.batches = Batches::Untried;
        }
    }

    /// Notes what came of a trial with many examples, unless the session that was tried is gone.
    pub(super) fn put_batches(
        &mut self,
        outcome: Result<Batches, Trial>,
        session: &AnySession,
        now: Instant,
    ) {
        (self.trial, self.tried_since) = (None, None);
        if !self.session.as_ref().is_some_and(|own| own.is(session)) {
            return;
        }
        match outcome {
            // There was nobody to compare with, or others were at work: not at once again.
            Ok(Batches::Untried) => self.trial = Some(now),
            Ok(batches) => {
                if let Batches::Whole(Some(_)) = batches {
                    self.seen.insert(BATCH as usize);
                }
                self.batches = batches;
            }
            Err(trial) => {
                self.put(trial, now);
                self.batches = Batches::Singly;
            }
        }
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
        let State::Failed(reason) = place.standing(1, now).state else { panic!("{place:?}") };
        assert!(reason.starts_with("out of memory (it is tried again in "), "{reason}");
        assert!(place.is_open(now + LONG) && place.take_trial(now + LONG));
        let State::Failed(reason) = place.standing(1, now + LONG).state else {
            panic!("{place:?}")
        };
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
    fn many_examples_take_what_was_measured_and_come_singly_where_they_were_not_compared() {
        let now = Instant::now();
        let millis = Duration::from_millis;
        let session = || {
            let tract = crate::engines::Cpu::find(&crate::engines::Options::default());
            tract.load("native", &models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap()).unwrap()
        };
        for (batches, most, of_21, of_41) in [
            (Batches::Untried, 1, 210, 410),
            (Batches::Singly, 1, 210, 410),
            (Batches::Whole(None), usize::MAX, 210, 410),
            (Batches::Whole(Some(millis(30))), usize::MAX, 30, 50),
            (Batches::Whole(Some(millis(5))), usize::MAX, 10, 10),
        ] {
            let mut place = Place::new("webgpu", false);
            let session = session();
            place.put(Trial::Well(State::Measured(millis(10)), session.clone()), now);
            assert!(place.uncompared().is_some() && place.take_trial(now) && place.most() == 1);
            place.put_batches(Ok(batches), &session, now);
            assert!(!place.take_trial(now), "not at once again");
            assert_eq!(place.take_trial(now + TRIAL_LOST), batches == Batches::Untried);
            let time = |examples| place.standing(examples, now).state;
            assert_eq!(time(1), State::Measured(millis(10)));
            assert_eq!(time(21), State::Measured(millis(of_21)), "{batches:?}");
            assert_eq!(time(41), State::Measured(millis(of_41)), "{batches:?}");
            assert_eq!(place.most(), most);
            assert_eq!(place.has_seen(BATCH as usize), matches!(batches, Batches::Whole(Some(_))));
        }
    }

    #[test]
    fn who_failed_with_many_examples_gets_one_after_the_other_once_it_is_back() {
        let now = Instant::now();
        let native = crate::engines::Cpu::find(&crate::engines::Options::default());
        let onnx = models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap();
        let session = || native.load("native", &onnx).unwrap();
        let well = || Trial::Well(State::Measured(Duration::from_millis(10)), session());
        let mut place = Place::new("webgpu", false);
        place.put(well(), now);
        let tried = place.session.clone().unwrap();
        place.tried_since = Some(now);
        assert!(place.is_tried());
        place.put_batches(Ok(Batches::Whole(None)), &session(), now);
        assert!(!place.is_tried() && place.most() == 1, "another session was tried");
        place.put_batches(Err(Trial::Failed("signal 9".into())), &tried, now);
        assert!(place.session.is_none() && !place.is_open(now) && place.take_trial(now + LONG));
        place.put(well(), now + LONG);
        assert!(place.most() == 1 && place.uncompared().is_none());
    }

    #[test]
    fn the_cpus_engine_is_open_to_requests_while_it_rests() {
        let now = Instant::now();
        let mut place = Place::new("tract", true);
        place.put(Trial::Failed("signal 9".into()), now);
        assert!(place.is_open(now) && !place.take_trial(now));
    }
}
