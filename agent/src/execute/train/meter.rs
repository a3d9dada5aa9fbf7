//! How far a training is: counted after each batch, told now and then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datasets::Sums;
use jobs::id::Millis;
use jobs::report::Progress;

/// Time between two reports of progress, at least.
const EVERY: Duration = Duration::from_millis(500);

/// The newest progress of a training. The one who trains never waits for the one who tells: what
/// was not taken before there is newer is replaced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latest(Arc<Mutex<Option<Progress>>>);

impl Latest {
    /// Puts progress there; whether nothing waited.
    fn put(&self, progress: Progress) -> bool {
        self.slot().replace(progress).is_none()
    }

    /// Takes what is there.
    pub(crate) fn take(&self) -> Option<Progress> {
        self.slot().take()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Steps of a training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// Of one epoch.
    pub(super) per_epoch: u64,
    /// Of all.
    pub(super) all: u64,
}

/// Counts steps, and says now and then how far they are.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) step: u64,
    steps: Steps,
    began: Instant,
    /// Steps that were taken before `began`.
    before: u64,
    reported: Instant,
    since: Sums,
    latest: Latest,
}

impl Meter {
    /// Begins after `step` steps.
    pub(super) fn new(steps: Steps, step: u64) -> Self {
        let (now, since, latest) = (Instant::now(), Sums::default(), Latest::default());
        Self { step, steps, began: now, before: step, reported: now, since, latest }
    }

    /// Whether every step was taken.
    pub(super) fn is_done(&self) -> bool {
        self.step >= self.steps.all
    }

    /// The epoch of the next step, counted from 0, and the steps of it that were taken.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.step / self.steps.per_epoch, self.step % self.steps.per_epoch)
    }

    /// Counts a step; gives what to tell when it is time and nothing waits to be told.
    pub(super) fn count(&mut self, loss: f64, correct: usize, examples: usize) -> Option<Latest> {
        let epoch = self.place().0 + 1;
        self.step += 1;
        self.since.add(loss, correct, examples);
        let elapsed = self.reported.elapsed();
        if elapsed < EVERY {
            return None;
        }
        let since = std::mem::take(&mut self.since);
        self.reported = Instant::now();
        let progress = Progress {
            step: self.step,
            steps: self.steps.all,
            loss: since.loss(),
            examples_per_second: since.count() / elapsed.as_secs_f64(),
            accuracy: Some(since.accuracy()),
            epoch: Some(u32::try_from(epoch).unwrap_or(u32::MAX)),
            remaining_ms: Some(self.remaining(self.began.elapsed())),
        };
        self.latest.put(progress).then(|| self.latest.clone())
    }

    /// Time to the last step, at the mean speed of `elapsed`.
    fn remaining(&self, elapsed: Duration) -> Millis {
        let (taken, left) = (self.step - self.before, self.steps.all.saturating_sub(self.step));
        let left = elapsed.as_millis() * u128::from(left) / u128::from(taken.max(1));
        Millis(u64::try_from(left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: Steps = Steps { per_epoch: 10, all: 30 };

    fn late(meter: &mut Meter) {
        meter.reported = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
    }

    #[test]
    fn progress_is_told_now_and_then_and_the_newest_wins() {
        let mut meter = Meter::new(STEPS, 12);
        assert!(meter.count(1.0, 2, 4).is_none(), "too soon");
        late(&mut meter);
        let latest = meter.count(3.0, 4, 4).unwrap();
        late(&mut meter);
        assert!(meter.count(0.5, 1, 4).is_none(), "what was there waits already");
        let progress = latest.take().unwrap();
        assert_eq!((progress.step, progress.steps, progress.epoch), (15, 30, Some(2)));
        assert!((progress.loss - 0.5).abs() < 1e-12 && progress.accuracy == Some(0.25));
        let speed = progress.examples_per_second;
        assert!((1.5..=2.0).contains(&speed), "4 examples in 2 s: {speed}");
        assert_eq!(latest.take(), None);
        late(&mut meter);
        assert!(meter.count(0.5, 1, 4).is_some(), "told again once it was taken");
    }

    #[test]
    fn the_time_left_is_that_of_the_steps_taken_here() {
        let mut meter = Meter::new(STEPS, 20);
        meter.step = 24;
        assert_eq!(meter.remaining(Duration::from_secs(8)), Millis(12_000));
        assert_eq!((meter.place(), meter.is_done()), ((2, 4), false));
        meter.step = 30;
        assert_eq!((meter.remaining(Duration::from_secs(8)), meter.is_done()), (Millis(0), true));
    }
}
