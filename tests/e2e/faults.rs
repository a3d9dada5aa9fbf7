//! Programs are killed at the worst moment; nothing is lost and nothing counted twice.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::process::program;
use tests::world::World;

use crate::story::{best, fleet, join, register, training};

/// Waits until a job has ended this many rounds and is in the next.
pub(crate) async fn in_round(world: &World, id: &str, ended: usize) {
    world
        .until(&format!("round {ended} has ended"), async || {
            let job = world.job(id).await;
            assert!(job["ended_at"].is_null(), "the job ended too soon: {job:#}");
            job["rounds"].as_array().map_or(0, Vec::len) >= ended
        })
        .await;
}

/// A training that takes a while: many passes in each of its rounds.
pub(crate) fn long_training(rounds: u32, epochs: u32) -> Value {
    let mut job = training("lenet", rounds);
    job["spec"]["local"]["epochs"] = json!(epochs);
    job
}

/// Each round ended once, with each device once: as an update or as missing with a reason.
fn assert_every_round_counts_once(job: &Value, devices: usize) {
    let rounds = job["rounds"].as_array().unwrap();
    for (index, round) in rounds.iter().enumerate() {
        assert_eq!(round["round"], index + 1, "{job:#}");
        let names = |member: &str| -> Vec<String> {
            let list = round[member].as_array().unwrap();
            list.iter().map(|entry| entry[0].as_str().unwrap().to_owned()).collect()
        };
        let all: Vec<String> = [names("updates"), names("missing")].concat();
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "a device counts once: {round:#}");
        assert!(all.len() <= devices, "{round:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_is_named_and_comes_back() {
    let mut fleet = fleet(3).await;
    let mut job = long_training(6, 12);
    job["spec"]["participation"] = json!({"quorum": 2, "deadline_ms": 60_000});
    let id = fleet.world.submit(&job).await;
    in_round(&fleet.world, &id, 1).await;
    fleet.agents[1].kill();
    fleet
        .world
        .until("a round ends without device-2", async || {
            let job = fleet.world.job(&id).await;
            let rounds = job["rounds"].as_array().unwrap();
            rounds.iter().any(|round| round["missing"][0][0] == "device-2")
        })
        .await;
    fleet.agents[1] = join(&fleet.world, &fleet.digits, 2).await;
    let job = fleet.world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_every_round_counts_once(&job, 3);
    let rounds = job["rounds"].as_array().unwrap();
    let without = rounds.iter().find(|round| round["missing"][0][0] == "device-2").unwrap();
    assert_eq!(without["missing"][0][1]["code"], "device_lost", "{without:#}");
    assert_eq!(without["updates"].as_array().unwrap().len(), 2);
    let last = rounds.last().unwrap();
    assert_eq!(last["updates"].as_array().unwrap().len(), 3, "it takes part again: {last:#}");
}

/// The same job twice, once with an agent that is killed twice in the middle of the round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_goes_on_within_its_round() {
    let world = World::start().await;
    let digits = tests::data::Digits::write(world.folder(), 1);
    let join = async || {
        let mut command = world.agent_command("device-1");
        command.args(["--checkpoint-ms", "1", "--threads", "2"]);
        command.arg("--data").arg(format!("digits={}", digits.share(1).display()));
        let agent = world.run_agent("device-1", command);
        world.online("device-1", true).await;
        agent
    };
    let mut agent = join().await;
    let mut job = long_training(1, 25);
    job["spec"]["local"]["schedule"] = json!({"kind": "cosine", "floor": 0.1});
    job["spec"]["local"]["warm_up"] = json!(100);
    // A name that is registered would be gone on from.
    job["spec"]["register_as"] = json!("trained");
    let whole = world.submit(&job).await;
    let whole = world.ended(&whole).await;
    assert_eq!(whole["state"], "succeeded", "{whole:#}");

    let id = world.submit(&job).await;
    let saved = world.folder().join(format!("state-device-1/checkpoints/{id}.1.checkpoint"));
    let mut before = Vec::new();
    for _ in 0..2 {
        let is_newer = || std::fs::read(&saved).is_ok_and(|bytes| bytes != before);
        world.until("a newer checkpoint is there", async || is_newer()).await;
        agent.kill();
        assert!(world.job(&id).await["ended_at"].is_null(), "it was killed at work");
        before = std::fs::read(&saved).unwrap();
        agent = join().await;
    }
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_every_round_counts_once(&job, 1);
    assert!(agent.log().contains("goes on from its checkpoint"), "{}", agent.log());
    let update = |job: &Value| job["rounds"][0]["updates"][0][1].clone();
    for member in ["digest", "size"] {
        let of = |job: &Value| update(job)["parameters"][member].clone();
        assert_eq!(of(&job), of(&whole), "the same bits: {job:#}");
    }
    for member in ["steps", "loss", "accuracy", "examples"] {
        assert_eq!(update(&job)[member], update(&whole)[member], "{member}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_goes_on_with_the_round() {
    let mut fleet = fleet(3).await;
    let instances = instances(&fleet.world).await;
    let id = fleet.world.submit(&long_training(8, 6)).await;
    for round in [1, 3, 5] {
        in_round(&fleet.world, &id, round).await;
        fleet.world.broker.kill();
        fleet.world.restart_broker().await;
    }
    let job = fleet.world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["rounds"].as_array().unwrap().len(), 8);
    assert_every_round_counts_once(&job, 3);
    for round in job["rounds"].as_array().unwrap() {
        assert_eq!(round["updates"].as_array().unwrap().len(), 3, "none is lost: {round:#}");
    }
    assert_eq!(self::instances(&fleet.world).await, instances, "no agent was started again");
    let models = fleet.world.get("/v1/models/lenet").await.body;
    assert_eq!(models["versions"].as_array().unwrap().len(), 1, "{models:#}");
}

pub(crate) async fn instances(world: &World) -> Vec<String> {
    let devices = world.get("/v1/devices").await.body;
    let devices = devices["devices"].as_array().unwrap();
    devices.iter().map(|device| device["hello"]["instance"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_nats_server_delays_a_round_and_loses_nothing() {
    let mut fleet = fleet(2).await;
    let id = fleet.world.submit(&long_training(6, 8)).await;
    in_round(&fleet.world, &id, 2).await;
    fleet.world.nats.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fleet.world.restart_nats();
    let job = fleet.world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["rounds"].as_array().unwrap().len(), 6);
    assert_every_round_counts_once(&job, 2);
}

/// Published with nobody online, the broker killed and started again, then an agent joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_publish_is_answered_once() {
    let mut world = World::start().await;
    register(&world, "m", "mlp").await;
    let client = world.client().await;
    let input = vec![vec![vec![0.5_f32; 8]; 8]];
    let body = json!({"model": "m", "input": [input]}).to_string();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "only-once");
    // The same message again, as a client does that got no acknowledgement.
    for _ in 0..2 {
        let body = body.clone().into();
        client.publish_with_headers("jobs.infer", headers.clone(), body).await.unwrap();
    }
    client.flush().await.unwrap();
    world
        .until("the job is accepted", async || {
            world.get("/v1/jobs").await.body["jobs"].as_array().is_some_and(|jobs| !jobs.is_empty())
        })
        .await;
    world.broker.kill();
    world.restart_broker().await;
    let jobs = world.get("/v1/jobs").await.body;
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs:#}");
    let id = jobs["jobs"][0]["id"].as_str().unwrap().to_owned();
    assert!(jobs["jobs"][0]["ended_at"].is_null());
    let _agent = world.join("late", None).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["devices"], json!(["late"]), "it was placed once");
    let result = world.get(&format!("/v1/jobs/{id}/result")).await.body;
    assert!(best(&result) < 10);
    let events = world.request("GET", &format!("/v1/jobs/{id}/events")).send().await.unwrap();
    let events = events.text().await.unwrap();
    assert_eq!(events.matches("event: ended").count(), 1, "{events}");
    assert_eq!(events.matches("event: accepted").count(), 1, "{events}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_end_cleanly_when_asked() {
    let mut fleet = fleet(1).await;
    assert_eq!(fleet.agents[0].terminate(), Some(0));
    fleet
        .world
        .until("the goodbye arrived", async || {
            fleet.world.get("/v1/devices/device-1").await.body["presence"] == "offline"
        })
        .await;
    assert_eq!(fleet.world.broker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_of_one_name_are_told_of() {
    let world = World::start().await;
    let _agent = world.join("pi", None).await;
    let mut twin = Command::new(program("dunlin-agent"));
    twin.args(["--nats", &world.nats_url(), "--name", "pi", "--heartbeat-ms", "300"]);
    twin.arg("--state-dir").arg(world.folder().join("state-twin"));
    let mut twin = world.run_agent("twin", twin);
    let told = || world.broker.log().matches("two agents have this name").count();
    world.until("it is told", async || told() > 0).await;
    twin.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told(), 1, "{}", world.broker.log());
    // Who is started again is another instance, and alone.
    drop(world.join("alone", None).await);
    let _again = world.join("alone", None).await;
    assert_eq!(told(), 1, "{}", world.broker.log());
}
