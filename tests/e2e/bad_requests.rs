//! Requests that cannot be carried out: each gets a problem that says what was wrong and what to
//! do, and the broker goes on.

use serde_json::{Value, json};
use tests::world::{World, answer};

use crate::story::{assert_problem, assert_problem_body, fleet, register, training};

/// A request over HTTP is refused with this status and code; its detail and hint hold these words.
async fn refused(world: &World, body: &Value, status: u16, code: &str, words: &[&str]) {
    let answer = world.post("/v1/jobs", body).await;
    assert_problem(&answer, status, code);
    let text = format!("{} {}", answer.body["detail"], answer.body["hint"]);
    for word in words {
        assert!(text.contains(word), "{text} lacks {word}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_http_are_refused_with_a_hint() {
    let fleet = fleet(1).await;
    let world = &fleet.world;
    register(world, "m", "mlp").await;

    let not_json = world.request("POST", "/v1/jobs").header("content-type", "application/json");
    let not_json = answer(not_json.body("{\"kind\": \"train\",")).await;
    assert_problem(&not_json, 400, "invalid_body");
    assert!(not_json.body["hint"].as_str().is_some_and(|hint| hint.contains("kind")));

    let model = training("no-such-model", 1);
    refused(world, &model, 404, "unknown_model", &["no-such-model", "lenet"]).await;
    let mut dataset = training("mlp", 1);
    dataset["spec"]["dataset"] = json!("cats");
    refused(world, &dataset, 404, "unknown_dataset", &["cats", "digits"]).await;
    let mut field = training("mlp", 1);
    field["spec"]["learning_rat"] = json!(0.1);
    refused(world, &field, 400, "invalid_body", &["learning_rat", "expected one of"]).await;
    let mut several = training("mlp", 1);
    several["spec"]["rounds"] = json!("many");
    several["spec"]["local"]["epohcs"] = json!(3);
    several["spec"]["local"]["learning_rate"] = json!(-1.0);
    let all = ["spec.rounds", "spec.local.epohcs", "spec.local.learning_rate"];
    refused(world, &several, 400, "invalid_body", &all).await;
    let mut negative = training("mlp", 1);
    negative["spec"]["local"]["learning_rate"] = json!(-1.0);
    refused(world, &negative, 400, "invalid_spec", &["learning_rate"]).await;
    refused(world, &training("mlp", 0), 400, "invalid_spec", &["rounds"]).await;
    let shape = json!({"kind": "infer", "spec": {"model": "m", "input": [[1.0, 2.0]]}});
    refused(world, &shape, 400, "invalid_spec", &["shape", "8"]).await;
    let unknown = json!({"kind": "infer", "spec": {"model": "cat", "input": [[1.0]]}});
    refused(world, &unknown, 404, "unknown_model", &["cat", "m"]).await;
    let mut selector = training("mlp", 1);
    selector["selector"] = json!("label.site==");
    refused(world, &selector, 400, "invalid_body", &["selector"]).await;

    assert_problem(&world.get("/v1/devices/ghost").await, 404, "unknown_device");
    assert_problem(&world.get("/v1/jobs/ghost").await, 404, "unknown_job");
    assert_problem(&world.get("/v1/nothing").await, 404, "unknown_path");
    assert_problem(&answer(world.request("PATCH", "/v1/jobs")).await, 405, "method_not_allowed");
    let broken = answer(world.request("POST", "/v2/models/m/infer").body("no picture"));
    let broken = broken.await;
    assert!((400..500).contains(&broken.status), "{broken:?}");
    let picture = world.request("POST", "/v2/models/m/infer").header("content-type", "image/png");
    let picture = answer(picture.body("no picture")).await;
    assert!((400..500).contains(&picture.status), "{picture:?}");
    assert_eq!(world.get("/readyz").await.status, 200);
    assert_eq!(world.get("/v1/jobs").await.body["jobs"], json!([]), "nothing was accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let world = World::start().await;
    let limit = 256 * 1024 * 1024_u64;
    // The length is told, the body never comes.
    let mut stream = tokio::net::TcpStream::connect(&world.http_url()[7..]).await.unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        limit * 64
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = tokio::io::AsyncReadExt::read(&mut stream, &mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("too_large"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_nats_are_refused_in_time() {
    let world = World::start_with("max_payload: 100000").await;
    register(&world, "m", "mlp").await;
    let client = world.client().await;
    for (subject, body, code) in [
        ("jobs.infer", "not json", "invalid_body"),
        ("jobs.infer", r#"{"model":"cat","input":[[1]]}"#, "unknown_model"),
        ("jobs.infer", r#"{"model":"m","inputt":[[1]]}"#, "invalid_body"),
        ("jobs.train", r#"{"model":"cat","dataset":"digits","rounds":1}"#, "unknown_model"),
    ] {
        let began = std::time::Instant::now();
        let message = client.request(subject, body.into()).await.unwrap();
        assert!(began.elapsed().as_secs() < 5, "{subject} {body}");
        let problem: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_problem_body(&problem, code);
        let headers = message.headers.unwrap();
        assert!(headers.get("Nats-Service-Error").is_some(), "{headers:?}");
        assert!(headers.get("Nats-Service-Error-Code").is_some(), "{headers:?}");
    }
    let large = world.folder().join("large.json");
    std::fs::write(&large, vec![b' '; 200_000]).unwrap();
    let output = world.dunlin(&["nats", "pub", "jobs.infer", &format!("@{}", large.display())]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("max_payload") && text.contains("hint:"), "{text}");
}
