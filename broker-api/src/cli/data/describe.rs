//! What a data set holds.

use models::dataset::{Dataset, Normalization};
use serde_json::json;

use crate::cli::failure::CliError;
use crate::cli::output::Output;
use crate::cli::table::Table;

/// Widest bar of the histogram.
const BAR: usize = 40;

/// Shows format, shape and examples of each class.
pub(super) fn run(data: &Dataset, output: &mut Output) -> Result<(), CliError> {
    let (train, test) =
        (data.train.class_counts(data.classes), data.test.class_counts(data.classes));
    let statistics = data.train.statistics();
    if output.json {
        let Normalization { mean, std } = &data.normalization;
        return Ok(output.document(&json!({
            "format": data.format,
            "shape": data.example_shape(),
            "classes": data.classes,
            "labels": data.class_names,
            "train": data.train.len(),
            "test": data.test.len(),
            "train_class_counts": train,
            "test_class_counts": test,
            "mean": mean,
            "std": std,
            "channel_mean": statistics.as_ref().map(|found| &found.mean),
            "channel_std": statistics.as_ref().map(|found| &found.std),
        }))?);
    }
    let (format, shape) = (data.format, data.example_shape());
    let (trained, tested) = (data.train.len(), data.test.len());
    output.line(format_args!(
        "{format}: examples of shape {shape:?}, {} classes, {trained} to train on, {tested} to test",
        data.classes
    ))?;
    if let Some(Normalization { mean, std }) = statistics.filter(|found| found.mean.len() <= 3) {
        output.line(format_args!("mean {mean:.4?}, deviation {std:.4?} of each channel"))?;
    }
    let mut rows = Table::new(&["CLASS", ">TRAIN", ">TEST", ""]);
    let most = train.iter().max().copied().unwrap_or(0).max(1);
    for (class, (train, test)) in train.iter().zip(&test).enumerate() {
        let name = data.class_names.get(class).map(|name| name.escape_debug().to_string());
        let bar = "#".repeat((train * BAR).div_ceil(most));
        let name = name.unwrap_or_else(|| class.to_string());
        rows.row(vec![name, train.to_string(), test.to_string(), bar]);
    }
    Ok(output.line(rows)?)
}
