//! Agents with the real helper that loads libraries: a job names the engine, which then answers
//! what the agent's own engine answers, or the report says why it did not.

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::Request;
use models::train::{Loss, Trainer};
use serde_json::{Value, json};
use tests::helper;
use tests::process::{PATIENCE, Process};
use tests::untested::not_tested;
use tests::world::World;

/// An agent whose helper is started with a variable, and a model.
struct Fleet {
    world: World,
    _agent: Process,
}

impl Fleet {
    async fn start(variable: &str) -> Self {
        let world = World::start().await;
        let accel = helper::write(world.folder(), "dunlin-accel", variable);
        let agent = join(&world, &accel);
        world.online("one", false).await;
        let onnx = models::zoo::build("resnet8", [3, 16, 16], 10, 7).unwrap();
        let trained = Trainer::for_evaluation(&onnx, Loss::default()).unwrap();
        let registered = world.register("m", trained.to_folded_onnx()).await;
        assert_eq!(registered.status, 201, "{registered:?}");
        world
            .until("the engines are known", async || {
                device(&world).await["engine_facts"].as_array().is_some_and(|all| !all.is_empty())
            })
            .await;
        Self { world, _agent: agent }
    }

    /// Why an engine is not to be had, if it is not.
    async fn unusable(&self, engine: &str) -> Option<String> {
        let device = device(&self.world).await;
        let all = device["engine_facts"].as_array().unwrap().clone();
        let facts = all.into_iter().find(|facts| facts["engine"] == engine).unwrap();
        facts["unusable"].as_str().map(str::to_owned)
    }

    async fn ask(&self, engine: &str) -> Value {
        let row = |y: u16| -> Vec<f32> {
            (0..16_u16).map(|x| (f32::from(7 * x + y) / 40.0).sin()).collect()
        };
        let picture = |number: u16| -> Vec<Vec<Vec<f32>>> {
            let channel = |c: u16| (0..16).map(|y| row(31 * number + 5 * c + y)).collect();
            (0..3).map(channel).collect()
        };
        let input = [picture(0), picture(1)];
        let body = json!({"model": "m", "input": input, "engine": engine, "deadline_ms": 29_000});
        let client = self.world.client().await;
        let request = Request::new().payload(body.to_string().into()).timeout(Some(PATIENCE));
        let message = client.send_request("jobs.infer", request).await.unwrap();
        serde_json::from_slice(&message.payload).unwrap()
    }

    /// The engine that a job names answers, and as the agent's own.
    async fn assert_agrees(&self, engine: &str, tolerance: f64) {
        let expected = self.ask("native").await;
        let found = self.ask(engine).await;
        assert_eq!((&expected["engine"], &found["engine"]), (&json!("native"), &json!(engine)));
        let values = |answer: &Value| -> Vec<f64> {
            let data = answer["outputs"][0]["data"].as_array().unwrap();
            data.iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let (found, expected) = (values(&found), values(&expected));
        assert_eq!((found.len(), expected.len()), (20, 20));
        let most = expected.iter().fold(1.0_f64, |most, value| most.max(value.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= tolerance * most, "{found} instead of {expected}");
        }
    }
}

fn join(world: &World, accel: &Path) -> Process {
    let mut command = world.agent_command("one");
    command.args(["--threads", "1", "--accel"]).arg(accel);
    world.run_agent("one", command)
}

async fn device(world: &World) -> Value {
    world.get("/v1/devices/one").await.body["hello"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn onnx_runtime_answers_a_job_that_names_it() {
    let Some(library) = helper::onnx_runtime_library() else {
        not_tested("ONNX Runtime is absent: run scripts/setup.sh tests");
        return;
    };
    let fleet = Fleet::start(&format!("ORT_DYLIB_PATH='{}'", library.display())).await;
    assert_eq!(fleet.unusable("ort-cpu").await, None);
    fleet.assert_agrees("ort-cpu", 1e-4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webgpu_on_a_program_answers_a_job_that_names_it() {
    let fleet = Fleet::start("DUNLIN_WEBGPU_SOFTWARE=1").await;
    if let Some(reason) = fleet.unusable("webgpu").await {
        assert!(reason.contains("no GPU is reached"), "{reason}");
        not_tested("Vulkan is absent: apt-get install mesa-vulkan-drivers");
        return;
    }
    fleet.assert_agrees("webgpu", 1e-3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_names_an_engine_is_told_that_its_library_is_missing() {
    let fleet = Fleet::start("ORT_DYLIB_PATH=/nowhere/libonnxruntime.so").await;
    let until = Instant::now() + PATIENCE;
    let reason = loop {
        let answer = fleet.ask("ort-cpu,native").await;
        assert_eq!(answer["engine"], "native", "{answer:#}");
        let refused = &answer["refused_engines"][0];
        assert_eq!(refused["engine"], "ort-cpu", "{answer:#}");
        let reason = refused["reason"].as_str().unwrap().to_owned();
        let tried = reason != "it was not tried so far" && !reason.starts_with("it is being tried");
        if tried || Instant::now() > until {
            break reason;
        }
    };
    assert!(reason.contains("/nowhere/libonnxruntime.so, which is no file"), "{reason}");
    assert_eq!(fleet.ask("").await["refused_engines"], Value::Null, "nobody asked for it");

    // Where no device has it, nobody waits, and the device's reason is told.
    let begun = Instant::now();
    let refused = fleet.ask("ort-cpu").await;
    assert_eq!(refused["code"], "no_device", "{refused:#}");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.starts_with("no online device has ort-cpu; one: "), "{detail}");
    assert!(detail.contains("/nowhere/libonnxruntime.so"), "{detail}");
    let input = vec![vec![vec![[0.5; 16]; 16]; 3]];
    let spec = json!({"model": "m", "input": input, "engine": "ort-cpu"});
    let job = json!({"kind": "infer", "deadline_ms": 60_000, "spec": spec});
    let id = fleet.world.submit(&job).await;
    fleet.world.ended_within(&id, PATIENCE).await;
    let ended = fleet.world.get(&format!("/v1/jobs/{id}/result")).await.body;
    assert!(ended["detail"].as_str().unwrap().starts_with(detail), "{ended:#}");
    assert!(ended["hint"].as_str().unwrap().contains("dunlin devices NAME"), "{ended:#}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited");
}
