//! A model trained here is ONNX for others too: ONNX Runtime loads it and agrees.

use std::path::Path;
use std::process::Command;

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
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let python = root.join(".tools/onnx/bin/python");
        assert!(python.exists(), "ONNX Runtime is missing: run scripts/setup.sh tests");
        let mut command = Command::new(python);
        command.arg(root.join("tests/tools/check_onnx.py")).arg(&path).arg(&cases_file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("20 cases"), "{text}");
    }
}

/// The picture as the model's input, by the preprocessing that its manifest declares.
fn input(picture: &Path, preprocessing: &Value) -> Vec<f64> {
    let bytes = std::fs::read(picture).unwrap();
    let preprocessing = serde_json::from_value(preprocessing.clone()).unwrap();
    let tensor = models::picture::to_tensor(&bytes, &preprocessing).unwrap();
    tensor.as_f32().unwrap().iter().map(|value| f64::from(*value)).collect()
}
