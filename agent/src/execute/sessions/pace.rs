//! How long an engine takes for a model, by its trial and by what it answered since, and when one
//! that does not answer is measured again: pure, the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Runs that are remembered: so many in a row tell that an engine is slower than it was.
const NEWEST: usize = 16;
/// By which part of its figure they must be slower: engines that are about as fast do not take turns.
const SLOWER: u32 = 4;
/// The first pause before an engine is measured again; tests of whole agents wait for its end.
const PAUSE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_mins(1) };
/// The longest one, unless a measurement takes long.
const PAUSE_MAX: Duration = Duration::from_hours(1);
/// The least part of the time that is left to others.
const COST: u32 = 500;

/// What is known of the time that runs take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs {
    newest: VecDeque<Duration>,
    figure: Option<Duration>,
}

impl Runs {
    pub(super) fn of(time: Duration) -> Self {
        Self { newest: VecDeque::from([time]), figure: Some(time) }
    }

    /// Notes a run. A shorter one counts at once, for whatever else is at work only adds to it;
    /// longer ones when there were [`NEWEST`] in a row.
    pub(super) fn note(&mut self, time: Duration) {
        if self.newest.len() == NEWEST {
            self.newest.pop_front();
        }
        self.newest.push_back(time);
        let shortest = self.newest.iter().min().copied().unwrap_or(time);
        let slower = |figure: Duration| {
            self.newest.len() == NEWEST && shortest > figure.saturating_add(figure / SLOWER)
        };
        if self.figure.is_none_or(|figure| time < figure || slower(figure)) {
            self.figure = Some(shortest);
        }
    }

    /// The time that counts.
    pub(super) fn figure(&self) -> Option<Duration> {
        self.figure
    }
}

/// When an engine is measured again, though it does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Review {
    pause: Duration,
    due: Instant,
}

impl Review {
    pub(super) fn new(now: Instant) -> Self {
        Self { pause: PAUSE, due: now + PAUSE }
    }

    /// It answered, which measured it.
    pub(super) fn answered(&mut self, now: Instant) {
        self.due = self.due.max(now + self.pause);
    }

    /// It was measured again, which took so long: not soon again.
    pub(super) fn reviewed(&mut self, took: Duration, now: Instant) {
        self.pause = (self.pause * 2).min(PAUSE_MAX).max(took.saturating_mul(COST));
        self.due = now + self.pause;
    }

    /// Whether it is to be measured again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(time: u64) -> Duration {
        Duration::from_micros(time)
    }

    #[test]
    fn a_figure_of_a_bad_moment_is_corrected_by_one_answer() {
        let mut runs = Runs::of(micros(12_280));
        runs.note(micros(240));
        assert_eq!(runs.figure(), Some(micros(240)));
        for _ in 1..NEWEST {
            runs.note(micros(9000));
            assert_eq!(runs.figure(), Some(micros(240)), "others are at work");
        }
        runs.note(micros(9000));
        assert_eq!(runs.figure(), Some(micros(9000)), "it is slower now");
    }

    proptest! {
        #[test]
        fn a_figure_is_about_the_shortest_of_the_newest(
            times in prop::collection::vec(1..2000_u64, 1..80),
        ) {
            let mut runs = Runs::default();
            for (index, time) in times.iter().enumerate() {
                runs.note(micros(*time));
                let newest = &times[(index + 1).saturating_sub(NEWEST)..=index];
                let shortest = *newest.iter().min().unwrap();
                let figure = u64::try_from(runs.figure().unwrap().as_micros()).unwrap();
                prop_assert!(times[..=index].contains(&figure));
                prop_assert!(figure <= shortest);
                prop_assert!(newest.len() < NEWEST || shortest <= figure + figure / 4 + 1);
            }
        }

        #[test]
        fn measuring_again_takes_little_of_the_time(
            steps in prop::collection::vec((0..100_000_u64, 0..2000_u64, any::<bool>()), 0..100),
        ) {
            let begun = Instant::now();
            let (mut now, mut review, mut spent) = (begun, Review::new(begun), Duration::ZERO);
            for (pause, took, answers) in steps {
                now += Duration::from_millis(pause);
                if answers {
                    review.answered(now);
                    prop_assert!(!review.is_due(now));
                } else if review.is_due(now) {
                    prop_assert!(spent * COST <= now - begun);
                    let took = Duration::from_millis(took);
                    spent += took;
                    review.reviewed(took, now);
                }
                let longest = PAUSE_MAX.max(Duration::from_secs(2) * COST);
                prop_assert!(review.is_due(now + longest));
            }
        }
    }

    #[test]
    fn who_does_not_answer_is_measured_less_and_less_often() {
        let mut now = Instant::now();
        let mut review = Review::new(now);
        let mut pause = PAUSE;
        for _ in 0..12 {
            assert!(!review.is_due(now + pause.saturating_sub(micros(1))));
            assert!(review.is_due(now + pause));
            now += pause;
            review.reviewed(micros(10), now);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        assert_eq!(pause, PAUSE_MAX);
    }
}
