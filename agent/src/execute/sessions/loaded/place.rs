//! An engine, and the model in it if it is there.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use models::engine::choice::{Standing, State};
use models::engine::frames::Cause;

use super::super::health::Health;
use super::super::pace::{Review, Runs};
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
    /// Times of one example; their figure is the measured state's.
    one: Runs,
    /// Times of [`BATCH`] examples at once.
    many: Runs,
    review: Review,
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
        let (one, many) = (Runs::default(), Runs::default());
        let review = Review::new(Instant::now());
        Self {
            engine,
            cpu,
            state,
            one,
            many,
            review,
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
        let each = match self.many.figure().filter(|_| self.gets_many()) {
            Some(all) => all.saturating_sub(one) / (BATCH - 1),
            None => one,
        };
        one.saturating_add(each.saturating_mul(examples.saturating_sub(1)))
    }

    /// Whether many examples are one run.
    fn gets_many(&self) -> bool {
        match self.batches {
            Batches::Whole(all) => all.is_some(),
            Batches::Untried | Batches::Singly => self.cpu,
        }
    }

    /// Notes how long it took for so many examples.
    fn timed(&mut self, examples: usize, whole: Duration) {
        let State::Measured(one) = self.state else { return };
        match u32::try_from(examples).unwrap_or(u32::MAX) {
            0 | 1 => self.one.note(whole),
            examples if self.gets_many() => {
                let others = whole.saturating_sub(one).saturating_mul(BATCH - 1) / (examples - 1);
                self.many.note(one.saturating_add(others));
            }
            examples => self.one.note(whole / examples),
        }
        self.state = State::Measured(self.one.figure().unwrap_or(one));
    }

    /// Whether it is to be measured again, though it does not answer.
    pub(super) fn is_review_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Measured(_)) && self.late == 0 && self.review.is_due(now)
    }

    /// Notes what came of measuring it again, which took so long.
    pub(super) fn put_review(&mut self, run: Option<Duration>, took: Duration, now: Instant) {
        (self.trial, self.tried_since) = (None, None);
        if let Some(run) = run {
            self.timed(1, run);
        }
        self.review.reviewed(took, now);
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
            State::Measured(_) => self.uncompared().is_some() || self.is_review_due(now),
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
            (self.batches, self.many) = (Batches::Untried, Runs::default());
        }
        (self.state, self.session) = match trial {
            Trial::Well(state, session) => {
                if let State::Measured(time) = state
                    && self.one.figure() != Some(time)
                {
                    self.one = Runs::of(time);
                }
                (state, Some(session))
            }
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
            (self.batches, self.many) = (Batches::Untried, Runs::default());
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
                if let Batches::Whole(Some(time)) = batches {
                    self.seen.insert(BATCH as usize);
                    self.many = Runs::of(time);
                }
                self.batches = batches;
            }
            Err(trial) => {
                self.put(trial, now);
                self.batches = Batches::Singly;
            }
        }
    }

    /// Notes that it answered for so many examples, and how long it took.
    pub(super) fn answered(&mut self, examples: usize, whole: Duration, now: Instant) {
        self.health.answered();
        let at_once = examples.min(self.most());
        // Otherwise it may have compiled.
        if self.has_seen(at_once) {
            self.timed(examples, whole);
        }
        self.review.answered(now);
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(at_once);
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
mod tests;
