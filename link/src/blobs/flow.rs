//! How many bytes of a transfer are under way: enough to keep the way busy, and so few that what
//! else is said, heartbeats for one, does not wait long behind them.
//!
//! Pure: times are arguments.

use std::time::Duration;

/// Bytes under way at first.
const FIRST_BYTES: f64 = 512.0 * 1024.0;
/// And at most: they are held until they are acknowledged.
const MOST_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// How much longer acknowledgements may take than the quickest one did.
const QUEUE_MAX: Duration = Duration::from_millis(200);
/// Bytes that are asked for at first.
const FIRST_BATCH: u64 = 1024 * 1024;
/// How long the bytes that are asked for at once may take.
const BATCH_TAKES: f64 = 2.0;

/// The window of an upload. It follows how long acknowledgements take beyond the quickest one, the
/// time in queues.
///
/// Source: LEDBAT, RFC 6817, sections 2.4 and 2.5.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    bytes: f64,
    quickest: Duration,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self { bytes: FIRST_BYTES, quickest: Duration::MAX }
    }

    /// Bytes that may be under way; a piece may be larger.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// A piece was acknowledged after this time, of so many bytes that were under way.
    #[expect(clippy::cast_precision_loss, reason = "a window need not be exact")]
    pub(super) fn acknowledged(&mut self, piece: usize, under_way: usize, took: Duration) {
        self.quickest = self.quickest.min(took);
        let queued = took.saturating_sub(self.quickest).as_secs_f64();
        let off = (1.0 - queued / QUEUE_MAX.as_secs_f64()).clamp(-1.0, 1.0);
        // Where the window is not used nothing is known of a larger one.
        if off < 0.0 || under_way + piece > self.bytes() {
            let piece = (piece as f64).min(self.bytes / 2.0);
            self.bytes = (self.bytes + off * piece).clamp(1.0, MOST_BYTES);
        }
    }

    /// Pieces have to be sent again.
    pub(super) fn lost(&mut self) {
        self.bytes = (self.bytes / 2.0).max(1.0);
    }
}

/// Bytes that a download asks for at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch(u64);

impl Batch {
    pub(super) fn new() -> Self {
        Self(FIRST_BATCH)
    }

    pub(super) fn bytes(self) -> u64 {
        self.0
    }

    /// So many bytes came in this time after they were asked for.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a batch need not be exact, and is bounded"
    )]
    pub(super) fn after(self, bytes: u64, took: Duration) -> Self {
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        Self(((rate * BATCH_TAKES) as u64).clamp(1, self.0.saturating_mul(4)))
    }

    /// No more than this.
    #[must_use]
    pub(super) fn most(self, bytes: u64) -> Self {
        Self(self.0.min(bytes))
    }

    /// They did not come.
    #[must_use]
    pub(super) fn after_silence(self) -> Self {
        Self((self.0 / 4).max(1))
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "numbers of tests are small")]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// Sends pieces over a way with a rate and a delay: seconds until each is acknowledged.
    fn send(pieces: usize, piece: usize, rate: f64, delay: f64) -> (f64, Vec<f64>) {
        let mut flow = Flow::new();
        let (mut now, mut free_at) = (0.0_f64, 0.0_f64);
        let mut under_way: VecDeque<(f64, f64)> = VecDeque::new();
        let mut took = Vec::new();
        for _ in 0..pieces {
            while !under_way.is_empty() && (under_way.len() + 1) * piece > flow.bytes() {
                let (sent, acknowledged) = under_way.pop_front().unwrap();
                now = now.max(acknowledged);
                took.push(now - sent);
                let left = under_way.len() * piece;
                flow.acknowledged(piece, left + piece, Duration::from_secs_f64(now - sent));
            }
            free_at = free_at.max(now) + piece as f64 / rate;
            under_way.push_back((now, free_at + delay));
        }
        (under_way.back().unwrap().1, took)
    }

    proptest! {
        /// A way is kept busy, and who speaks beside the transfer waits for little more than the
        /// queue may take and for few pieces.
        #[test]
        fn a_way_is_busy_and_its_queue_short(
            rate in 20_000.0..50_000_000.0_f64,
            delay in 0.0005..0.1_f64,
        ) {
            let piece = 128 * 1024;
            let (ended, took) = send(1000, piece, rate, delay);
            let shortest = 1000.0 * piece as f64 / rate;
            prop_assert!(ended < 1.5 * shortest + 3.0, "{ended} s, {shortest} s are needed");
            let most = delay + 3.5 * piece as f64 / rate + 0.35;
            for took in &took[100..] {
                prop_assert!(*took < most, "{took} s, {most} s at most");
            }
        }

        #[test]
        fn a_batch_takes_two_seconds(rate in 1000..50_000_000_u64) {
            let mut batch = Batch::new().after_silence();
            for _ in 0..20 {
                let took = batch.bytes() as f64 / rate as f64;
                batch = batch.after(batch.bytes(), Duration::from_secs_f64(took));
            }
            prop_assert!(batch.bytes().abs_diff(2 * rate) <= rate / 100 + 1, "{batch:?}");
        }
    }
}
