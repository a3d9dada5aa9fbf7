//! An answer: what a request costs beyond the engine's own time, over NATS and over HTTP.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use models::train::{Sgd, Trainer};
use serde_json::{Value, json};
use tests::world::World;

use crate::figures::{Times, against_bar, heading, ms};

const REQUESTS: usize = 1000;
const WARM_UP: usize = 50;
const MEDIAN_BAR: Duration = Duration::from_millis(1);
const P99_BAR: Duration = Duration::from_millis(5);

pub(crate) async fn measure() {
    heading("1,000 requests each to ResNet-8 on one agent, one after another, interleaved");
    let world = World::start().await;
    let graph = models::zoo::build("resnet8", [3, 32, 32], 10, 7).unwrap();
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let onnx = Trainer::new(&graph, sgd).unwrap().to_inference_onnx();
    assert_eq!(world.register("resnet8", onnx).await.status, 201);
    let _agent = world.join("one", None).await;
    let values: Vec<u8> =
        (0..3 * 32 * 32_u16).flat_map(|n| (f32::from(n % 255) / 255.0).to_le_bytes()).collect();
    let tensor = json!({"name": "", "datatype": "FP32", "shape": [1, 3, 32, 32],
        "base64": STANDARD.encode(&values)});
    let nats_body = json!({"model": "resnet8", "top": 1, "inputs": [tensor]}).to_string();
    let client = world.client().await;
    let header = json!({"inputs": [{"name": input_name(&world).await, "datatype": "FP32",
        "shape": [1, 3, 32, 32], "parameters": {"binary_data_size": values.len()}}]})
    .to_string();
    let http_body = [header.as_bytes(), &values].concat();

    let (mut nats, mut http, mut engine) = (Times::default(), Times::default(), Times::default());
    let mut whole = Times::default();
    for number in 0..WARM_UP + REQUESTS {
        let began = Instant::now();
        let message = client.request("jobs.infer", nats_body.clone().into()).await.unwrap();
        let over_nats = began.elapsed();
        let answer: Value = serde_json::from_slice(&message.payload).unwrap();
        let engine_of_nats = engine_time(&answer["engine_us"]);

        let request = world
            .request("POST", "/v2/models/resnet8/infer")
            .header("inference-header-content-length", header.len())
            .header("content-type", "application/octet-stream")
            .body(http_body.clone());
        let began = Instant::now();
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let bytes = response.bytes().await.unwrap();
        let over_http = began.elapsed();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let engine_of_http = engine_time(&answer["parameters"]["engine_us"]);
        if number >= WARM_UP {
            nats.push(over_nats.saturating_sub(engine_of_nats));
            http.push(over_http.saturating_sub(engine_of_http));
            engine.push(engine_of_nats);
            whole.push(over_nats);
        }
    }
    println!("  {:<44} {:>12}", "the engine's own time, median", ms(engine.median()));
    println!("  {:<44} {:>12}", "a whole answer over NATS, median", ms(whole.median()));
    for (face, times) in [("jobs.infer", nats), ("HTTP", http)] {
        let (median, p99) = (times.median(), times.percentile(99));
        let what = format!("{face}, above the engine, median");
        against_bar(&what, &ms(median), "1 ms", median <= MEDIAN_BAR);
        let what = format!("{face}, above the engine, 99 %");
        against_bar(&what, &ms(p99), "5 ms", p99 <= P99_BAR);
    }
}

async fn input_name(world: &World) -> String {
    let model = world.get("/v2/models/resnet8").await.body;
    model["inputs"][0]["name"].as_str().unwrap().to_owned()
}

fn engine_time(us: &Value) -> Duration {
    Duration::from_micros(us.as_u64().unwrap())
}
