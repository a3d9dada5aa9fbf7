//! A nats-server that comes back without its data, and streams that are removed by hand: brokers and
//! agents go on, and nobody starts them again.

use std::time::Duration;

use serde_json::{Value, json};
use tests::world::World;

use crate::faults::{in_round, instances, long_training};
use crate::story::{Fleet, fleet, train, training};

/// Between two of them another round is at work, most times.
const BETWEEN: Duration = Duration::from_millis(1200);

/// What is refused while NATS has nothing; the id of the job once it is accepted.
async fn submitted(world: &World, job: &Value) -> String {
    let mut id = None;
    world
        .until("a job is accepted again", async || {
            let answer = world.post("/v1/jobs", job).await;
            id = answer.body["id"].as_str().filter(|_| answer.status == 202).map(str::to_owned);
            id.is_some()
        })
        .await;
    id.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_lost_its_data_is_filled_again() {
    let Fleet { mut world, agents: _agents, .. } = fleet(2).await;
    let before = instances(&world).await;
    train(&world, "mlp", 1).await;
    let lost = world.submit(&long_training(50, 8)).await;
    in_round(&world, &lost, 1).await;
    world.nats.kill();
    std::fs::remove_dir_all(world.folder().join("nats")).unwrap();
    world.restart_nats();
    let mut job = training("lenet", 3);
    job["spec"]["participation"] = json!({"quorum": 2, "devices": 2});
    let id = submitted(&world, &job).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    for round in job["rounds"].as_array().unwrap() {
        assert_eq!(round["updates"].as_array().unwrap().len(), 2, "{round:#}");
    }
    assert_eq!(instances(&world).await, before, "no agent was started again");
    assert_eq!(world.get(&format!("/v1/jobs/{lost}")).await.status, 404);
    let jobs = world.get("/v1/jobs").await.body;
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs:#}");
    assert_eq!(world.get("/v1/models/mlp").await.status, 404, "it was in the store");
    let models = world.get("/v1/models/lenet").await.body;
    assert_eq!(models["versions"].as_array().map(Vec::len), Some(1), "{models:#}");
    assert!(world.broker.log().contains("NATS has lost streams"), "{}", world.broker.log());
    // Another broker knows who there is.
    world.broker.kill();
    world.restart_broker().await;
    assert_eq!(instances(&world).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_goes_on_when_streams_are_removed() {
    let Fleet { world, agents: _agents, .. } = fleet(2).await;
    let mut job = long_training(12, 8);
    job["spec"]["participation"] = json!({"quorum": 2, "devices": 2});
    let id = world.submit(&job).await;
    in_round(&world, &id, 1).await;
    let context = async_nats::jetstream::new(world.client().await);
    for stream in
        ["REPORTS", "EVENTS", "WORK", "FLEET", "KV_devices", "KV_models", "KV_idempotency"]
    {
        context.delete_stream(stream).await.unwrap();
        world
            .until(&format!("{stream} is there again"), async || {
                context.get_stream(stream).await.is_ok()
            })
            .await;
        tokio::time::sleep(BETWEEN).await;
    }
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 12, "none failed: {job:#}");
    for round in rounds {
        assert_eq!(round["updates"].as_array().unwrap().len(), 2, "{round:#}");
    }
    train(&world, "mlp", 1).await;
}
