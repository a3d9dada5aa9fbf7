//! Disks that are full, and have room again later: nothing ends that need not, nothing counts
//! twice, and who asks is told which disk it is.

use std::path::PathBuf;

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use jobs::id::BlobRef;
use link::blobs::Blobs;
use serde_json::{Value, json};
use tests::data::Digits;
use tests::disk::Disk;
use tests::process::Process;
use tests::world::World;

use crate::story::{join, training};
use crate::sums::assert_each_counts_once;

/// Devices that add a number of their own to all values, and what the rounds began with.
async fn adding(world: &World) -> (Process, PathBuf) {
    let folder = world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let options = ["--first", "1", "--count", "3", "--adds", "--side", "63", "--delay-ms", "50"];
    let record = ["--record", folder.to_str().unwrap()];
    let devices = world.devices("devices", &[&options[..], &record].concat());
    for number in 1..=3 {
        world.online(&format!("device-{number:05}"), true).await;
    }
    (devices, folder)
}

/// A job of rounds with a model of 1 MB, of which many may fail.
fn long_job(rounds: u32) -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": rounds, "local": {"epochs": 0},
        "participation": {"quorum": 3, "deadline_ms": 10_000, "failed_rounds_max": 100},
    }})
}

fn rounds(job: &Value) -> &[Value] {
    job["rounds"].as_array().map_or(&[], Vec::as_slice)
}

/// The file system below JetStream has no room: a server then takes nothing into the streams that
/// met it, until it is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_nats_stops_a_training_until_there_is_room() {
    let Some(mut world) = World::start_on_disk(256 << 20).await else { return };
    let (_devices, folder) = adding(&world).await;
    let id = world.submit(&long_job(24)).await;
    world.until("rounds end", async || rounds(&world.job(&id).await).len() >= 3).await;
    world.disk().fill();
    let is_ready = async |world: &World| world.get("/readyz").await.status == 200;
    world.until("the broker says that it cannot store", async || !is_ready(&world).await).await;
    let said = world.get("/readyz").await.body.to_string();
    assert!(said.contains("nats-server") && said.contains("no space left"), "{said}");
    let job = world.job(&id).await;
    assert!(job["ended_at"].is_null() && rounds(&job).len() < 24, "{job:#}");
    world.disk().make_room();
    world.nats.terminate();
    world.restart_nats();
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = rounds(&job);
    assert_eq!(rounds.iter().filter(|round| round["failure"].is_null()).count(), 24);
    assert_each_counts_once(rounds, &folder);
    world.until("the broker is ready again", async || is_ready(&world).await).await;
}

/// Blobs that take the room of the object store.
struct Ballast {
    blobs: Blobs,
    stored: Vec<BlobRef>,
}

impl Ballast {
    fn of(client: async_nats::Client) -> Self {
        Self { blobs: Blobs::new(client), stored: Vec::new() }
    }

    /// Stores blobs of each of these sizes, in bytes, until no more of them have room.
    async fn load(&mut self, sizes: &[usize]) {
        for size in sizes {
            let name = |number: usize| format!("ballast/{size}/{number}");
            let bytes = Bytes::from(vec![7; *size]);
            while let Ok(blob) = self.blobs.put_named(name(self.stored.len()), bytes.clone()).await
            {
                self.stored.push(blob);
            }
        }
    }

    /// Deletes the last of them, at most so many.
    async fn unload(&mut self, count: usize) {
        for blob in self.stored.drain(self.stored.len().saturating_sub(count)..) {
            self.blobs.delete(&blob).await.unwrap();
        }
    }
}

/// The object store has as many bytes as it may have: rounds fail and say so, until there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_object_store_fails_rounds_with_the_reason() {
    let world = World::start().await;
    let (_devices, folder) = adding(&world).await;
    let client = world.client().await;
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream("OBJ_blobs").await.unwrap();
    let config = Config { max_bytes: 60_000_000, ..stream.cached_info().config.clone() };
    context.update_stream(config).await.unwrap();
    let mut ballast = Ballast::of(client);
    ballast.load(&[8_000_000]).await;
    ballast.unload(3).await;
    let id = world.submit(&long_job(50)).await;
    world.until("rounds end", async || rounds(&world.job(&id).await).len() >= 3).await;
    let failed = async || {
        let job = world.job(&id).await;
        rounds(&job).iter().find(|round| !round["failure"].is_null()).cloned()
    };
    let fails = async || {
        // What a round deletes at its end is room again.
        ballast.load(&[8_000_000, 1_000_000, 250_000]).await;
        failed().await.is_some()
    };
    world.until("a round fails", fails).await;
    let said = failed().await.unwrap().to_string();
    assert!(said.contains("disk_full") && said.contains("object store is full"), "{said}");
    ballast.unload(usize::MAX).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = rounds(&job);
    assert_eq!(rounds.iter().filter(|round| round["failure"].is_null()).count(), 50);
    assert_each_counts_once(rounds, &folder);
}

/// A device without room for what a training keeps there says so and is back when it has some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_a_device_leaves_it_out_until_there_is_room() {
    let world = World::start().await;
    let digits = Digits::write(world.folder(), 2);
    let Some(disk) = Disk::new(world.folder(), "state-device-2", 4 << 20) else { return };
    disk.fill();
    let _roomy = join(&world, &digits, 1).await;
    let mut command = world.agent_command("device-2");
    command.arg("--data").arg(format!("digits={}", digits.share(2).display()));
    let full = world.run_agent("device-2", disk.on(&command));
    world.online("device-2", true).await;
    let mut job = training("lenet", 200);
    job["spec"]["participation"] = json!({"quorum": 1, "deadline_ms": 20_000});
    let id = world.submit(&job).await;
    let missing = async || {
        let job = world.job(&id).await;
        let mut rounds = rounds(&job).iter();
        rounds.find(|round| round["missing"][0][0] == "device-2").cloned()
    };
    world.until("a round ends without device-2", async || missing().await.is_some()).await;
    let reason = missing().await.unwrap()["missing"][0][1].clone();
    assert_eq!(reason["code"], "disk_full", "{reason:#}");
    let said = reason["message"].as_str().unwrap();
    assert!(said.contains("state-device-2") && said.contains("free some"), "{said}");
    disk.make_room();
    let both = async || {
        let job = world.job(&id).await;
        rounds(&job).iter().any(|round| round["updates"].as_array().unwrap().len() == 2)
    };
    world.until("it takes part", both).await;
    let answer = world.post(&format!("/v1/jobs/{id}:cancel"), &json!({})).await;
    assert!(answer.status < 300, "{answer:?}");
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "cancelled", "{job:#}");
    drop(full);
}
