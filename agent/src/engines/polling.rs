//! Hybrid polling for an answer that comes about when the last ones came: asleep until shortly
//! before, awake from then on.
//!
//! A processor that has nothing to do sleeps the deeper the longer, and a virtual one is given back
//! to its machine: after some milliseconds it takes 0.1 to 0.3 ms to run the thread that an answer
//! wakes, more than all else that a helper costs. Disks that answer within microseconds are waited
//! for in this way too (Linux: hybrid polling of block devices).

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Answers that say what is usual: an odd number, of which less than half may be outliers.
const ANSWERS: usize = 3;
/// How much earlier and later than usual an answer is waited for awake: a share of the usual time
/// for how much answers differ, and the time of falling asleep and waking up.
const SHARE: u32 = 16;
const WAKING: Duration = Duration::from_micros(200);
/// At most, whatever is usual.
const MARGIN_MAX: Duration = Duration::from_millis(10);

/// How long the last answers took.
#[derive(Debug, Default)]
pub(super) struct Usual {
    last: [Duration; ANSWERS],
    answers: usize,
}

impl Usual {
    pub(super) fn note(&mut self, took: Duration) {
        self.last[self.answers % ANSWERS] = took;
        self.answers += 1;
    }

    /// The median; `None` before there are enough.
    pub(super) fn median(&self) -> Option<Duration> {
        let mut sorted = self.last;
        sorted.sort_unstable();
        (self.answers >= ANSWERS).then_some(sorted[ANSWERS / 2])
    }
}

/// Waits for something to read, as long as staying awake may pay and not beyond the deadline;
/// whether there is something shows the next read.
pub(super) fn poll_around(fd: impl AsFd, usual: Duration, deadline: Instant) {
    // The only processor is the one that the helper answers with.
    if thread::available_parallelism().map_or(1, usize::from) == 1 {
        return;
    }
    let now = Instant::now();
    let margin = (usual / SHARE + WAKING).min(MARGIN_MAX);
    let awake_until = (now + usual + margin).min(deadline);
    let asleep = usual.saturating_sub(margin).min(deadline.saturating_duration_since(now));
    if readable(&fd, asleep) {
        return;
    }
    while Instant::now() < awake_until && !readable(&fd, Duration::ZERO) {
        // Where all processors are at work the helper goes before.
        thread::yield_now();
    }
}

/// Whether there is something to read, or nothing will ever be, within so long.
fn readable(fd: impl AsFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).ok();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    // After a signal the next read waits.
    poll(&mut fds, within.as_ref()).map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_usual_time_is_known_after_some_answers_and_outliers_do_not_move_it() {
        let mut usual = Usual::default();
        for (took, expected) in [
            (7, None),
            (5, None),
            (900, Some(7)),
            (6, Some(6)),
            (1, Some(6)),
            (50, Some(6)),
            (51, Some(50)),
        ] {
            usual.note(ms(took));
            assert_eq!(usual.median(), expected.map(ms), "{took}");
        }
    }

    #[test]
    fn it_returns_with_the_answer_and_without_one_before_long() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let far = Instant::now() + Duration::from_hours(1);
        let began = Instant::now();
        poll_around(&reader, ms(20), far);
        let waited = began.elapsed();
        if thread::available_parallelism().unwrap().get() > 1 {
            assert!(waited >= ms(20), "{waited:?}");
        }
        assert!(waited < ms(10_000), "an answer that does not come is not waited for awake");
        poll_around(&reader, Duration::from_hours(1), Instant::now() + ms(20));
        writer.write_all(b"answer").unwrap();
        poll_around(&reader, Duration::from_hours(1), far);
        drop(writer);
        poll_around(&reader, Duration::from_hours(1), far);
        assert!(began.elapsed() < Duration::from_mins(30), "it waits no longer than it has to");
    }
}
