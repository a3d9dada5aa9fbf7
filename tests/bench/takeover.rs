//! How soon it is noticed that someone is gone: the broker that leads a training, a device.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Which};
use tests::process::Process;

use crate::figures::{Times, against_bar, heading, ms};

const TIMES: usize = 5;
/// What [`World::devices`](tests::world::World::devices) sends them with.
const HEARTBEAT: Duration = Duration::from_millis(300);
const BROKER_BAR: Duration = Duration::from_secs(5);

pub(crate) async fn measure() {
    heading("3 nats-servers, 2 brokers, a training at work: who is killed is missed after");
    let mut cluster = Cluster::start().await;
    let options = ["--first", "1", "--count", "3", "--adds", "--delay-ms", "200"];
    let _steady = cluster.world.devices("steady", &options);
    for number in 1..=3 {
        cluster.world.online(&name(number), true).await;
    }
    told("a device that nobody asks", &devices(&cluster, 10).await);
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": 10_000, "evaluate": false,
        "local": {"epochs": 0}, "participation": {"deadline_ms": 20_000},
    }});
    let id = cluster.world.submit(&job).await;
    let took = owners(&mut cluster, &id).await;
    let (median, most) = (ms(took.median()), took.percentile(100));
    let what = format!("its broker, median of {TIMES} {median}, longest");
    against_bar(&what, &ms(most), &ms(BROKER_BAR), most <= BROKER_BAR);
    told("a device in rounds", &devices(&cluster, 20).await);
}

fn told(who: &str, took: &Times) {
    let (median, most, bar) = (took.median(), took.percentile(100), 3 * HEARTBEAT);
    let what = format!("{who}, median of {TIMES} {}, longest", ms(median));
    against_bar(&what, &ms(most), &format!("{} = 3 heartbeats", ms(bar)), most <= bar);
}

fn name(number: usize) -> String {
    format!("device-{number:05}")
}

/// From the death of the owner to what the next one stores.
async fn owners(cluster: &mut Cluster, id: &str) -> Times {
    let mut times = Times::default();
    let mut which = Which::First;
    let mut measured = 0;
    while measured < TIMES {
        let before = owner(cluster, id).await;
        cluster.kill_broker(which);
        let begun = Instant::now();
        while owner(cluster, id).await == before && begun.elapsed() < 2 * BROKER_BAR {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Otherwise it was not the owner that died.
        if owner(cluster, id).await != before {
            times.push(begun.elapsed());
            measured += 1;
        }
        cluster.start_broker(which);
        tokio::time::sleep(Duration::from_secs(3)).await;
        which = which.other();
    }
    times
}

async fn owner(cluster: &Cluster, id: &str) -> Value {
    cluster.stored(id).await["owner"].clone()
}

/// From the death of a device to when it is known to be offline, of some from a number on.
async fn devices(cluster: &Cluster, first: usize) -> Times {
    let mut times = Times::default();
    for number in first..first + TIMES {
        let only = number.to_string();
        let mut device: Process = cluster.world.devices("killed", &["--first", &only]);
        cluster.world.online(&name(number), true).await;
        // They die all over the time between two heartbeats.
        let part = u32::try_from(number - first).unwrap();
        tokio::time::sleep(Duration::from_secs(1) + HEARTBEAT / 4 * part).await;
        device.kill();
        let begun = Instant::now();
        let path = format!("/v1/devices/{}", name(number));
        while cluster.world.get(&path).await.body["presence"] != "offline" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(begun.elapsed());
    }
    times
}
