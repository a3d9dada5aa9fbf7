//! What a task says of examples and of the loss, for the engine.

use jobs::report::{Failure, FailureCode};
use jobs::spec;
use models::dataset::{Dataset, Normalization};
use models::train::Loss;

/// How the data set's values become inputs: as the task says, or else the data set.
///
/// # Errors
/// When it is not one of the data set's channels.
pub fn normalization(
    wanted: &spec::Normalization,
    dataset: &Dataset,
) -> Result<Normalization, Failure> {
    let found = match wanted {
        spec::Normalization::Format => dataset.normalization.clone(),
        spec::Normalization::None => Normalization::none(),
        // A broker puts the values of all devices in its place; these are the device's own.
        spec::Normalization::Dataset => {
            dataset.train.statistics().unwrap_or_else(Normalization::none)
        }
        spec::Normalization::Fixed { mean, std } => {
            Normalization { mean: mean.clone(), std: std.clone() }
        }
    };
    let wrong = |error: models::dataset::NormalizationError| {
        Failure::new(FailureCode::InvalidSpec, format!("normalization: {error}"))
    };
    found.check(dataset.channels()).map_err(wrong)?;
    Ok(found)
}

/// A loss of the engine; smoothing is for cross-entropy.
pub fn loss(loss: spec::Loss, label_smoothing: f32) -> Loss {
    match loss {
        spec::Loss::CrossEntropy => Loss::SoftmaxCrossEntropy { label_smoothing },
        spec::Loss::Mse => Loss::MeanSquaredError,
        spec::Loss::Bce => Loss::BinaryCrossEntropy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(file: &str, text: &[u8]) -> Dataset {
        let files = vec![(file.to_owned(), text.to_vec())];
        models::dataset::decode(&files, models::dataset::Limits::default()).unwrap()
    }

    #[test]
    fn every_loss_has_one() {
        assert_eq!(loss(spec::Loss::Mse, 0.0), Loss::MeanSquaredError);
        assert_eq!(loss(spec::Loss::Bce, 0.0), Loss::BinaryCrossEntropy);
    }

    #[test]
    fn normalization_is_the_tasks_or_the_data_sets() {
        let table = dataset("a.csv", &b"1,10,0\n3,10,1\n".repeat(10));
        let of = |text: &str| normalization(&text.parse().unwrap(), &table);
        assert_eq!(of("format").unwrap(), Normalization::none());
        assert_eq!(of("none").unwrap(), Normalization::none());
        let found = of("dataset").unwrap();
        assert!((found.mean[1] - 10.0).abs() < 1e-6 && (found.std[1] - 1.0).abs() < 1e-6);
        assert_eq!(of("1,2/3").unwrap(), Normalization { mean: vec![1.0, 2.0], std: vec![3.0] });
        let refused = of("1,2,3/1").unwrap_err();
        assert_eq!(refused.code, FailureCode::InvalidSpec);
        assert!(refused.message.contains("mean has 3 values, expected 1 or 2"), "{refused:?}");
    }
}
