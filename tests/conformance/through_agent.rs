//! The same models on an agent, asked over HTTP: every image.

use serde_json::{Value, json};
use tests::world::World;

use super::cases;
use super::compare::{Score, batches};

const JSON_LENGTH: &str = "inference-header-content-length";

#[tokio::test]
async fn every_model_answers_every_image_as_onnx_runtime() {
    let (Some(cifar10), Some(mnist)) = (cases::cifar10(), cases::mnist()) else { return };
    let world = World::start().await;
    let _agent = world.join("one", None).await;
    for case in cifar10.iter().chain(&mnist) {
        let name = case.name.trim_end_matches(".onnx");
        let registered = world.register(name, case.onnx.clone()).await;
        assert_eq!(registered.status, 201, "{registered:?}");
        let input =
            world.get(&format!("/v2/models/{name}")).await.body["inputs"][0]["name"].clone();
        let mut score = Score::new(case);
        for (indices, tensor) in batches(case, case.step) {
            let outputs = ask(&world, name, &input, tensor.shape(), tensor.as_f32().unwrap()).await;
            score.add(&indices, &outputs);
        }
        println!("{score}");
        assert!(score.is_near(), "{score}");
    }
}

/// Asks with a binary tensor, and takes the first output as one.
async fn ask(world: &World, model: &str, input: &Value, shape: &[usize], x: &[f32]) -> Vec<f32> {
    let header = json!({
        "inputs": [{"name": input, "datatype": "FP32", "shape": shape,
            "parameters": {"binary_data_size": size_of_val(x)}}],
        // Slow machines need a while for 32 images and an engine without optimisations.
        "parameters": {"binary_data_output": true, "deadline_ms": 29_000},
    })
    .to_string();
    let mut body = header.clone().into_bytes();
    models::params::append_le_bytes(x, &mut body);
    let request = world.request("POST", &format!("/v2/models/{model}/infer"));
    let request = request.header(JSON_LENGTH, header.len());
    let response =
        request.header("content-type", "application/octet-stream").body(body).send().await.unwrap();
    let status = response.status();
    let length = response.headers().get(JSON_LENGTH).cloned();
    let body = response.bytes().await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let length: usize = length.unwrap().to_str().unwrap().parse().unwrap();
    let answer: Value = serde_json::from_slice(&body[..length]).unwrap();
    let size = answer["outputs"][0]["parameters"]["binary_data_size"].as_u64().unwrap();
    models::params::from_le_bytes(&body[length..length + usize::try_from(size).unwrap()])
}
