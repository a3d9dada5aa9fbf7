//! Small networks as exporters write them, from `models/testing`: each is read, trained and
//! written back.

use super::*;

macro_rules! exports {
    ($($name:literal),* $(,)?) => {
        /// Names and files.
        const EXPORTS: &[(&str, &[u8])] = &[
            $(($name, include_bytes!(concat!("../../../testing/exports/", $name, ".onnx")))),*
        ];
    };
}

exports!(
    "keras_cnn",
    "keras_excited",
    "keras_mlp",
    "keras_mobile",
    "keras_mobile_plain",
    "pytorch_cnn_dynamo",
    "pytorch_cnn_dynamo_plain",
    "pytorch_cnn_dynamo_training",
    "pytorch_cnn_eval",
    "pytorch_cnn_training",
    "pytorch_efficientnet_dynamo_plain",
    "pytorch_efficientnet_dynamo_training",
    "pytorch_efficientnet_eval",
    "pytorch_efficientnet_training",
    "pytorch_mean_dynamo",
    "pytorch_mean_eval",
    "pytorch_mean_training",
    "pytorch_mobilenet_v2_dynamo_plain",
    "pytorch_mobilenet_v2_training",
    "pytorch_mobilenet_v3_dynamo",
    "pytorch_mobilenet_v3_training",
    "pytorch_resnet_dynamo",
    "pytorch_resnet_dynamo_plain",
    "pytorch_resnet_eval",
    "pytorch_resnet_training",
    "sklearn_mlp_arrays",
    "sklearn_mlp_binary",
    "sklearn_mlp_names",
    "sklearn_mlp_scaled",
    "sklearn_mlp_zipmap",
    "sklearn_regressor",
);

/// Checks each; what it says of those that fail is collected.
fn each(check: impl Fn(&str, &mut Trainer) -> Result<(), String>) {
    let run = |(name, onnx): &(&str, &[u8])| -> Result<(), String> {
        let mut trainer = Trainer::new(onnx, Optimizer::Adam(Adam::new(0.02)))
            .map_err(|error| error.to_string())?;
        check(name, &mut trainer)
    };
    let problems: Vec<String> = EXPORTS
        .iter()
        .filter_map(|export| Some(format!("{}: {}", export.0, run(export).err()?)))
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

fn far(found: &[f32], expected: &[f32]) -> Result<(), String> {
    let size = expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * size || a.is_nan();
    if found.len() == expected.len() && !found.iter().zip(expected).any(differs) {
        return Ok(());
    }
    Err(format!("found {found:?}, expected {expected:?}"))
}

/// Trains a while; the loss at first and at last, in training, as running statistics lag behind.
fn train(trainer: &mut Trainer, steps: usize) -> (f64, f64) {
    let (examples, labels) = batch(trainer, 8);
    let mut step = || trainer.step(&examples, &labels).unwrap().loss;
    let first = step();
    let losses: Vec<f64> = (1..steps).map(|_| step()).collect();
    let last = losses.iter().rev().take(5);
    (first, last.sum::<f64>() / 5.0)
}

#[test]
fn each_learns() {
    each(|name, trainer| {
        if name == "sklearn_regressor" {
            return Ok(());
        }
        let (first, last) = train(trainer, 100);
        if last < 0.8 * first { Ok(()) } else { Err(format!("loss {first}, then {last}")) }
    });
}

#[test]
fn a_regressor_learns_values() {
    let (_, onnx) = EXPORTS[EXPORTS.len() - 1];
    let settings = Settings { loss: Loss::MeanSquaredError, ..Settings::default() };
    let mut trainer = Trainer::with_settings(onnx, SGD, settings).unwrap();
    let (examples, _) = batch(&trainer, 8);
    let targets: Vec<f32> = examples.chunks(5).map(|x| x[0] * x[1]).collect();
    let targets = Targets::Values(&targets);
    let first = trainer.evaluate_towards(&examples, targets).unwrap().loss;
    for _ in 0..200 {
        trainer.step_towards(&examples, targets).unwrap();
    }
    let last = trainer.evaluate_towards(&examples, targets).unwrap().loss;
    assert!(last < 0.2 * first, "loss {first}, then {last}");
}

#[test]
fn each_comes_back_as_the_same_graph_with_new_weights() {
    each(|_, trainer| {
        train(trainer, 8);
        let (examples, _) = batch(trainer, 5);
        let expected = trainer.logits(&examples).unwrap();
        let files = [
            ("training", trainer.to_training_onnx()),
            ("inference", trainer.to_inference_onnx()),
            ("folded", trainer.to_folded_onnx()),
        ];
        for (kind, onnx) in files {
            let at = |error: String| format!("{kind}: {error}");
            let mut again = Trainer::new(&onnx, SGD).map_err(|error| at(error.to_string()))?;
            far(&again.logits(&examples).unwrap(), &expected).map_err(at)?;
            if kind == "training" && again.parameters() != trainer.parameters() {
                return Err("other parameters in the training file".to_owned());
            }
        }
        Ok(())
    });
}

#[test]
fn nothing_of_training_is_left_for_inference() {
    each(|_, trainer| {
        let operators = |onnx: &[u8]| -> Vec<String> {
            let graph = crate::onnx::parse(onnx).unwrap().graph.unwrap();
            graph.node.into_iter().map(|node| node.op_type).collect()
        };
        let folded = operators(&trainer.to_folded_onnx());
        let left = ["Dropout", "RandomUniformLike", "BatchNormalization", "Less"];
        let found = folded.iter().find(|operator| left.contains(&operator.as_str()));
        match found {
            Some(operator) => Err(format!("{operator} is left")),
            None => Ok(()),
        }
    });
}
