//! Whether a model and a data set are made for each other.

use jobs::report::{Failure, FailureCode};
use models::dataset::Dataset;
use models::train::{Loss, Trainer};

/// Refuses a data set whose examples and classes are not those of the graph.
///
/// # Errors
/// [`FailureCode::ShapeMismatch`], with both.
pub fn check_fit(trainer: &Trainer, dataset: &Dataset, loss: Loss) -> Result<(), Failure> {
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
    // One output tells two classes apart when the loss is binary.
    let binary = loss == Loss::BinaryCrossEntropy;
    let told_apart = if binary && trainer.classes() == 1 { 2 } else { trainer.classes() };
    if told_apart < dataset.classes {
        let message = format!(
            "the graph has {} classes, the data set has {}",
            trainer.classes(),
            dataset.classes
        );
        return Err(Failure::new(FailureCode::ShapeMismatch, message));
    }
    Ok(())
}
