//! One device's part in a round: what it was offered and what came of it.

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, DeviceId, Millis};
use crate::report::{Failure, FailureCode};

/// An offer that nobody accepted is sent again after this time: it may have been lost.
pub(super) const OFFER_AGAIN_MS: Millis = Millis(5000);
/// A device that could not take or do its task rests for this time before it is offered again.
const REST_MS: Millis = Millis(1000);
/// A device that has its hands full rests for this time where the round cannot do without it.
const BUSY_REST_MS: Millis = Millis(5000);
/// Offers of different attempts to one device, at most.
const ATTEMPTS_MAX: Attempt = Attempt(10);
/// Characters of a device's message that are kept.
const MESSAGE_MAX: usize = 200;

/// A device and its task; `A` is what it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Member<A> {
    pub(super) device: DeviceId,
    /// The newest attempt that was offered, or will be after a rest.
    pub(super) attempt: Attempt,
    /// The newest attempt that came to an end.
    pub(super) ended: Attempt,
    /// Offline; what it answered still counts.
    pub(super) lost: bool,
    /// It had its second chance: after a failure, or with an update in place of another.
    pub(super) retried: bool,
    pub(super) standing: Standing<A>,
    /// How long after the close its answer came.
    pub(super) late_ms: Option<Millis>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing<A> {
    /// Offered; offered again at this time unless accepted before.
    Offered { again_at: Millis },
    /// Accepted.
    Working,
    /// To be offered again at this time, after this failure.
    Resting { until: Millis, after: Failure },
    /// It answered.
    Answered(A),
    /// Nothing more is expected of it.
    Out(Failure),
}

impl<A> Member<A> {
    /// A device that is offered its task for the first time.
    pub(super) fn invited(now: Millis, device: DeviceId) -> Self {
        Self {
            device,
            attempt: Attempt(1),
            ended: Attempt(0),
            lost: false,
            retried: false,
            standing: Standing::Offered { again_at: now.plus(OFFER_AGAIN_MS) },
            late_ms: None,
        }
    }

    /// Whether an answer is still expected, be the device lost or not.
    pub(super) fn is_open(&self) -> bool {
        match self.standing {
            Standing::Offered { .. } | Standing::Working | Standing::Resting { .. } => true,
            Standing::Answered(_) | Standing::Out(_) => false,
        }
    }

    /// Whether an answer is expected of a device that is there.
    pub(super) fn is_reachable(&self) -> bool {
        self.is_open() && !self.lost
    }

    /// Whether the device may be at work, so that it has to be told when it need not be.
    pub(super) fn is_at_work(&self) -> bool {
        matches!(self.standing, Standing::Offered { .. } | Standing::Working)
    }

    pub(super) fn answer(&self) -> Option<&A> {
        match &self.standing {
            Standing::Answered(answer) => Some(answer),
            Standing::Offered { .. }
            | Standing::Working
            | Standing::Resting { .. }
            | Standing::Out(_) => None,
        }
    }

    pub(super) fn accepted(&mut self, attempt: Attempt) {
        if attempt == self.attempt && matches!(self.standing, Standing::Offered { .. }) {
            self.standing = Standing::Working;
        }
    }

    /// Takes the answer of an attempt, unless that one had ended before; whether it was taken.
    pub(super) fn answered(&mut self, attempt: Attempt, answer: A) -> bool {
        let taken = self.is_open() && self.ended < attempt && attempt <= self.attempt;
        if taken {
            self.ended = attempt;
            self.standing = Standing::Answered(answer);
        }
        taken
    }

    /// Takes the failure of an attempt. Only that of the newest one matters: while it is open,
    /// an older one was given up.
    pub(super) fn task_failed(&mut self, now: Millis, attempt: Attempt, failure: &Failure) {
        if self.ends(attempt) {
            self.failed(now, failure);
        }
    }

    /// Takes the end of an attempt; whether that was the newest one, and open.
    pub(super) fn ends(&mut self, attempt: Attempt) -> bool {
        let taken = self.is_open() && self.ended < attempt && attempt <= self.attempt;
        if taken {
            self.ended = attempt;
        }
        taken && attempt == self.attempt
    }

    /// Lets the device rest before its second chance, or leaves it out.
    pub(super) fn failed(&mut self, now: Millis, failure: &Failure) {
        let failure = shortened(failure);
        let again = failure.code.is_transient() && !self.retried && self.attempt < ATTEMPTS_MAX;
        if again {
            self.retried = true;
            self.attempt = Attempt(self.attempt.0 + 1);
            self.standing = Standing::Resting { until: now.plus(REST_MS), after: failure };
        } else {
            self.standing = Standing::Out(failure);
        }
    }

    /// Whether it is there, had its hands full, and is to be asked again.
    pub(super) fn is_busy(&self) -> bool {
        let Standing::Resting { after, .. } = &self.standing else { return false };
        after.code == FailureCode::Busy && !self.lost
    }

    /// Whether it was left out because it had its hands full.
    pub(super) fn was_busy(&self) -> bool {
        matches!(&self.standing, Standing::Out(failure) if failure.code == FailureCode::Busy)
    }

    /// Lets a device that had its hands full rest: it is offered the same attempt again.
    pub(super) fn waited_for(&mut self, now: Millis) {
        let Standing::Out(after) = &self.standing else { return };
        let (until, after) = (now.plus(BUSY_REST_MS), after.clone());
        self.ended = Attempt(self.attempt.0.saturating_sub(1));
        self.standing = Standing::Resting { until, after };
    }

    /// Its answer cannot be used; after the close there is no second chance.
    pub(super) fn refused(&mut self, now: Millis, closed: bool, failure: &Failure) {
        if closed {
            self.standing = Standing::Out(shortened(failure));
        } else {
            self.failed(now, failure);
        }
    }

    /// Whether a device that came back is to be offered its task again.
    pub(super) fn returned(&mut self, now: Millis) -> bool {
        if !std::mem::take(&mut self.lost) || !self.is_open() {
            return false;
        }
        if !matches!(self.standing, Standing::Resting { .. }) {
            if self.attempt >= ATTEMPTS_MAX {
                let message = format!("went silent and came back {ATTEMPTS_MAX} times");
                self.standing = Standing::Out(Failure::new(FailureCode::DeviceLost, message));
                return false;
            }
            self.attempt = Attempt(self.attempt.0 + 1);
        }
        self.standing = Standing::Offered { again_at: now.plus(OFFER_AGAIN_MS) };
        true
    }

    /// When the device has to be offered its task again.
    pub(super) fn due_at(&self) -> Option<Millis> {
        match self.standing {
            Standing::Offered { again_at } if !self.lost => Some(again_at),
            Standing::Resting { until, .. } if !self.lost => Some(until),
            Standing::Offered { .. }
            | Standing::Resting { .. }
            | Standing::Working
            | Standing::Answered(_)
            | Standing::Out(_) => None,
        }
    }

    /// Whether it has to be offered now.
    pub(super) fn is_due(&mut self, now: Millis) -> bool {
        let due = self.due_at().is_some_and(|at| at <= now);
        if due {
            self.standing = Standing::Offered { again_at: now.plus(OFFER_AGAIN_MS) };
        }
        due
    }

    /// Why nothing came, if time is up now.
    pub(super) fn overdue(&self, waited: Millis) -> Failure {
        let late = |message: String| Failure::new(FailureCode::DeadlineExceeded, message);
        match &self.standing {
            _ if self.lost => silent(),
            Standing::Offered { .. } => late(format!("did not accept the task within {waited} ms")),
            Standing::Working => late(format!("accepted the task, no result within {waited} ms")),
            Standing::Resting { after, .. } | Standing::Out(after) => after.clone(),
            Standing::Answered(_) => late(format!("not counted within {waited} ms")),
        }
    }

    /// Why it gives nothing, if that is because of itself.
    pub(super) fn own_failure(&self) -> Option<Failure> {
        match &self.standing {
            Standing::Answered(_) => None,
            Standing::Out(failure) => Some(failure.clone()),
            _ if self.lost => Some(silent()),
            Standing::Resting { after, .. } => Some(after.clone()),
            Standing::Offered { .. } | Standing::Working => None,
        }
    }

    /// Why nothing of it is used, if the round fails now.
    pub(super) fn unused(&self, round: &Failure) -> Failure {
        let before = match &self.standing {
            Standing::Answered(_) => "its update was not used",
            Standing::Working => "was at work",
            Standing::Offered { .. } | Standing::Resting { .. } | Standing::Out(_) => {
                "had not accepted the task"
            }
        };
        // What cannot be combined is held against nobody: whose part was bad is not known.
        let blames = round.code == FailureCode::InvalidUpdate;
        let code = if blames { FailureCode::Cancelled } else { round.code };
        let with_the_round = || Failure::new(code, format!("{before}: {}", round.message));
        self.own_failure().unwrap_or_else(with_the_round)
    }
}

fn silent() -> Failure {
    Failure::new(FailureCode::DeviceLost, "went silent and did not come back in time")
}

/// A failure with a message of bounded length.
pub(super) fn shortened(failure: &Failure) -> Failure {
    Failure::new(failure.code, failure.message.chars().take(MESSAGE_MAX).collect::<String>())
}
