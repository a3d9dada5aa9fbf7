//! Devices join, learn together, and answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use models::params::Parameters;
use models::train::Definition;
use serde_json::{Value, json};

use crate::story::{ask_picture, best, fleet, train};

/// Three devices with uneven shares learn digits within fifteen rounds; the model answers held-out
/// digits over HTTP, NATS and the command alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_devices_learn_digits_and_answer() {
    let fleet = fleet(3).await;
    let world = &fleet.world;
    let job = train(world, "lenet", 15).await;
    let rounds = job["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 15);
    for (index, round) in rounds.iter().enumerate() {
        assert_eq!(round["round"], index + 1);
        assert_eq!(round["updates"].as_array().unwrap().len(), 3, "{round:#}");
        assert_eq!(round["missing"], json!([]));
        let ended = round["ended_at"].as_u64().unwrap();
        assert!(ended >= round["started_at"].as_u64().unwrap());
    }
    let first = &rounds[0]["evaluations"][0][1]["loss"];
    let last = &rounds[14]["evaluations"][0][1]["loss"];
    assert!(last.as_f64() < first.as_f64(), "{first} {last}");
    assert_eq!(job["result"]["model"]["name"], "lenet");
    assert_eq!(job["result"]["model"]["version"], "1");

    let model = world.get("/v1/models/lenet/versions/1").await.body;
    let lineage = &model["config"]["lineage"];
    assert_eq!(lineage["devices"], json!(["device-1", "device-2", "device-3"]), "{model:#}");
    assert_eq!((&lineage["job"], &lineage["rounds"]), (&job["id"], &json!(15)));

    let held_out = fleet.digits.held_out();
    assert_eq!(held_out.len(), 360);
    let mut right = 0;
    for (picture, class) in &held_out {
        let answer = ask_picture(world, "lenet", picture).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        right += u32::from(best(&answer.body) == u64::from(*class));
    }
    assert!(right >= 342, "{right} of 360 held-out digits are right, expected 95 %");
    asked_three_ways_the_answer_is_one(world, &held_out[0].0).await;
}

/// The same picture over HTTP, by a NATS request and by the command.
async fn asked_three_ways_the_answer_is_one(
    world: &tests::world::World,
    picture: &std::path::Path,
) {
    let http = ask_picture(world, "lenet", picture).await.body;
    let text = STANDARD.encode(std::fs::read(picture).unwrap());
    let body = json!({"model": "lenet", "picture": text}).to_string();
    let client = world.client().await;
    let message = client.request("jobs.infer", body.into()).await.unwrap();
    let nats: Value = serde_json::from_slice(&message.payload).unwrap();
    let path = picture.to_str().unwrap();
    let output = world.dunlin(&["--json", "infer", "--model", "lenet", "--top", "5", path]);
    assert!(output.status.success(), "{output:?}");
    let command: Value = serde_json::from_slice(&output.stdout).unwrap();
    for member in ["classes", "outputs", "model"] {
        assert_eq!(http[member], nats[member], "{member}");
        assert_eq!(http[member], command[member], "{member}");
    }
    assert!(http["engine_us"].as_u64() > Some(0) && http["device"].is_string(), "{http:#}");
}

/// What a training tells while it goes on, over SSE and by `dunlin train`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_is_followed_round_by_round() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let output = world.dunlin(&["train", "--dataset", "digits", "--model", "mlp", "--rounds", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let round = |number: &str| text.lines().any(|line| line.trim_start().starts_with(number));
    assert!(round("1 ") && round("2 "), "{text}");
    assert!(text.contains("registered mlp:1"), "{text}");
    let id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':');

    let events = world.request("GET", &format!("/v1/jobs/{id}/events")).send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let events = events.text().await.unwrap();
    let names: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let told: Vec<&str> = names.iter().copied().filter(|name| *name != "progress").collect();
    let round = ["round_started", "round_ended"];
    assert_eq!(told, [&["accepted"], &round[..], &round[..], &["ended"]].concat());

    let ids: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    let rest = world.request("GET", &format!("/v1/jobs/{id}/events"));
    let rest = rest.header("last-event-id", ids[ids.len() - 2]).send().await.unwrap();
    let rest = rest.text().await.unwrap();
    assert_eq!(rest.matches("event: ").count(), 1, "{rest}");
    assert!(rest.contains("event: ended"), "{rest}");
}

/// Devices keep a layer to themselves: the model comes back with it as it began, and a device
/// judges the model with its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_keep_a_layer_to_themselves() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let onnx = world.folder().join("mlp.onnx");
    let pull = ["models", "pull", "mlp", "--output", onnx.to_str().unwrap()];
    let (mut last, mut id) = (Vec::new(), String::new());
    for rounds in ["1", "4"] {
        let train = ["train", "--dataset", "digits", "--model", "mlp", "--rounds", rounds];
        let how = ["--register-as", "mlp", "--keep-local", "hidden.*"];
        let output = world.dunlin(&[&train[..], &how[..]].concat());
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':').to_owned();
        let output = world.dunlin(&pull);
        assert!(output.status.success(), "{output:?}");
        let model = std::fs::read(&onnx).unwrap().into();
        let (_, parameters) = Definition::read_with_parameters(&model).unwrap();
        last.push(Parameters::from_safetensors(&parameters).unwrap());
    }
    for (one, other) in last[0].items().iter().zip(last[1].items()) {
        assert_eq!(one == other, one.name.starts_with("hidden."), "{}", one.name);
    }
    let job = world.get(&format!("/v1/jobs/{id}")).await.body;
    let accuracy = &job["rounds"][3]["evaluations"][0][1]["accuracy"];
    assert!(accuracy.as_f64() > Some(0.8), "{job:#}");
}

/// A layer that is frozen comes back as it was before the first round, and the others do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_layer_stays_as_it_was() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let train = ["train", "--dataset", "digits", "--model", "mlp", "--rounds", "2", "--seed", "7"];
    let output = world.dunlin(&[&train[..], &["--freeze", "hidden.*"]].concat());
    assert!(output.status.success(), "{output:?}");
    let onnx = world.folder().join("mlp.onnx");
    let pull = world.dunlin(&["models", "pull", "mlp", "--output", onnx.to_str().unwrap()]);
    assert!(pull.status.success(), "{pull:?}");
    let parameters = |onnx: Vec<u8>| {
        let (_, parameters) = Definition::read_with_parameters(&onnx.into()).unwrap();
        Parameters::from_safetensors(&parameters).unwrap()
    };
    let before = parameters(models::zoo::build("mlp", [1, 8, 8], 10, 7).unwrap());
    let after = parameters(std::fs::read(&onnx).unwrap());
    let hidden = before.items().iter().filter(|item| item.name.starts_with("hidden.")).count();
    assert!((1..before.items().len()).contains(&hidden), "some are frozen, some are not");
    for (one, other) in before.items().iter().zip(after.items()) {
        assert_eq!(one == other, one.name.starts_with("hidden."), "{}", one.name);
    }
}

/// A model trained here goes on being trained, under another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_model_is_trained_further() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let first = train(world, "mlp", 3).await;
    let mut job = crate::story::training("mlp:1", 2);
    job["spec"]["register_as"] = json!("better");
    let id = world.submit(&job).await;
    let second = world.ended(&id).await;
    assert_eq!(second["result"]["model"]["name"], "better", "{second:#}");
    let loss = |job: &Value, round: usize| {
        job["rounds"][round]["evaluations"][0][1]["loss"].as_f64().unwrap()
    };
    assert!(loss(&second, 0) < loss(&first, 0), "it begins where the first ended");
}
