//! How many bytes a second may travel.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// A token bucket: it holds as many bytes as a second lets through, and is full at first.
///
/// Pure: time is an argument. Whoever takes more than there is owes the rest, and waits before the
/// bytes travel; so a piece may be larger than the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    bytes_per_second: u64,
    /// When the bucket is empty with all that was taken paid, on a clock that is a second ahead.
    empty_at: Duration,
}

impl TokenBucket {
    /// A full bucket at the start of time; a rate of 0 counts as 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), empty_at: Duration::ZERO }
    }

    /// Takes bytes at a time after the start; how long to wait before they travel.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * SECOND.as_nanos() / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Of the time before only a second counts.
        self.empty_at = self.empty_at.max(now).saturating_add(cost);
        self.empty_at.saturating_sub(now.saturating_add(SECOND))
    }
}

/// A limit that several transfers share; cheap to clone.
#[derive(Debug, Clone)]
pub struct Limit {
    bytes_per_second: u64,
    start: Instant,
    bucket: Arc<Mutex<TokenBucket>>,
}

impl Limit {
    /// So many bytes a second, and as many at once after a pause.
    pub fn new(bytes_per_second: u64) -> Self {
        let bucket = Arc::new(Mutex::new(TokenBucket::new(bytes_per_second)));
        Self { bytes_per_second, start: Instant::now(), bucket }
    }

    /// The limit.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Waits until so many bytes may travel.
    pub async fn pace(&self, bytes: u64) {
        let now = self.start.elapsed();
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "numbers of tests are small")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Between any two pieces no more travels than the rate, and a second's worth or a piece.
        #[test]
        fn no_more_travels_than_the_rate(
            rate in 1..1_000_000_u64,
            pieces in prop::collection::vec((0..3000_u64, 0..500_000_u64), 1..60),
        ) {
            let mut bucket = TokenBucket::new(rate);
            let mut now = Duration::ZERO;
            let mut travelled: Vec<(f64, u64)> = Vec::new();
            for (pause, bytes) in pieces {
                now += Duration::from_millis(pause);
                let wait = bucket.take(now, bytes);
                now += wait;
                travelled.push((now.as_secs_f64(), bytes));
            }
            for (first, (begin, piece)) in travelled.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &travelled[first..] {
                    sum += bytes;
                    let most = (end - begin) * rate as f64 + rate.max(*piece) as f64;
                    prop_assert!(sum as f64 <= most * (1.0 + 1e-6) + 1.0, "{sum} of {most}");
                }
            }
        }

        /// Nobody waits longer than what was taken takes, and after a pause a second's worth is
        /// there at once.
        #[test]
        fn nobody_waits_longer_than_need_be(
            rate in 1..1_000_000_u64,
            pieces in prop::collection::vec((0..3000_u64, 0..500_000_u64), 1..60),
        ) {
            let mut bucket = TokenBucket::new(rate);
            let (mut now, mut taken) = (Duration::ZERO, 0);
            for (pause, bytes) in pieces {
                now += Duration::from_millis(pause);
                taken += bytes;
                let wait = bucket.take(now, bytes);
                let all = taken as f64 / rate as f64;
                prop_assert!(wait.as_secs_f64() <= all + 1e-3);
                now += wait;
            }
            let idle = now + Duration::from_secs(2);
            prop_assert_eq!(bucket.take(idle, rate), Duration::ZERO);
            let next = bucket.take(idle, rate);
            prop_assert!(next > Duration::from_millis(990) && next <= SECOND, "{next:?}");
        }
    }

    #[tokio::test]
    async fn transfers_share_a_limit() {
        let limit = Limit::new(10_000);
        let began = Instant::now();
        let transfer = async |limit: Limit, pieces: u32| {
            for _ in 0..pieces {
                limit.pace(1000).await;
            }
        };
        futures::join!(transfer(limit.clone(), 5), transfer(limit, 10));
        // Of 15,000 bytes the first 10,000 were there.
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(450) && took < SECOND, "{took:?}");
    }
}
