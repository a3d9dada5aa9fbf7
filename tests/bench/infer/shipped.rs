//! An answer of the engines in the static agent that `scripts/dist.sh` builds, which has another C
//! library than the benchmark: asked over HTTP, the engine's own time counts.

use std::path::Path;

use models::tensor::Tensor;
use serde_json::{Value, json};
use tests::process::Process;
use tests::world::World;

use super::{answers, median};

/// Its engines.
const ENGINES: [&str; 2] = ["native", "tract"];
/// Requests of a turn to one engine, at most: each takes a millisecond beside the engine.
const REQUESTS_MAX: u32 = 20;

/// A static agent that has joined, with one thread.
pub(super) struct Shipped {
    world: World,
    _agent: Process,
}

impl Shipped {
    pub(super) async fn start(program: &Path) -> Self {
        let world = World::start().await;
        let mut command = world.agent_command_of(program, "shipped");
        command.args(["--threads", "1"]);
        let agent = world.run_agent("shipped", command);
        world.online("shipped", false).await;
        Self { world, _agent: agent }
    }

    /// Has a model answered by each engine once.
    pub(super) async fn model(&self, name: &str, onnx: &[u8], input: &Tensor) -> Asked<'_> {
        assert_eq!(self.world.register(name, onnx.to_vec()).await.status, 201);
        let model = self.world.get(&format!("/v2/models/{name}")).await.body;
        let bytes = input.le_bytes();
        let bodies = ENGINES.map(|engine| {
            let header = json!({"parameters": {"engine": engine}, "inputs": [{
                "name": model["inputs"][0]["name"], "datatype": "FP32", "shape": input.shape(),
                "parameters": {"binary_data_size": bytes.len()}}]});
            let header = header.to_string();
            (header.len(), [header.as_bytes(), bytes].concat())
        });
        let (world, path) = (&self.world, format!("/v2/models/{name}/infer"));
        let mut asked = Asked { world, path, bodies, requests: [1; 2], times: Default::default() };
        asked.turn().await;
        // The first answer of an engine is slower.
        asked.turn().await;
        asked.requests = asked.times.each_ref().map(|times| answers(times[1]).min(REQUESTS_MAX));
        asked.times = Default::default();
        asked
    }
}

/// A model, and how its engines answered.
pub(super) struct Asked<'a> {
    world: &'a World,
    path: String,
    /// By engine: a request, and how many bytes of it are in front of the tensor.
    bodies: [(usize, Vec<u8>); 2],
    /// Of a turn, by engine.
    requests: [u32; 2],
    /// Medians of turns by engine, in milliseconds.
    times: [Vec<f64>; 2],
}

impl Asked<'_> {
    /// Measures a turn of each engine.
    pub(super) async fn turn(&mut self) {
        for index in 0..ENGINES.len() {
            let mut times = Vec::new();
            for _ in 0..self.requests[index] {
                times.push(self.ask(index).await);
            }
            self.times[index].push(median(times));
        }
    }

    /// The engine's own time, in milliseconds.
    async fn ask(&self, index: usize) -> f64 {
        let (header, body) = &self.bodies[index];
        let request = self
            .world
            .request("POST", &self.path)
            .header("inference-header-content-length", *header)
            .header("content-type", "application/octet-stream")
            .body(body.clone());
        let response = request.send().await.unwrap();
        let status = response.status();
        let bytes = response.bytes().await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(answer["parameters"]["engine"], ENGINES[index]);
        answer["parameters"]["engine_us"].as_f64().unwrap() / 1e3
    }

    /// Medians of its engines, in milliseconds.
    pub(super) fn medians(self) -> [f64; 2] {
        self.times.map(median)
    }
}
