use super::*;

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post, put};
use clap::CommandFactory;
use serde_json::{Value, json};

use crate::error::{ApiCode, ApiError};

mod asking;
mod following;
mod mistakes;

/// What a command wrote.
#[derive(Debug, Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A broker that says what the test wants.
async fn broker(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

/// Runs `dunlin <words>` against a broker; what it wrote, and how it ended.
async fn dunlin(server: &str, words: &[&str]) -> (String, Result<(), CliError>) {
    let words = ["dunlin", "--server", server].into_iter().chain(words.iter().copied());
    let cli = parse(words.map(OsString::from).collect()).unwrap();
    let written = Written::default();
    let mut output = Output::buffer(written.clone(), cli.global.json);
    let done = perform(cli, &mut output).await;
    let bytes = written.0.lock().unwrap().clone();
    (String::from_utf8(bytes).unwrap(), done)
}

fn json_of(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}

fn blob() -> Value {
    json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1000})
}

fn outcome(round: u32, accuracy: f64) -> Value {
    json!({"round": round, "parameters": blob(), "failure": null,
        "updates": [["pi-1", {"parameters": blob(), "examples": 10, "loss": 1.5, "accuracy": 0.5,
            "steps": 1, "duration_ms": 5, "engine": "native"}]],
        "evaluations": [["pi-1", {"examples": 10, "loss": 0.5, "accuracy": accuracy,
            "duration_ms": 5}]],
        "missing": [], "started_at": 0, "ended_at": 1500})
}

fn job(id: &str, state: &str, failure: &Value) -> Value {
    let model = json!({"name": "digits", "version": "1", "digest": blob()["digest"]});
    let result = json!({"kind": "train", "model": model});
    json!({"id": id, "state": state, "accepted_at": 0, "ended_at": null, "devices": [],
        "spec": {"selector": "", "deadline_ms": 1, "work": {"kind": "train",
            "model": {"name": "mlp"}, "dataset": "digits", "rounds": 2}},
        "failure": failure, "rounds": [outcome(1, 0.5), outcome(2, 0.875)],
        "result": if state == "succeeded" { result } else { Value::Null }})
}

fn event(sequence: u64, body: &Value) -> String {
    let data = json!({"sequence": sequence, "job": "j", "at": 0, "body": body});
    format!("id: {sequence}\nevent: x\ndata: {data}\n\n")
}

fn round_ended(sequence: u64, round: u32, accuracy: f64) -> String {
    let mut body = outcome(round, accuracy);
    body["event"] = json!("round_ended");
    event(sequence, &body)
}

/// A broker whose event streams break after the first round; repeats what was seen already.
fn training(state: &'static str, failure: Value, seen: Arc<Mutex<Vec<String>>>) -> Router {
    let events = move |headers: HeaderMap| async move {
        let after = headers.get("last-event-id").map_or("", |id| id.to_str().unwrap()).to_owned();
        seen.lock().unwrap().push(after.clone());
        let text = if after.is_empty() {
            event(1, &json!({"event": "accepted"})) + &round_ended(2, 1, 0.5)
        } else {
            let ended = json!({"event": "ended", "state": state, "failure": null, "result": null});
            round_ended(2, 1, 0.5) + &round_ended(3, 2, 0.875) + &event(4, &ended)
        };
        ([(header::CONTENT_TYPE, "text/event-stream")], text)
    };
    let failure = Arc::new(failure);
    let shown = failure.clone();
    Router::new()
        .route(
            "/v1/jobs/{id}",
            put(move |Path(id): Path<String>| async move {
                (StatusCode::ACCEPTED, json_of(&job(&id, "accepted", &Value::Null)))
            })
            .get(move |Path(id): Path<String>| async move { json_of(&job(&id, state, &shown)) }),
        )
        .route("/v1/jobs/{id}/events", get(events))
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_command_lines_are_refused() {
    let cases: [&[&str]; 9] = [
        &["dunlin"],
        &["dunlin", "trian"],
        &["dunlin", "train", "--dataset", "digits"],
        &["dunlin", "train", "--dataset", "DIGITS", "--model", "mlp"],
        &["dunlin", "train", "--dataset", "d", "--model", "mlp", "--schedule", "linear"],
        &["dunlin", "train", "--dataset", "d", "--model", "mlp", "--loss", "l1"],
        &["dunlin", "infer", "--model", "m"],
        &["dunlin", "infer", "--model", "m:", "x.png"],
        &["dunlin", "data", "digits", "--out", "x", "--partition", "even"],
    ];
    for words in cases {
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(failure::USAGE), "{words:?}");
    }
}

#[tokio::test]
async fn training_is_followed_through_a_break() {
    let seen = Arc::default();
    let server = broker(training("succeeded", Value::Null, Arc::clone(&seen))).await;
    let words = ["train", "--dataset", "digits", "--model", "mlp", "--rounds", "2"];
    let (text, done) = dunlin(&server, &words).await;
    assert_eq!(done, Ok(()), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("train mlp on digits, 2 rounds, on devices that have it"));
    assert_eq!(lines[1], train::live::HEADING);
    assert_eq!(lines[2], "    1    0.5000    50.0 %      1/1     2.0 KB     1.5 s     1.5 s");
    assert_eq!(lines[3], "    2    0.5000    87.5 %      1/1     2.0 KB     1.5 s         -");
    let registered =
        "registered digits:1 (2 rounds, 1 devices, accuracy 87.5 % on 10 test examples)";
    assert_eq!(lines[5], registered);
    assert_eq!(lines[6], "next: dunlin infer --model digits PICTURE...");
    assert_eq!(*seen.lock().unwrap(), ["", "2"], "the second stream begins where the first broke");
}

#[tokio::test]
async fn a_failed_training_ends_with_its_reason() {
    let failure = json!({"code": "no_quorum", "message": "round 1: 1 of 2 updates"});
    let server = broker(training("failed", failure, Arc::default())).await;
    let words = ["--json", "train", "--dataset", "digits", "--model", "mlp"];
    let (text, done) = dunlin(&server, &words).await;
    let error = done.unwrap_err();
    assert_eq!((error.code, error.word.as_str()), (failure::FAILED, "no_quorum"));
    assert_eq!(error.detail, "round 1: 1 of 2 updates");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sequences: Vec<u64> = events.iter().map(|e| e["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [1, 2, 3, 4], "JSON is one event a line, each once");
}

#[tokio::test]
async fn the_request_says_what_was_typed() {
    let said: Arc<Mutex<Value>> = Arc::default();
    let keep = Arc::clone(&said);
    let routes = Router::new().route(
        "/v1/jobs/{id}",
        put(move |Path(id): Path<String>, body: String| async move {
            *keep.lock().unwrap() = serde_json::from_str(&body).unwrap();
            json_of(&job(&id, "accepted", &Value::Null))
        }),
    );
    let server = broker(routes).await;
    let words = "train --dataset digits --model mlp:2 --rounds 7 --devices 2 --epochs 3 \
        --batch-size 16 --learning-rate 0.1 --momentum 0 --quorum 2 --round-deadline 30s \
        --deadline 2h --target-accuracy 0.9 --register-as best --selector arch=aarch64 --seed 5 \
        --loss mse --schedule cosine:0.1 --warm-up 20 --detach";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (text, done) = dunlin(&server, &words).await;
    assert_eq!(done, Ok(()));
    assert_eq!(text.trim().len(), 26, "only the id: {text}");
    let body = said.lock().unwrap().clone();
    assert_eq!(body["selector"], "arch=aarch64");
    assert_eq!(body["deadline_ms"], 7_200_000);
    let spec = &body["spec"];
    assert_eq!(spec["model"], json!({"name": "mlp", "version": "2"}));
    assert_eq!((&spec["rounds"], &spec["seed"]), (&json!(7), &json!(5)));
    assert_eq!((&spec["local"]["epochs"], &spec["local"]["batch_size"]), (&json!(3), &json!(16)));
    let local = &spec["local"];
    assert_eq!((&local["loss"], &local["warm_up"]), (&json!("mse"), &json!(20)));
    assert_eq!(local["schedule"], json!({"kind": "cosine", "floor": 0.1}));
    let participation = &spec["participation"];
    assert_eq!((&participation["devices"], &participation["quorum"]), (&json!(2), &json!(2)));
    assert_eq!(participation["deadline_ms"], 30_000);
    assert_eq!(spec["register_as"], "best");
}

#[tokio::test]
async fn rounds_are_shown_and_exported() {
    let record = |number, accuracy| {
        let outcome = serde_json::from_value(outcome(number, accuracy)).unwrap();
        serde_json::to_value(crate::history::RoundRecord::of(&outcome)).unwrap()
    };
    let list = json!({"job": "j", "rounds": [record(1, 0.5), record(2, 0.875)]});
    let list = move |request: Request| async move {
        match request.uri().query() {
            None | Some("format=json") => json_of(&list).into_response(),
            Some("format=csv") => "round,seconds\n1,1.5\n".into_response(),
            Some("format=csv&rows=devices") => "round,device\n1,pi-1\n".into_response(),
            other => panic!("{other:?}"),
        }
    };
    let routes = Router::new()
        .route("/v1/jobs/{id}/rounds", get(list))
        .route("/v1/jobs/{id}/rounds/2", get(move || async move { json_of(&record(2, 0.875)) }));
    let server = broker(routes).await;
    let (text, done) = dunlin(&server, &["rounds", "show", "j"]).await;
    assert_eq!(done, Ok(()));
    assert_eq!(text.lines().nth(2).unwrap().split_whitespace().nth(2), Some("87.5"), "{text}");
    let (text, _) = dunlin(&server, &["rounds", "show", "j", "--round", "2"]).await;
    assert!(text.starts_with("round 2: 1 updates") && text.contains("pi-1"), "{text}");
    let (text, _) = dunlin(&server, &["--json", "rounds", "show", "j"]).await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().len(), 2);
    let (text, _) = dunlin(&server, &["rounds", "export", "j"]).await;
    assert_eq!(text, "round,seconds\n1,1.5\n");
    let (text, _) = dunlin(&server, &["rounds", "export", "j", "--devices"]).await;
    assert_eq!(text, "round,device\n1,pi-1\n");
    let both = ["rounds", "export", "j", "--devices", "--format", "json"];
    assert_eq!(dunlin(&server, &both).await.1.unwrap_err().code, failure::USAGE);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rounds.json");
    let words = ["rounds", "export", "j", "--format", "json", "-o", file.to_str().unwrap()];
    let (text, done) = dunlin(&server, &words).await;
    assert_eq!((text.as_str(), done), ("", Ok(())));
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["rounds"][1]["round"], 2);
}

fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::GrayImage::new(8, 8);
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

#[tokio::test]
async fn pictures_are_asked_in_order_and_failures_do_not_stop_the_rest() {
    let answer = |request: Request| async move {
        assert_eq!(request.headers()[header::CONTENT_TYPE], "image/png");
        assert_eq!(request.uri().query(), Some("top=1"));
        json_of(&json!({"device": "pi-1", "engine": "tract", "engine_us": 300, "outputs": [],
            "model": {}, "classes": [[{"index": 7, "probability": 0.982}]]}))
    };
    let server = broker(Router::new().route("/v2/models/{m}/infer", post(answer))).await;
    let folder = tempfile::tempdir().unwrap();
    let mut words = vec!["infer".to_owned(), "--model".to_owned(), "m".to_owned()];
    for (name, bytes) in [("a.png", png()), ("b.txt", b"text".to_vec()), ("c.png", png())] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        words.push(path.display().to_string());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (text, done) = dunlin(&server, &words).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("7   98.2 %  ") && lines[0].contains("a.png"), "{text}");
    assert!(lines[1].ends_with("c.png  (device pi-1, tract, 0.3 ms)"), "{text}");
    let error = done.unwrap_err();
    assert_eq!((error.code, error.detail.as_str()), (2, "1 of 3 pictures have no answer"));
}

#[tokio::test]
async fn problems_keep_their_detail_and_hint() {
    let refuse =
        || async { ApiError::new(ApiCode::UnknownModel, "there is no model m", "push it") };
    let busy = || async {
        let code = ApiCode::Job(::jobs::report::FailureCode::NoDevice);
        ApiError::new(code, "no device is online", "start one")
    };
    let routes = Router::new()
        .route("/v1/models/{m}", delete(refuse))
        .route("/v1/devices", get(busy))
        .route("/v1/jobs", get(|| async { "not JSON" }));
    let server = broker(routes).await;
    let (_, done) = dunlin(&server, &["models", "rm", "m", "--all"]).await;
    let error = done.unwrap_err();
    assert_eq!(error.code, failure::USAGE);
    assert_eq!((error.detail.as_str(), error.hint.as_str()), ("there is no model m", "push it"));
    let (_, done) = dunlin(&server, &["devices"]).await;
    assert_eq!(done.unwrap_err().code, failure::FAILED);
    let (_, done) = dunlin(&server, &["jobs"]).await;
    assert!(done.unwrap_err().detail.contains("cannot be read"));
    let (_, done) = dunlin(&server, &["jobs", "show", "x"]).await;
    assert!(done.unwrap_err().detail.contains("404"), "no problem document, but its status");
}

#[tokio::test]
async fn without_a_broker_the_hint_says_how_to_start_one() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_, done) = dunlin(&server, &["devices"]).await;
    let error = done.unwrap_err();
    assert_eq!((error.code, error.word.as_str()), (failure::USAGE, "unreachable"));
    assert!(error.hint.contains("dunlin up"), "{error:?}");
    let (_, done) = dunlin("ftp://x", &["devices"]).await;
    assert!(done.unwrap_err().detail.contains("expected http://"));
}

#[tokio::test]
async fn a_broker_may_be_behind_a_path_of_a_proxy() {
    let models = || async { json_of(&json!({"models": []})) };
    let server = broker(Router::new().route("/fleet/v1/models", get(models))).await;
    for path in ["/fleet", "/fleet/"] {
        let (text, done) = dunlin(&format!("{server}{path}"), &["--json", "models"]).await;
        assert_eq!((text.trim(), done), ("[]", Ok(())), "{path}");
    }
    let (_, done) = dunlin(&format!("{server}/fleet?x=1"), &["models"]).await;
    assert!(done.unwrap_err().detail.contains("at most a path"));
}

#[test]
fn what_is_no_id_is_refused_before_a_broker_is_asked() {
    for words in [
        ["jobs", "show", "../devices"],
        ["jobs", "events", ""],
        ["rounds", "show", "j/rounds/1"],
        ["rounds", "export", "j?format=json"],
        ["jobs", "cancel", "J"],
    ] {
        let words = ["dunlin"].into_iter().chain(words).map(OsString::from).collect();
        let error = parse(words).unwrap_err().to_string();
        assert!(error.contains("invalid value"), "{error}");
    }
    let error = parse(["dunlin", "devices", "../jobs"].map(OsString::from).into()).unwrap_err();
    assert!(error.to_string().contains("invalid value"), "{error}");
}

#[tokio::test]
async fn lists_are_tables_or_json() {
    let list = || async { json_of(&json!({"jobs": [job("j1", "succeeded", &Value::Null)]})) };
    let models = || async { json_of(&json!({"models": []})) };
    let server =
        broker(Router::new().route("/v1/jobs", get(list)).route("/v1/models", get(models))).await;
    let (text, done) = dunlin(&server, &["jobs"]).await;
    assert_eq!(done, Ok(()));
    assert!(text.starts_with("JOB  WHAT"), "{text}");
    assert!(text.contains("j1   train mlp on digits, 2 rounds  succeeded"), "{text}");
    assert!(text.trim_end().ends_with("digits:1"), "{text}");
    let (text, _) = dunlin(&server, &["--json", "jobs"]).await;
    let jobs: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(jobs[0]["id"], "j1");
    let (text, _) = dunlin(&server, &["models"]).await;
    assert!(text.contains("no models yet"), "{text}");
}
