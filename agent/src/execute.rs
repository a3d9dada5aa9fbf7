//! Carries out tasks: fetches what they need, computes away from the runtime, gives the result.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use jobs::report::{Failure, FailureCode, ReportBody};
use jobs::spec::{Task, TaskId, TaskWork};
use tokio::sync::{mpsc, watch};

use crate::device::Device;
use crate::work::Told;

use self::compute::Compute;
use self::sessions::Sessions;

mod answer;
mod compute;
mod failures;
mod infer;
mod memory;
mod sessions;
mod train;

pub(crate) use self::memory::Promises;
pub(crate) use self::train::Latest;

/// How long a training may take to save where it is when the agent ends.
const SAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a task has to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(pub(crate) Failure);

/// Shows whether a task has to stop.
pub(crate) type Stopped = watch::Receiver<Option<Stop>>;

/// The end of a task.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// A final report.
    pub(crate) body: ReportBody,
    /// Raw outputs that belong to the report.
    pub(crate) outputs: Bytes,
}

impl From<ReportBody> for Outcome {
    fn from(body: ReportBody) -> Self {
        Self { body, outputs: Bytes::new() }
    }
}

/// Starts tasks; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    device: Arc<Device>,
    tell: mpsc::Sender<Told>,
    compute: Arc<Compute>,
    sessions: Arc<Sessions>,
}

/// One task at work.
#[derive(Debug)]
struct Run {
    executor: Executor,
    id: TaskId,
    stopped: Stopped,
    arrived: Instant,
    /// How long the result is of use, from the arrival on.
    timeout: Duration,
}

impl Executor {
    pub(crate) fn new(device: Arc<Device>, tell: mpsc::Sender<Told>) -> Self {
        let compute = Arc::new(Compute::new(device.config.threads, device.config.nice));
        let sessions = Sessions::new(device.config.model_bytes, device.promises.clone());
        Self { device, tell, compute, sessions: Arc::new(sessions) }
    }

    /// Starts a task; its end is told whatever happens.
    pub(crate) fn start(&self, task: Task, input: Bytes, stopped: Stopped) {
        let executor = self.clone();
        tokio::spawn(async move {
            let (tell, id) = (executor.tell.clone(), task.id.clone());
            let mut stop = stopped.clone();
            let timeout = Duration::from_millis(task.timeout_ms.0);
            let run = Run { executor, id: task.id, stopped, arrived: Instant::now(), timeout };
            let work = AssertUnwindSafe(run.carry_out(task.work, input)).catch_unwind();
            let mut work = std::pin::pin!(work);
            let stopped = tokio::select! {
                outcome = &mut work => Ok(outcome),
                failure = stop_reason(&mut stop) => Err(failure),
            };
            let outcome = match stopped {
                Ok(outcome) => Ok(outcome),
                Err(failure) if failure.code == FailureCode::ShuttingDown => {
                    tokio::time::timeout(SAVE_TIMEOUT, work).await.map_err(|_| failure)
                }
                Err(failure) => Err(failure),
            };
            let outcome = match outcome {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => panicked("the executor").into(),
                Err(failure) => ReportBody::Failed(failure).into(),
            };
            // Nobody listens any more when the agent has ended.
            let _ = tell.send(Told::Done(id, outcome)).await;
        });
    }
}

impl Run {
    async fn carry_out(self, work: TaskWork, input: Bytes) -> Outcome {
        let outcome = match work {
            TaskWork::Train(task) => self.train(task).await.map(Outcome::from),
            TaskWork::TrainMasked(task) => self.train_masked(*task).await.map(Outcome::from),
            TaskWork::Exchange => self.exchange(input).await.map(Outcome::from),
            TaskWork::Evaluate(task) => Box::pin(self.evaluate(task)).await.map(Outcome::from),
            TaskWork::Infer(task) => Box::pin(self.infer(task, input)).await,
            TaskWork::Telemetry => {
                let measured = self.executor.device.measure().await;
                Ok(ReportBody::Measured(Box::new(measured)).into())
            }
        };
        outcome.unwrap_or_else(|failure| ReportBody::Failed(failure).into())
    }
}

/// Waits until the task has to stop, and for ever when nobody can say so.
async fn stop_reason(stopped: &mut Stopped) -> Failure {
    let _ = stopped.wait_for(Option::is_some).await;
    let reason = stopped.borrow().as_ref().map(|stop| stop.0.clone());
    match reason {
        Some(failure) => failure,
        None => std::future::pending().await,
    }
}

fn panicked(what: &str) -> ReportBody {
    ReportBody::Failed(panic_failure(what))
}

fn panic_failure(what: &str) -> Failure {
    let message = format!("{what} panicked: please report it with the agent's log");
    Failure::new(FailureCode::Internal, message)
}
