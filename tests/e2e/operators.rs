//! What operators type: selectors, telemetry, the front door, `dunlin up`.

use std::process::Command;

use serde_json::{Value, json};
use tests::process::{PATIENCE, Process, nats_server, program};
use tests::world::World;

use crate::story::{assert_problem_body, register};

async fn request(world: &World, subject: &str, body: &str) -> Value {
    let client = world.client().await;
    let message = client.request(subject.to_owned(), body.to_owned().into()).await.unwrap();
    serde_json::from_slice(&message.payload).unwrap_or_else(|_| panic!("{:?}", message.payload))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_chosen_by_label_and_measured() {
    let world = World::start().await;
    register(&world, "m", "mlp").await;
    let mut agents = Vec::new();
    for (name, site) in [("pi-1", "attic"), ("pi-2", "lab")] {
        let mut command = world.agent_command(name);
        command.args(["--label", &format!("site={site}"), "--group", "pis"]);
        agents.push(world.run_agent(name, command));
        world.online(name, false).await;
    }
    let input = json!([[vec![vec![0.5_f32; 8]; 8]]]);
    for (site, name) in [("attic", "pi-1"), ("lab", "pi-2")] {
        let body = json!({"model": "m", "input": input, "selector": format!("label.site={site}")});
        for _ in 0..3 {
            let answer = request(&world, "jobs.infer", &body.to_string()).await;
            assert_eq!(answer["device"], name, "{answer:#}");
        }
    }
    let nobody = json!({"model": "m", "input": input, "selector": "label.site=moon"});
    let answer = request(&world, "jobs.infer", &nobody.to_string()).await;
    assert_problem_body(&answer, "no_device");

    let answer = request(&world, "jobs.telemetry", "").await.to_string();
    for name in ["pi-1", "pi-2"] {
        assert!(answer.contains(name), "{answer}");
    }
    assert!(answer.contains("memory_total") && answer.contains("load"), "{answer}");
    let help = request(&world, "jobs.help", "").await.to_string();
    assert!(help.contains("jobs.infer") && help.contains("jobs.train"), "{help}");

    let output = world.dunlin(&["devices"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("pi-1") && text.contains("2 of 2 online"), "{text}");
    agents[0].kill();
    world
        .until("pi-1 is offline and still shown", async || {
            world.get("/v1/devices/pi-1").await.body["presence"] == "offline"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_are_served() {
    let world = World::start().await;
    let _agent = world.join("pi-1", None).await;
    let metrics = world.request("GET", "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("dunlin_devices{presence=\"online\"} 1"), "{metrics}");
    assert_eq!(world.get("/healthz").await.status, 200);
    assert_eq!(world.get("/readyz").await.status, 200);
    let api = world.get("/openapi.json").await;
    assert!(api.body["paths"]["/v1/jobs"]["post"].is_object(), "{}", api.status);
}

/// `dunlin up` alone: a broker, NATS for devices, and no process left when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_brings_its_own_nats_server_and_takes_it_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("dunlin"));
    command.args(["--json", "up", "--listen", "127.0.0.1:0", "--nats-host", "127.0.0.1"]);
    command.args(["--nats-port", "0", "--state-dir"]).arg(folder.path().join("state"));
    command.env("DUNLIN_NATS_SERVER", nats_server());
    let mut up = Process::start("up", folder.path(), command);
    let until = std::time::Instant::now() + PATIENCE;
    let listening: Value = loop {
        let out = std::fs::read_to_string(folder.path().join("up.out")).unwrap();
        if let Some(line) = out.lines().next() {
            break serde_json::from_str(line).unwrap();
        }
        assert!(std::time::Instant::now() < until, "{}", up.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let nats = listening["nats"].as_str().unwrap().to_owned();
    let client = async_nats::connect(&nats).await.unwrap();
    let help = client.request("jobs.help", "".into()).await.unwrap();
    assert!(!help.payload.is_empty());
    assert_eq!(up.terminate(), Some(0));
    assert!(async_nats::connect(&nats).await.is_err(), "the nats-server ended with it");
}
