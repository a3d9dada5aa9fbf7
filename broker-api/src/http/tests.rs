use std::net::SocketAddr;

use ::models::artifact::ModelConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::broker::BrokerConfig;
use crate::testing::{Action, Device, PATIENCE, World, joined, register};

/// A broker behind HTTP on a port of its own.
async fn served(world: &World, limits: HttpLimits) -> SocketAddr {
    let broker = world.broker().await;
    register(&broker, "m").await;
    served_by(broker, limits).await
}

async fn served_by(broker: Broker, limits: HttpLimits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_within(listener, broker, limits, std::future::pending()));
    address
}

/// Sends the head of a request and the beginning of its body.
async fn begin(
    address: SocketAddr,
    path: &str,
    kind: &str,
    length: usize,
    body: &[u8],
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

/// What comes back first.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await;
    let count = read.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test]
async fn bodies_are_bounded_by_what_fits_a_message() {
    let world = World::new().await;
    let body_pause = Duration::from_millis(200);
    let address = served(&world, HttpLimits { body_pause, ..HttpLimits::default() }).await;
    let (message, infer) = (crate::nats_server::MAX_PAYLOAD, "/v2/models/m/infer");
    for (path, kind, limit) in [
        ("/v1/jobs", "application/json", 8 * message),
        (infer, "application/json", 8 * message),
        (infer, "image/png", message),
        ("/v1/models/n", "application/octet-stream", 256 * 1024 * 1024),
    ] {
        let text = answer(&mut begin(address, path, kind, limit + 1, b"").await).await;
        assert!(text.starts_with("HTTP/1.1 413") && text.contains("too_large"), "{path}: {text}");
        assert!(text.contains(&limit.to_string()), "{path}: {text}");
        let text = answer(&mut begin(address, path, kind, limit, b"").await).await;
        assert!(text.starts_with("HTTP/1.1 400") && text.contains("did not arrive"), "{text}");
    }
}

#[tokio::test]
async fn bodies_that_are_read_at_once_are_bounded() {
    let world = World::new().await;
    let config = BrokerConfig { body_bytes_max: 1000, ..world.broker_config() };
    let broker = Broker::start(config).await.unwrap();
    let limits = HttpLimits { body_bytes: 1000, ..HttpLimits::default() };
    let address = served_by(broker, limits).await;
    let slow = || begin(address, "/v1/jobs", "application/json", 1000, &[b' '; 999]);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(slow().await);
    }
    let refused = async {
        loop {
            let mut one_more = slow().await;
            one_more.write_all(b" ").await.unwrap();
            let text = answer(&mut one_more).await;
            if text.starts_with("HTTP/1.1 503") {
                break text;
            }
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(5), refused).await.expect("a refusal");
    assert!(text.contains("overloaded") && text.contains("4000"), "{text}");
    let mut first = held.remove(0);
    first.write_all(b" ").await.unwrap();
    assert!(answer(&mut first).await.contains("not a job"));
    let mut again = slow().await;
    again.write_all(b" ").await.unwrap();
    assert!(answer(&mut again).await.contains("not a job"));
}

#[tokio::test]
async fn a_body_that_drips_is_given_up() {
    let world = World::new().await;
    let limits = HttpLimits { body_pause: Duration::from_millis(500), ..HttpLimits::default() };
    let address = served(&world, limits).await;
    let mut stream = begin(address, "/v1/jobs", "application/json", 1000, b" ").await;
    let dripped = async {
        let mut text = vec![0; 4096];
        loop {
            tokio::select! {
                count = stream.read(&mut text) => break text[..count.unwrap()].to_vec(),
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            stream.write_all(b" ").await.unwrap();
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(10), dripped).await.expect("an answer");
    let text = String::from_utf8_lossy(&text);
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("16384 a second"), "{text}");
}

#[tokio::test]
async fn event_streams_leave_places_to_requests() {
    let world = World::new().await;
    let address = served(&world, HttpLimits { connections: 4, ..HttpLimits::default() }).await;
    let get = |path: String| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = answer(&mut stream).await;
        (stream, text)
    };
    let body = br#"{"kind":"telemetry"}"#;
    let mut accepted = begin(address, "/v1/jobs", "application/json", body.len(), body).await;
    let text = answer(&mut accepted).await;
    let id = text.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let events = format!("/v1/jobs/{}/events", id.expect("an id"));
    drop(accepted);
    let (first, _) = get(events.clone()).await;
    let (_second, text) = get(events.clone()).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let (_, text) = get(events.clone()).await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("2 event streams"), "{text}");
    assert!(get("/healthz".to_owned()).await.1.starts_with("HTTP/1.1 200"));
    drop(first);
    let freed = async { while !get(events.clone()).await.1.starts_with("HTTP/1.1 200") {} };
    tokio::time::timeout(PATIENCE, freed).await.expect("a place");
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_given_up() {
    let world = World::new().await;
    let write_pause = Duration::from_millis(500);
    let limits = HttpLimits { connections: 1, write_pause, ..HttpLimits::default() };
    let address = served(&world, limits).await;
    let mut deaf = TcpStream::connect(address).await.unwrap();
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    let asking = tokio::spawn(async move {
        let _ = deaf.write_all(&ask).await;
        std::future::pending::<TcpStream>().await;
        drop(deaf);
    });
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(answer(&mut other).await.starts_with("HTTP/1.1 200"));
    asking.abort();
}

#[tokio::test]
async fn a_request_whose_client_went_away_is_not_in_flight() {
    let world = World::new().await;
    let broker = world.broker().await;
    let name = register(&broker, "m").await.config.inputs[0].name.clone();
    let _device = Device::start_as(&world, "d1", |_| Action::Silence).await;
    joined(&broker, 1).await;
    let address = served_by(broker.clone(), HttpLimits::default()).await;
    let input = serde_json::json!({"name": name, "shape": [1, 1, 2, 2], "datatype": "FP32",
        "data": [0.5, 1.0, 1.5, 2.0]});
    let body = serde_json::json!({"inputs": [input]}).to_string();
    let (path, kind) = ("/v2/models/m/infer", "application/json");
    let stream = begin(address, path, kind, body.len(), body.as_bytes()).await;
    let in_flight = async |count| {
        while broker.core.metrics.in_flight.value() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, in_flight(1)).await.expect("it is asked");
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), in_flight(0)).await.expect("it is gone");
}

#[tokio::test]
async fn waiting_requests_leave_places_to_others() {
    let world = World::new().await;
    let address = served(&world, HttpLimits { connections: 8, ..HttpLimits::default() }).await;
    let body = br#"{"kind":"telemetry"}"#;
    let mut accepted = begin(address, "/v1/jobs", "application/json", body.len(), body).await;
    let text = answer(&mut accepted).await;
    let id = text.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let job = format!("/v1/jobs/{}", id.expect("an id"));
    drop(accepted);
    let ask = |path: String| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nPrefer: wait=60\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(ask(job.clone()).await);
    }
    // All but two of these are told at once that it goes on.
    let mut told = 0;
    for stream in &mut waiting {
        let mut piece = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut piece)).await;
        if let Ok(count) = read {
            let text = String::from_utf8_lossy(&piece[..count.unwrap()]).into_owned();
            assert!(text.contains("\"state\":\"accepted\""), "{text}");
            assert!(!text.contains("preference-applied: wait"), "{text}");
            told += 1;
        }
    }
    assert_eq!(told, 4);
    let text = answer(&mut ask("/healthz".to_owned()).await).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_dry_run_tells_the_devices_whose_engines_may_answer() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let plain = Device::start(&world, "plain").await;
    let with = |engine: &str| vec!["native".to_owned(), engine.to_owned()];
    let hello = ::jobs::device::Hello { engines: with("cuda"), ..crate::testing::hello("gpu") };
    let gpu = Device::start_with(&world, hello, |_| Action::Work).await;
    joined(&broker, 2).await;
    let address = served_by(broker, HttpLimits::default()).await;
    let told = async |engine: &str| {
        let input = [[[[0.5, 1.0], [1.5, 2.0]]]];
        let work = serde_json::json!({"model": "m", "engine": engine, "input": input});
        let spec = serde_json::json!({"kind": "infer", "spec": work});
        let asked = reqwest::Client::new().post(format!("http://{address}/v1/jobs?dry_run=true"));
        let asked = asked.header("content-type", "application/json").body(spec.to_string());
        let text = asked.send().await.unwrap().text().await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(answer["devices"].is_array(), "{text}");
        answer["devices"].clone()
    };
    assert_eq!(told("cuda").await, serde_json::json!(["gpu"]));
    assert_eq!(told("!cuda").await, serde_json::json!(["gpu", "plain"]));
    assert_eq!(told("!cuda,!native").await, serde_json::json!([]));
    drop((plain, gpu));
}

#[tokio::test]
async fn labels_of_a_query_may_be_none() {
    let world = World::new().await;
    let address = served_by(world.broker().await, HttpLimits::default()).await;
    let onnx = ::models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    for (query, expected) in [("labels=", vec![]), ("labels=a,+b,c", vec!["a", "b", "c"])] {
        let push = reqwest::Client::new().post(format!("http://{address}/v1/models/m?{query}"));
        let text = push.body(onnx.clone()).send().await.unwrap().text().await.unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let labels = record["config"]["labels"].as_array().cloned().unwrap_or_default();
        assert_eq!(labels, expected, "{text}");
        assert!(record["version"].is_string(), "{text}");
    }
}

/// A client that asks for a file and takes nothing of it.
async fn downloading(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET /v1/models/large/versions/1/onnx HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn files_that_clients_are_slow_to_take_are_bounded() {
    let world = World::new().await;
    let config = BrokerConfig { body_bytes_max: 16 << 20, ..world.broker_config() };
    let broker = Broker::start(config).await.unwrap();
    let (name, bytes) = ("large".parse().unwrap(), vec![7_u8; 32 << 20]);
    let (next, config) = (crate::broker::registry::Numbering::Next, ModelConfig::default());
    broker.core.registry.add(&name, next, bytes.into(), None, None, config).await.unwrap();
    let address = served_by(broker, HttpLimits::default()).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = downloading(address).await;
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        held.push(stream);
    }
    let text = answer(&mut downloading(address).await).await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("overloaded"), "{text}");
    drop(held.pop());
    let again = async {
        while !answer(&mut downloading(address).await).await.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("room again");
}
