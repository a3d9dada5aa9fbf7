//! Judges models on data sets of the broker's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use datasets::{DataError, Datasets, judging};
use jobs::device::DatasetFacts;
use jobs::id::{DatasetName, Millis};
use jobs::report::{EvaluationReport, Failure, FailureCode};
use jobs::spec::EvaluateTask;
use models::dataset::Dataset;
use models::params::Parameters;
use models::train::TrainError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How far judging steps back behind everything else that the broker does.
const NICE: i32 = 10;
/// A data set that was not used for so long is let go of.
const UNUSED_AFTER: Duration = Duration::from_mins(10);

/// The broker's data sets, and a place for one judgement at a time: its memory is that of one
/// model.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    sets: Arc<Datasets>,
    place: Arc<Semaphore>,
}

/// What is judged.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The graph in training form.
    pub(crate) graph: Bytes,
    /// Its parameters (safetensors).
    pub(crate) parameters: Bytes,
    /// On which data set, and how.
    pub(crate) task: EvaluateTask,
}

impl Judge {
    /// Reads the data sets.
    ///
    /// # Errors
    /// When one cannot be read, or is none.
    pub(crate) async fn start(data: BTreeMap<DatasetName, PathBuf>) -> Result<Self, DataError> {
        let sets = Arc::new(Datasets::new(data, 0));
        sets.read_all().await?;
        Ok(Self { sets, place: Arc::new(Semaphore::new(1)) })
    }

    /// What is known of a data set.
    pub(crate) fn facts_of(&self, name: &DatasetName) -> Option<DatasetFacts> {
        self.sets.facts_of(name)
    }

    /// The names of all data sets.
    pub(crate) fn names(&self) -> Vec<DatasetName> {
        self.sets.facts().into_iter().map(|facts| facts.name).collect()
    }

    /// Lets go of what nobody used for a while.
    pub(crate) fn forget_unused(&self) {
        self.sets.forget_unused(UNUSED_AFTER);
    }

    /// Waits until nothing else is judged, at most until then.
    ///
    /// # Errors
    /// When it is too late.
    pub(crate) async fn turn(&self, until: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let turn = tokio::time::timeout_at(until.into(), self.place.clone().acquire_owned());
        match turn.await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(late("other trainings were judged for longer")),
        }
    }

    /// Judges in one's turn, on threads behind all others. Between two batches it looks whether it
    /// is too late, or nobody waits any more.
    ///
    /// # Errors
    /// Why there is no judgement.
    pub(crate) async fn judge(
        &self,
        turn: OwnedSemaphorePermit,
        candidate: Candidate,
        until: Instant,
        is_wanted: impl Fn() -> bool + Send + 'static,
    ) -> Result<EvaluationReport, Failure> {
        let sets = self.sets.clone();
        let go_on = move || match (is_wanted(), until > Instant::now()) {
            (true, true) => Ok(()),
            (true, false) => Err(late("judging took longer")),
            (false, _) => Err(Failure::new(FailureCode::Cancelled, "nobody waits for it")),
        };
        let work = move || {
            let _turn = turn;
            pool()?.install(|| candidate.judged(&sets, go_on))
        };
        let fault = "judging met a fault of the program: see the broker's log";
        let judged = tokio::task::spawn_blocking(work).await;
        judged.unwrap_or_else(|_| Err(Failure::new(FailureCode::Internal, fault)))
    }
}

impl Candidate {
    fn judged(
        &self,
        sets: &Datasets,
        go_on: impl FnMut() -> Result<(), Failure> + Send,
    ) -> Result<EvaluationReport, Failure> {
        let begun = Instant::now();
        let dataset: Arc<Dataset> = sets.get(&self.task.dataset)?;
        let mut trainer = judging::trainer(&self.graph, &self.task, &dataset)?;
        let wrong = |error: TrainError| datasets::failures::of_training(&error);
        let parameters = Parameters::from_safetensors(&self.parameters);
        let parameters = parameters.map_err(|error| wrong(error.into()))?;
        trainer.set_parameters(&parameters).map_err(wrong)?;
        let sums = judging::on_test_examples(&mut trainer, &self.task, &dataset, go_on)?;
        Ok(EvaluationReport {
            examples: sums.examples as u64,
            loss: sums.loss(),
            accuracy: sums.accuracy(),
            duration_ms: Millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
        })
    }
}

fn late(why: &str) -> Failure {
    let message = format!("{why} than the round's deadline for evaluation allows");
    Failure::new(FailureCode::DeadlineExceeded, message)
}

/// Threads for one judgement: all processors but one, which is the broker's own.
fn pool() -> Result<rayon::ThreadPool, Failure> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let own = rustix::process::getpriority_process(None).unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(processors.saturating_sub(1).max(1))
        .thread_name(|index| format!("judge-{index}"))
        .start_handler(move |_| {
            // Only a courtesy: judging works without it too.
            let _ = rustix::process::setpriority_process(None, own + NICE);
        })
        .build();
    pool.map_err(|error| {
        Failure::new(FailureCode::OutOfMemory, format!("no threads for judging: {error}"))
    })
}
