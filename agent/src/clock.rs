//! The agent's clock: time since the Unix epoch that never runs backwards.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jobs::id::Millis;

/// The wall clock at the start, carried on by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started_at: Millis,
    started: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub(crate) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at = Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX));
        Self { started_at, started: Instant::now() }
    }

    /// Now, since the Unix epoch.
    pub(crate) fn now(&self) -> Millis {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_at.plus(Millis(elapsed))
    }

    /// When the clock began.
    pub(crate) fn started_at(&self) -> Millis {
        self.started_at
    }
}
