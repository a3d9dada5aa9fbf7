//! Memory for a model that is to be loaded: where it lacks, others that are ready make room.

use std::sync::Arc;
use std::time::Duration;

use jobs::report::{Failure, FailureCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::execute::memory::{Lacking, Promise, Promises, megabytes};
use crate::free_pages;

/// How many times its file a model takes while it is loaded: the file, its weights as they are read
/// and as kernels want them. One of 67 MB took 4.0 times as much in this program, and in the helper.
const LOADING: u64 = 4;
/// How long it may take until what was let go of is free, and how often that is looked at.
const FREED_WITHIN: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Memory that models are loaded into.
#[derive(Debug)]
pub(super) struct Room {
    promises: Arc<Promises>,
    /// Held where memory lacks: of two that wait for it each would let go of models.
    squeezing: Mutex<()>,
}

/// What may be let go of.
pub(super) trait Held {
    /// Bytes of the files of models that are ready.
    fn bytes(&self) -> u64;

    /// Lets go of the one that was not used for longest; `false` if there is none.
    fn let_go(&self) -> bool;
}

impl Room {
    pub(super) fn new(promises: Arc<Promises>) -> Self {
        Self { promises, squeezing: Mutex::default() }
    }

    /// Promises what a model takes whose file has so many bytes. Waits for others that load, or begin
    /// to train, but not beyond `until`.
    ///
    /// # Errors
    /// When it does not fit, with both figures.
    pub(super) async fn take(
        &self,
        bytes: u64,
        until: Instant,
        held: &impl Held,
    ) -> Result<Promise, Failure> {
        if let Ok(promise) = at_once(&self.promises, bytes) {
            return Ok(promise);
        }
        let need = bytes.saturating_mul(LOADING);
        let _one_at_a_time = self.squeezing.lock().await;
        let mut patience = Instant::now();
        loop {
            free_pages::give_back();
            let Lacking { free, promised } = match self.promises.take(need) {
                Ok(promise) => return Ok(promise),
                Err(lacking) => lacking,
            };
            let now = Instant::now();
            let most = free.saturating_add(promised);
            let hopeless = most.saturating_add(held.bytes().saturating_mul(LOADING)) < need;
            if hopeless || now >= until {
                return Err(refused(bytes, need, free));
            }
            if now >= patience && promised == 0 {
                if !held.let_go() {
                    return Err(refused(bytes, need, free));
                }
                patience = now + FREED_WITHIN;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Promises what a model takes in any engine whose file has so many bytes, if that is free.
///
/// # Errors
/// When it does not fit, with both figures.
pub(super) fn at_once(promises: &Arc<Promises>, bytes: u64) -> Result<Promise, Failure> {
    let need = bytes.saturating_mul(LOADING);
    promises.take(need).map_err(|lacking| refused(bytes, need, lacking.free))
}

fn refused(bytes: u64, need: u64, free: u64) -> Failure {
    let message = format!(
        "a model of {} needs {} of memory to be loaded, the device has {} free",
        megabytes(bytes),
        megabytes(need),
        megabytes(free),
    );
    Failure::new(FailureCode::OutOfMemory, message)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Models that are ready: how many, each as large as all memory.
    struct Models(AtomicU64);

    impl Held for Models {
        fn bytes(&self) -> u64 {
            if self.0.load(Ordering::Relaxed) == 0 { 0 } else { u64::MAX }
        }

        fn let_go(&self) -> bool {
            let less = |ready: u64| ready.checked_sub(1);
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn models_make_room_one_after_the_other_until_there_is_none() {
        let room = Room::new(Arc::default());
        let models = Models(AtomicU64::new(2));
        room.take(1000, soon(), &models).await.unwrap();
        assert_eq!(models.0.load(Ordering::Relaxed), 2);
        let failure = room.take(1 << 50, soon(), &models).await.unwrap_err();
        assert_eq!((failure.code, models.0.load(Ordering::Relaxed)), (FailureCode::OutOfMemory, 0));
        assert!(failure.message.contains("1125899906.8 MB needs 4503599627.4 MB"), "{failure:?}");
    }

    #[tokio::test]
    async fn what_cannot_fit_lets_go_of_nothing() {
        struct Small;
        impl Held for Small {
            fn bytes(&self) -> u64 {
                1000
            }

            fn let_go(&self) -> bool {
                panic!("it would be in vain")
            }
        }
        let room = Room::new(Arc::default());
        room.take(1 << 50, soon(), &Small).await.unwrap_err();
    }

    #[tokio::test]
    async fn memory_that_another_one_is_promised_is_waited_for() {
        let promises = Arc::<Promises>::default();
        let room = Room::new(promises.clone());
        let none = Models(AtomicU64::new(0));
        let Err(Lacking { free, .. }) = promises.take(u64::MAX) else { panic!("more than all") };
        // Two thirds of it, and a half.
        let first = promises.take(free / 3 * 2).unwrap();
        let late = room.take(free / 8, Instant::now(), &none).await;
        assert_eq!(late.unwrap_err().code, FailureCode::OutOfMemory);
        let second = room.take(free / 8, soon(), &none);
        let ended = async {
            sleep(Duration::from_millis(100)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(second, ended);
        second.unwrap();
    }
}
