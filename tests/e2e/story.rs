//! What the tests tell again and again: a trained model, a training, a picture asked about.

use std::path::Path;

use serde_json::{Value, json};
use tests::data::Digits;
use tests::process::Process;
use tests::world::{Answer, World, answer};

/// A fleet with digits on every device.
pub(crate) struct Fleet {
    pub(crate) world: World,
    pub(crate) digits: Digits,
    pub(crate) agents: Vec<Process>,
}

/// Starts agents `device-1`, `device-2`, ... with a share of the digits each.
pub(crate) async fn fleet(devices: usize) -> Fleet {
    let world = World::start().await;
    let digits = Digits::write(world.folder(), devices);
    let mut agents = Vec::new();
    for number in 1..=devices {
        agents.push(join(&world, &digits, number).await);
    }
    Fleet { world, digits, agents }
}

/// Starts one of them.
pub(crate) async fn join(world: &World, digits: &Digits, number: usize) -> Process {
    world.join(&format!("device-{number}"), Some(("digits", &digits.share(number)))).await
}

/// A training job on the digits.
pub(crate) fn training(model: &str, rounds: u32) -> Value {
    json!({"kind": "train", "spec": {
        "model": model, "dataset": "digits", "rounds": rounds,
        "local": {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "momentum": 0.9},
    }})
}

/// Trains until the end; the job's record.
pub(crate) async fn train(world: &World, model: &str, rounds: u32) -> Value {
    let id = world.submit(&training(model, rounds)).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    job
}

/// Registers an untrained model of a family for digits.
pub(crate) async fn register(world: &World, name: &str, family: &str) {
    let onnx = models::zoo::build(family, [1, 8, 8], 10, 7).unwrap();
    let answer = world.register(name, onnx).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// Asks over HTTP with a picture.
pub(crate) async fn ask_picture(world: &World, model: &str, picture: &Path) -> Answer {
    let request = world.request("POST", &format!("/v2/models/{model}/infer"));
    let bytes = std::fs::read(picture).unwrap();
    answer(request.header("content-type", "image/png").body(bytes)).await
}

/// The best class of an answer of Dunlin's own form.
pub(crate) fn best(answer: &Value) -> u64 {
    answer["classes"][0][0]["index"].as_u64().unwrap_or_else(|| panic!("{answer:#}"))
}

/// Checks that an answer is a problem of this status and code, with a hint.
pub(crate) fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.media_type, "application/problem+json", "{answer:?}");
    assert_problem_body(&answer.body, code);
}

/// The same for a body that came over NATS.
pub(crate) fn assert_problem_body(body: &Value, code: &str) {
    assert_eq!(body["code"], code, "{body:#}");
    for member in ["type", "title", "detail", "error"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body:#}");
    }
}
