//! Threads that compute: a pool for training that steps back, and places for inference.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use jobs::report::{Failure, FailureCode};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, oneshot};

use super::panic_failure;

/// Where numbers are worked on; nothing is started before the first use.
#[derive(Debug)]
pub(super) struct Compute {
    threads: usize,
    nice: u8,
    pool: OnceLock<Result<ThreadPool, String>>,
    places: Arc<Semaphore>,
}

impl Compute {
    /// `threads` 0 takes every processor.
    pub(super) fn new(threads: usize, nice: u8) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { processors } else { threads };
        let places = Arc::new(Semaphore::new(threads));
        Self { threads, nice, pool: OnceLock::new(), places }
    }

    /// Computes on the training pool, behind all other work; a panic is a failure.
    pub(super) async fn train<T: Send + 'static>(
        self: &Arc<Self>,
        name: String,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (send, receive) = oneshot::channel();
        let compute = self.clone();
        let run = move || {
            step_back(compute.nice);
            let done = compute.pool().and_then(|pool| {
                catch_unwind(AssertUnwindSafe(|| pool.install(work)))
                    .unwrap_or_else(|_| Err(panic_failure("training")))
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

    fn pool(&self) -> Result<&ThreadPool, Failure> {
        let nice = self.nice;
        let build = || {
            ThreadPoolBuilder::new()
                .num_threads(self.threads)
                .thread_name(|index| format!("compute-{index}"))
                .start_handler(move |_| step_back(nice))
                .build()
                .map_err(|error| error.to_string())
        };
        self.pool.get_or_init(build).as_ref().map_err(|error| {
            Failure::new(FailureCode::OutOfMemory, format!("no threads for the training: {error}"))
        })
    }
}

/// Lowers the priority of this thread.
fn step_back(nice: u8) {
    if nice > 0 {
        // Only a courtesy: training works without it too.
        let _ = rustix::process::nice(i32::from(nice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
