//! Threads that compute: pools for training that step back, and places for inference.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jobs::report::{Failure, FailureCode};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, oneshot};

use super::panic_failure;

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
                compute.idle().push(pool);
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

    /// Computes in one of the places for inference; waits for a free one.
    pub(super) async fn infer<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.places.clone().acquire_owned().await;
        let run = move || {
            let _place = place;
            catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(panic_failure("the engine")))
        };
        let done = tokio::task::spawn_blocking(run).await;
        done.unwrap_or_else(|_| Err(panic_failure("the engine")))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ThreadPool>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Sets the priority of this thread; on Linux each thread has its own. The system cuts it to 19.
fn step_back(priority: i32) {
    // Only a courtesy: training works without it too.
    let _ = rustix::process::setpriority_process(None, priority);
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(compute.infer(|| Ok(nice())).await, Ok(own));
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
    async fn a_panic_is_a_failure_and_the_pool_lives() {
        let compute = Arc::new(Compute::new(1, 1));
        let failed = compute.train("train".into(), || -> Result<(), _> { panic!("no") }).await;
        assert_eq!(failed.unwrap_err().code, FailureCode::Internal);
        assert_eq!(compute.train("train".into(), || Ok(7)).await, Ok(7));
        let failed = compute.infer(|| -> Result<(), _> { panic!("no") }).await;
        assert_eq!(failed.unwrap_err().code, FailureCode::Internal);
        assert_eq!(compute.infer(|| Ok(7)).await, Ok(7));
    }
}
