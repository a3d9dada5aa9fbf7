//! Threads that compute: pools for training that step back, and places for inference.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jobs::report::{Failure, FailureCode};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::panic_failure;

/// Pools that are kept for the next trainings, at most: their threads sleep, but the system counts
/// them. To start others takes less than a millisecond.
const IDLE_MAX: usize = 2;

/// Where numbers are worked on; nothing is started before the first use.
#[derive(Debug)]
pub(super) struct Compute {
    threads: usize,
    /// Priority of the threads that train.
    priority: i32,
    /// Pools that no training uses now. Each training has one for itself: a thread that waits
    /// for its part of one would begin with the whole of another.
    idle: Mutex<Vec<ThreadPool>>,
    places: Arc<Semaphore>,
}

impl Compute {
    /// `threads` 0 takes every processor; trainings step back by `nice` behind this thread.
    pub(super) fn new(threads: usize, nice: u8) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { processors } else { threads };
        let places = Arc::new(Semaphore::new(threads));
        let own = rustix::process::getpriority_process(None).unwrap_or(0);
        let priority = own + i32::from(nice);
        Self { threads, priority, idle: Mutex::default(), places }
    }

    /// Computes on a pool, behind all other work; a panic is a failure.
    pub(super) async fn train<T: Send + 'static>(
        self: &Arc<Self>,
        name: String,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (send, receive) = oneshot::channel();
        let compute = self.clone();
        let run = move || {
            step_back(compute.priority);
            let done = compute.pool().and_then(|pool| {
                let done = catch_unwind(AssertUnwindSafe(|| pool.install(work)));
                compute.give_back(pool);
                done.unwrap_or_else(|_| Err(panic_failure("training")))
            });
            // Whoever asked may have gone.
            let _ = send.send(done);
        };
        let started = std::thread::Builder::new().name(name).spawn(run);
        started.map_err(|error| {
            let message = format!("no thread for the training: {error}");
            Failure::new(FailureCode::OutOfMemory, message)
        })?;
        receive.await.unwrap_or_else(|_| Err(panic_failure("training")))
    }

    /// Computes in one of the places for inference; waits for a free one, but not beyond `until`.
    pub(super) async fn infer<T: Send + 'static>(
        &self,
        until: Instant,
        work: impl FnOnce(&mut Seat) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let free = tokio::time::timeout_at(until.into(), self.places.clone().acquire_owned());
        let Ok(place) = free.await else {
            let message = "every thread was at work for other requests".to_owned();
            return Err(Failure::new(FailureCode::Busy, message));
        };
        let mut seat = Seat { places: self.places.clone(), place: place.ok() };
        let run = move || {
            catch_unwind(AssertUnwindSafe(|| work(&mut seat)))
                .unwrap_or_else(|_| Err(panic_failure("the engine")))
        };
        let done = tokio::task::spawn_blocking(run).await;
        done.unwrap_or_else(|_| Err(panic_failure("the engine")))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ThreadPool>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, pool: ThreadPool) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(pool);
        }
    }

    fn pool(&self) -> Result<ThreadPool, Failure> {
        if let Some(pool) = self.idle().pop() {
            return Ok(pool);
        }
        let priority = self.priority;
        let pool = ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|index| format!("compute-{index}"))
            .start_handler(move |_| step_back(priority))
            .build();
        pool.map_err(|error| {
            Failure::new(FailureCode::OutOfMemory, format!("no threads for the training: {error}"))
        })
    }
}

/// One of the places for inference, which may be left while somebody else is at work.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// Lets somebody else in.
    pub(super) fn leave(&mut self) {
        self.place = None;
    }

    /// Takes a place again, if it was left; `false` when none is free within `limit`.
    pub(super) fn take(&mut self, limit: Duration) -> bool {
        if self.place.is_none() {
            let free = tokio::time::timeout(limit, self.places.clone().acquire_owned());
            self.place = Handle::current().block_on(free).ok().and_then(Result::ok);
        }
        self.place.is_some()
    }
}

/// Does something that may wait for long, on a thread of its own: the end of the agent does not
/// wait for it, and neither do those who compute. It goes on when nobody waits for it any more.
///
/// # Errors
/// Why it has no outcome: there is no thread for it, or it panicked.
pub(super) async fn apart<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = oneshot::channel();
    let run = move || {
        // Whoever asked may have gone.
        let _ = send.send(work());
    };
    let started = std::thread::Builder::new().name(name).spawn(run);
    started.map_err(|error| format!("no thread for it: {error}"))?;
    receive.await.map_err(|_| "it panicked".to_owned())
}

/// Sets the priority of this thread; on Linux each thread has its own. The system cuts it to 19.
fn step_back(priority: i32) {
    // Only a courtesy: training works without it too.
    let _ = rustix::process::setpriority_process(None, priority);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Of this thread.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name may hold anything; the 19th field comes 17 behind it.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn training_alone_steps_back() {
        let compute = Arc::new(Compute::new(2, 7));
        let own = nice();
        let back = (own + 7).min(19);
        let all = || Ok((nice(), rayon::broadcast(|_| nice())));
        assert_eq!(compute.train("train".into(), all).await, Ok((back, vec![back, back])));
        assert_eq!(compute.infer(soon(), |_| Ok(nice())).await, Ok(own));
        assert_eq!(nice(), own);
    }

    /// A training that ends only when another one, which began later, has ended.
    #[tokio::test]
    async fn trainings_do_not_wait_for_each_other() {
        let compute = Arc::new(Compute::new(1, 1));
        let (tell, told) = std::sync::mpsc::channel();
        let (begin, has_begun) = oneshot::channel();
        let first = compute.train("first".into(), move || {
            begin.send(()).unwrap();
            Ok(told.recv_timeout(std::time::Duration::from_secs(20)).is_ok())
        });
        let second = async {
            has_begun.await.unwrap();
            compute.train("second".into(), move || Ok(tell.send(()).is_ok())).await
        };
        assert_eq!(tokio::join!(first, second), (Ok(true), Ok(true)));
        assert_eq!(compute.idle().len(), 2);
    }

    #[tokio::test]
    async fn of_many_trainings_few_pools_are_kept() {
        let compute = Arc::new(Compute::new(1, 1));
        let all = Arc::new(std::sync::Barrier::new(8));
        let train = |number: u32| {
            let all = all.clone();
            let work = move || Ok(all.wait().is_leader());
            compute.train(format!("train-{number}"), work)
        };
        let done = futures::future::join_all((0..8).map(train)).await;
        assert!(done.iter().all(Result::is_ok), "{done:?}");
        assert_eq!(compute.idle().len(), IDLE_MAX);
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_and_the_pool_lives() {
        let compute = Arc::new(Compute::new(1, 1));
        let failed = compute.train("train".into(), || -> Result<(), _> { panic!("no") }).await;
        assert_eq!(failed.unwrap_err().code, FailureCode::Internal);
        assert_eq!(compute.train("train".into(), || Ok(7)).await, Ok(7));
        let failed = compute.infer(soon(), |_| -> Result<(), _> { panic!("no") }).await;
        assert_eq!(failed.unwrap_err().code, FailureCode::Internal);
        assert_eq!(compute.infer(soon(), |_| Ok(7)).await, Ok(7));
        assert_eq!(apart("apart".into(), || 7).await, Ok(7));
        assert_eq!(
            apart("apart".into(), || panic!("no")).await,
            Err::<(), _>("it panicked".into())
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_place_that_was_left_is_taken_by_others() {
        let compute = Arc::new(Compute::new(1, 1));
        let (tell, told) = std::sync::mpsc::channel();
        let first = compute.infer(soon(), move |seat| {
            seat.leave();
            let others = told.recv_timeout(Duration::from_secs(20)).is_ok();
            Ok(others && seat.take(Duration::from_secs(20)))
        });
        let second = compute.infer(soon(), move |_| {
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        });
        assert_eq!(tokio::join!(first, second), (Ok(true), Ok(())));
    }
}
