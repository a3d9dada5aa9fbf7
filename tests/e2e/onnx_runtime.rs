//! A model trained here is ONNX for others too: ONNX Runtime loads it and agrees.

use std::path::Path;
use std::process::Command;

use models::train::{Loss, Settings, Sgd, Targets, Trainer};
use serde_json::{Value, json};

use crate::story::{ask_picture, fleet, train};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn onnx_runtime_agrees_with_a_model_trained_here() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    for family in ["mlp", "lenet", "cnn", "resnet8"] {
        train(world, family, 1).await;
        let path = world.folder().join(format!("{family}.onnx"));
        let file = path.to_str().unwrap();
        let output = world.dunlin(&["models", "pull", family, "--output", file]);
        assert!(output.status.success(), "{output:?}");
        let config = world.get(&format!("/v1/models/{family}/versions/1")).await.body;
        let mut cases = Vec::new();
        for (picture, _) in fleet.digits.held_out().iter().take(20) {
            let answer = ask_picture(world, family, picture).await.body;
            cases.push(json!({
                "shape": [1, 1, 8, 8],
                "input": input(picture, &config["config"]["preprocessing"]),
                "output": answer["outputs"][0]["data"],
            }));
        }
        let cases_file = world.folder().join(format!("{family}.json"));
        std::fs::write(&cases_file, Value::from(cases).to_string()).unwrap();
        let text = check("check_onnx.py", &[&path, &cases_file]);
        assert!(text.contains("20 cases"), "{text}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What one of `tests/tools` says, which has to be content.
fn check(tool: &str, arguments: &[&Path]) -> String {
    let python = root().join(".tools/onnx/bin/python");
    assert!(python.exists(), "ONNX Runtime is missing: run scripts/setup.sh tests");
    let mut command = Command::new(python);
    command.arg(root().join("tests/tools").join(tool)).args(arguments);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {text}{errors}");
    text
}

/// Graphs as `PyTorch`, Keras and scikit-learn export them, trained here and written back.
#[test]
fn onnx_runtime_agrees_with_trained_exports() {
    let folder = tempfile::tempdir().unwrap();
    let exports = root().join("models/testing/exports");
    let mut count = 0;
    for entry in std::fs::read_dir(exports).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        write_trained(folder.path(), name, &std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 25, "{count} exports");
    let text = check("check_exports.py", &[folder.path()]);
    assert!(text.contains(&format!("{count} exports")), "{text}");
}

/// Trains an export for some steps and writes its files with what they should answer.
fn write_trained(folder: &Path, name: &str, onnx: &[u8]) {
    let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0 };
    // With this loss the outputs are the model's, after a final softmax or sigmoid.
    let settings = Settings { loss: Loss::MeanSquaredError, ..Settings::default() };
    let mut whole = Trainer::with_settings(onnx, sgd, settings).unwrap();
    let mut trainer = Trainer::new(onnx, sgd).unwrap();
    let shape = trainer.example_shape().to_vec();
    let len: usize = shape.iter().product();
    let wave = |at: usize| f32::from(u8::try_from(at * 37 % 101).unwrap()) / 50.0 - 1.0;
    let examples: Vec<f32> = (0..6 * len).map(wave).collect();
    let classes = u32::try_from(trainer.classes()).unwrap();
    let labels: Vec<u32> = (0..6).map(|at| at % classes).collect();
    if classes == 1 {
        whole.step_towards(&examples, Targets::Values(&[1.0; 6])).unwrap();
        trainer.set_parameters(&whole.parameters()).unwrap();
    } else {
        for _ in 0..10 {
            trainer.step(&examples, &labels).unwrap();
        }
        whole.set_parameters(&trainer.parameters()).unwrap();
    }
    let mut all = vec![6];
    all.extend(shape);
    let output = whole.logits(&examples).unwrap();
    let case = json!({ "shape": all, "input": examples, "output": output });
    std::fs::write(folder.join(format!("{name}.json")), case.to_string()).unwrap();
    for (kind, onnx) in [
        ("training", trainer.to_training_onnx()),
        ("inference", trainer.to_inference_onnx()),
        ("folded", trainer.to_folded_onnx()),
    ] {
        std::fs::write(folder.join(format!("{name}.{kind}.onnx")), onnx).unwrap();
    }
}

/// The picture as the model's input, by the preprocessing that its manifest declares.
fn input(picture: &Path, preprocessing: &Value) -> Vec<f64> {
    let bytes = std::fs::read(picture).unwrap();
    let preprocessing = serde_json::from_value(preprocessing.clone()).unwrap();
    let tensor = models::picture::to_tensor(&bytes, &preprocessing).unwrap();
    tensor.as_f32().unwrap().iter().map(|value| f64::from(*value)).collect()
}
