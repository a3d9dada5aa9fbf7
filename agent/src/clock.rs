//! The agent's clocks: time since the Unix epoch as the system tells it, and one that never jumps.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jobs::id::Millis;

/// When the agent began, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started_at: Millis,
    started: Instant,
}

impl Clock {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { started_at: wall(), started: Instant::now() }
    }

    /// Now, since the Unix epoch, for what is told and for hours of the day. A board without a clock
    /// of its own has it set after the start, and a machine that slept has it set when it wakes, so
    /// it may jump, backwards too.
    pub(crate) fn now() -> Millis {
        wall()
    }

    /// Now on a clock that began with the system's and never jumps, for deadlines.
    pub(crate) fn steady(&self) -> Millis {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_at.plus(Millis(elapsed))
    }

    /// When the agent began, as the system told it then.
    pub(crate) fn started_at(&self) -> Millis {
        self.started_at
    }
}

fn wall() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board without a clock of its own starts in the past, and is set once it has a network.
    #[test]
    fn a_clock_that_is_set_after_the_start_is_followed() {
        let old = Clock { started_at: Millis(1000), started: Instant::now() };
        let set = Clock::new();
        let now = Clock::now();
        assert!(now >= set.started_at() && now.since(set.started_at()) < Millis(60_000), "{now:?}");
        assert!(old.steady() < Millis(61_000), "deadlines are not moved: {:?}", old.steady());
    }
}
