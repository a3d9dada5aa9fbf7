//! How a model does on test examples.

use jobs::report::{Failure, FailureCode};
use jobs::spec::EvaluateTask;
use models::dataset::{Batches, Dataset};
use models::train::Trainer;

use crate::{Sums, check_fit, failures, settings};

/// A trainer for the judgement that a task asks for, still with the graph's own parameters.
///
/// # Errors
/// When the data set has no test examples or is not made for the graph, or the graph is none.
pub fn trainer(graph: &[u8], task: &EvaluateTask, dataset: &Dataset) -> Result<Trainer, Failure> {
    if task.batch_size == 0 {
        return Err(Failure::new(FailureCode::InvalidSpec, "batch_size is 0: at least 1"));
    }
    if dataset.test.is_empty() {
        let message = "the data set has no test examples: evaluate elsewhere";
        return Err(Failure::new(FailureCode::InvalidDataset, message));
    }
    let loss = settings::loss(task.loss, 0.0);
    let trainer = Trainer::for_evaluation(graph, loss);
    let trainer = trainer.map_err(|error| failures::of_training(&error))?;
    check_fit(&trainer, dataset, loss)?;
    Ok(trainer)
}

/// What a trainer makes of a data set's test examples; for `go_on` see [`judge`].
///
/// # Errors
/// As [`judge`], and when the normalization is not one of the data set.
pub fn on_test_examples(
    trainer: &mut Trainer,
    task: &EvaluateTask,
    dataset: &Dataset,
    go_on: impl FnMut() -> Result<(), Failure>,
) -> Result<Sums, Failure> {
    let normalization = settings::normalization(&task.normalization, dataset)?;
    let batches = Batches::new(&dataset.test, &normalization);
    judge(trainer, batches, task.batch_size as usize, go_on)
}

/// What a trainer makes of examples in their order, in batches of at least 1; `go_on` is asked
/// before each of them.
///
/// # Errors
/// That of `go_on`, and what the engine refuses.
pub fn judge(
    trainer: &mut Trainer,
    mut batches: Batches<'_>,
    batch_size: usize,
    mut go_on: impl FnMut() -> Result<(), Failure>,
) -> Result<Sums, Failure> {
    let indices: Vec<usize> = (0..batches.examples()).collect();
    let mut sums = Sums::default();
    for indices in indices.chunks(batch_size.max(1)) {
        go_on()?;
        let (x, labels) = batches.get(indices, 0);
        let done = trainer.evaluate(x, labels).map_err(|error| failures::of_training(&error))?;
        sums.add(done.loss, done.correct, done.examples);
    }
    Ok(sums)
}
