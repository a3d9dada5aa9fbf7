//! Local training and evaluation of a round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jobs::id::{BlobRef, Millis};
use jobs::report::{EvaluationReport, Failure, FailureCode, Progress, ReportBody, UpdateReport};
use jobs::spec::{EvaluateTask, LocalTraining, TaskId, TrainTask};
use link::blobs::Existing;
use models::dataset::{Batches, Dataset, Order};
use models::params::Parameters;
use models::train::{Optimizer, Settings, Sgd, TrainError, Trainer};
use tokio::sync::mpsc;

use super::{Run, Stopped, failures};
use crate::cache::{self, Keep};
use crate::work::Told;

mod settings;

/// The engine's name in reports.
const ENGINE: &str = "native";
/// Time between two reports of progress, at least.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Local training without the network around it.
struct LocalRun {
    id: TaskId,
    local: LocalTraining,
    seed: u64,
    stopped: Stopped,
    tell: mpsc::Sender<Told>,
}

/// What local training gave.
struct Trained {
    parameters: Vec<u8>,
    examples: u64,
    sums: Sums,
    steps: u64,
}

/// Sums over batches.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    loss: f64,
    correct: usize,
    examples: usize,
}

impl Run {
    /// Trains from the given parameters, uploads the result, and describes it.
    pub(super) async fn train(&self, task: TrainTask) -> Result<ReportBody, Failure> {
        settings::check(&task.local)?;
        let device = &self.executor.device;
        let (parameters, examples) = futures::try_join!(
            device.cache.get(&task.parameters, Keep::Memory),
            self.examples(&task),
        )?;
        if task.local.epochs == 0 {
            return self.untouched(task.parameters, parameters, examples).await;
        }
        let graph = device.cache.get(&task.graph, Keep::Disk).await?;
        let local = LocalRun {
            id: self.id.clone(),
            local: task.local,
            seed: task.seed,
            stopped: self.stopped.clone(),
            tell: self.executor.tell.clone(),
        };
        let shared = device.clone();
        let work = move || {
            let dataset = shared.datasets.get(&task.dataset)?;
            local.train(&graph, &parameters, &dataset)
        };
        let trained = self.executor.compute.train(self.thread_name("train"), work).await?;
        let Trained { parameters, examples, sums, steps } = trained;
        let stored = device.blobs.put_named(self.update_name(), parameters.into()).await;
        Ok(ReportBody::Trained(UpdateReport {
            parameters: stored.map_err(|error| cache::explain(&error))?,
            examples,
            loss: sums.loss(),
            accuracy: sums.accuracy(),
            steps,
            duration_ms: self.duration(),
            engine: ENGINE.to_owned(),
        }))
    }

    /// Judges parameters on the test split.
    pub(super) async fn evaluate(&self, task: EvaluateTask) -> Result<ReportBody, Failure> {
        if task.batch_size == 0 {
            return Err(Failure::new(FailureCode::InvalidSpec, "batch_size is 0: at least 1"));
        }
        let device = &self.executor.device;
        let (graph, parameters) = futures::try_join!(
            device.cache.get(&task.graph, Keep::Disk),
            device.cache.get(&task.parameters, Keep::Memory),
        )?;
        let (shared, stopped) = (device.clone(), self.stopped.clone());
        let work = move || {
            let dataset = shared.datasets.get(&task.dataset)?;
            evaluate(&graph, &parameters, &dataset, &task, &stopped)
        };
        let sums = self.executor.compute.train(self.thread_name("evaluate"), work).await?;
        Ok(ReportBody::Evaluated(EvaluationReport {
            examples: sums.examples as u64,
            loss: sums.loss(),
            accuracy: sums.accuracy(),
            duration_ms: self.duration(),
        }))
    }

    /// Local examples, known without decoding when the data set was read before.
    async fn examples(&self, task: &TrainTask) -> Result<u64, Failure> {
        let device = self.executor.device.clone();
        if let Some(facts) = device.datasets.facts_of(&task.dataset) {
            return Ok(facts.train_examples);
        }
        let name = task.dataset.clone();
        let read = move || device.datasets.get(&name).map(|dataset| dataset.train.len() as u64);
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| Err(super::panic_failure("reading the data set")))
    }

    /// The update of a round without training: the very same bytes, sent all the same.
    async fn untouched(
        &self,
        parameters: BlobRef,
        bytes: Bytes,
        examples: u64,
    ) -> Result<ReportBody, Failure> {
        let blobs = &self.executor.device.blobs;
        let parameters = BlobRef { name: Some(self.update_name()), ..parameters };
        let sent = blobs.put_as(&parameters, bytes, Existing::Replace).await;
        sent.map_err(|error| cache::explain(&error))?;
        Ok(ReportBody::Trained(UpdateReport {
            parameters,
            examples,
            loss: 0.0,
            accuracy: 0.0,
            steps: 0,
            duration_ms: self.duration(),
            engine: ENGINE.to_owned(),
        }))
    }

    fn duration(&self) -> Millis {
        Millis(u64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Names the update's object: no other task has this name.
    fn update_name(&self) -> String {
        let TaskId { job, round, attempt, .. } = &self.id;
        format!("update/{job}/{round}/{}/{attempt}", self.executor.device.config.device)
    }

    fn thread_name(&self, what: &str) -> String {
        format!("{what}-{}", self.id.round)
    }
}

impl LocalRun {
    /// Trains as the task says; every wait is between two batches.
    fn train(
        &self,
        graph: &[u8],
        parameters: &[u8],
        dataset: &Arc<Dataset>,
    ) -> Result<Trained, Failure> {
        let (optimizer, settings) = settings::of(&self.local);
        let mut trainer = prepare(graph, parameters, optimizer, settings, dataset)?;
        let examples = &dataset.train;
        if examples.is_empty() {
            let message = "the data set has no training examples";
            return Err(Failure::new(FailureCode::InvalidDataset, message));
        }
        let batch_size = self.local.batch_size as usize;
        let per_epoch = examples.len().div_ceil(batch_size) as u64;
        let all = per_epoch * u64::from(self.local.epochs);
        let all = self.local.steps_max.map_or(all, |max| all.min(u64::from(max)));
        let mut meter = Meter::new(all);
        let normalization = settings::normalization(&self.local.normalization, dataset)?;
        let augmentation = settings::augmentation(&self.local.augment, dataset)?;
        let mut batches = Batches::new(examples, &normalization).augmented(augmentation, self.seed);
        let mut sums = Sums::default();
        for epoch in 0..u64::from(self.local.epochs) {
            if meter.step == all {
                break;
            }
            sums = Sums::default();
            let order = Order::new(examples.len(), self.seed, epoch);
            for indices in order.batches(batch_size) {
                if meter.step == all {
                    break;
                }
                check_stop(&self.stopped)?;
                let (x, labels) = batches.get(indices, epoch);
                let done = trainer.step(x, labels).map_err(|e| failures::of_training(&e))?;
                sums.add(done.loss, done.correct, done.examples);
                if let Some(progress) = meter.count(done.loss, done.examples) {
                    let told = Told::Progress(self.id.clone(), progress);
                    // Progress may be lost.
                    let _ = self.tell.try_send(told);
                }
            }
        }
        let parameters = trainer.parameters();
        check_finite(&parameters, meter.step)?;
        Ok(Trained {
            parameters: parameters.to_safetensors(),
            examples: examples.len() as u64,
            sums,
            steps: meter.step,
        })
    }
}

/// Counts steps, and says now and then how far they are.
struct Meter {
    step: u64,
    steps: u64,
    reported: Instant,
    since: Sums,
}

impl Meter {
    fn new(steps: u64) -> Self {
        Self { step: 0, steps, reported: Instant::now(), since: Sums::default() }
    }

    fn count(&mut self, loss: f64, examples: usize) -> Option<Progress> {
        self.step += 1;
        self.since.add(loss, 0, examples);
        let elapsed = self.reported.elapsed();
        if elapsed < PROGRESS_EVERY {
            return None;
        }
        let since = std::mem::take(&mut self.since);
        self.reported = Instant::now();
        Some(Progress {
            step: self.step,
            steps: self.steps,
            loss: since.loss(),
            examples_per_second: since.count() / elapsed.as_secs_f64(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of examples are far below 2^52")]
impl Sums {
    /// Adds a batch with its mean loss.
    fn add(&mut self, loss: f64, correct: usize, examples: usize) {
        self.loss += loss * examples as f64;
        self.correct += correct;
        self.examples += examples;
    }

    fn count(&self) -> f64 {
        self.examples as f64
    }

    /// Mean loss; 0 without examples.
    fn loss(&self) -> f64 {
        self.loss / self.count().max(1.0)
    }

    /// Share that was right; 0 without examples.
    fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count().max(1.0)
    }
}

fn evaluate(
    graph: &[u8],
    parameters: &[u8],
    dataset: &Dataset,
    task: &EvaluateTask,
    stopped: &Stopped,
) -> Result<Sums, Failure> {
    let none = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let mut trainer = prepare(graph, parameters, none.into(), Settings::default(), dataset)?;
    if dataset.test.is_empty() {
        let message = "the data set has no test examples: evaluate elsewhere";
        return Err(Failure::new(FailureCode::InvalidDataset, message));
    }
    let indices: Vec<usize> = (0..dataset.test.len()).collect();
    let normalization = settings::normalization(&task.normalization, dataset)?;
    let mut batches = Batches::new(&dataset.test, &normalization);
    let mut sums = Sums::default();
    for indices in indices.chunks(task.batch_size as usize) {
        check_stop(stopped)?;
        let (x, labels) = batches.get(indices, 0);
        let done = trainer.evaluate(x, labels).map_err(|e| failures::of_training(&e))?;
        sums.add(done.loss, done.correct, done.examples);
    }
    Ok(sums)
}

/// A trainer that fits the data set.
fn prepare(
    graph: &[u8],
    parameters: &[u8],
    optimizer: Optimizer,
    settings: Settings,
    dataset: &Dataset,
) -> Result<Trainer, Failure> {
    let trainer = Trainer::with_settings(graph, optimizer, settings);
    let mut trainer = trainer.map_err(|error| failures::of_training(&error))?;
    check_fit(&trainer, dataset)?;
    let parameters = Parameters::from_safetensors(parameters)
        .map_err(|error| failures::of_training(&TrainError::Parameters(error)))?;
    trainer.set_parameters(&parameters).map_err(|error| failures::of_training(&error))?;
    Ok(trainer)
}

/// The data set's examples and classes are those of the graph.
fn check_fit(trainer: &Trainer, dataset: &Dataset) -> Result<(), Failure> {
    let shape = dataset.example_shape();
    let expected = trainer.example_shape();
    // Either side may be a plain vector.
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let flat = expected.len() == 1 || shape.len() == 1;
    if expected != shape && !(flat && values(expected) == values(&shape)) {
        let message =
            format!("the graph takes examples of shape {expected:?}, the data set has {shape:?}");
        return Err(Failure::new(FailureCode::ShapeMismatch, message));
    }
    if trainer.classes() < dataset.classes {
        let message = format!(
            "the graph has {} classes, the data set has {}",
            trainer.classes(),
            dataset.classes
        );
        return Err(Failure::new(FailureCode::ShapeMismatch, message));
    }
    Ok(())
}

fn check_stop(stopped: &Stopped) -> Result<(), Failure> {
    match &*stopped.borrow() {
        Some(stop) => Err(stop.0.clone()),
        None => Ok(()),
    }
}

/// The last step may have spoiled the parameters after its loss was taken.
fn check_finite(parameters: &Parameters, step: u64) -> Result<(), Failure> {
    let spoiled = parameters
        .items()
        .iter()
        .find(|parameter| parameter.values.iter().any(|value| !value.is_finite()));
    match spoiled {
        None => Ok(()),
        Some(parameter) => {
            let message = format!(
                "parameter {:?} is not finite after step {step}: lower the learning rate",
                parameter.name
            );
            Err(Failure::new(FailureCode::Diverged, message))
        }
    }
}
