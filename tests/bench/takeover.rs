//! How soon it is noticed that someone is gone, a device or the broker that leads a training, and
//! that nothing is lost with the broker: each device adds a number of its own to all values, so the
//! parameters that rounds begin with tell whose updates were counted, and how often.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Which};
use tests::process::Process;
use tests::sums::{Sums, assert_result};
use tests::writes::{Stored, Writes};
use tokio::time::timeout;

use crate::figures::{Times, against_bar, heading, ms};

const TIMES: usize = 5;
/// What [`World::devices`](tests::world::World::devices) sends them with.
const HEARTBEAT: Duration = Duration::from_millis(300);
const BROKER_BAR: Duration = Duration::from_secs(5);
/// Devices that nobody kills.
const STEADY: usize = 3;
/// Rounds of the training whose brokers are killed.
const ROUNDS: usize = 200;
/// Rounds from one kill to the next, at least.
const ROUNDS_BETWEEN: u64 = 10;
const MODEL: &str = "taken-over";

pub(crate) async fn measure() {
    heading("3 nats-servers, 2 brokers, devices with a heartbeat every 300 ms: a killed device");
    let mut cluster = Cluster::start().await;
    let folder = cluster.world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let options = ["--first", "1", "--count", "2", "--adds", "--delay-ms", "200", "--record"];
    let options = [&options[..], &[folder.to_str().unwrap()]].concat();
    let _steady = cluster.world.devices("steady", &options);
    // When it is killed, a broker has some of a round's updates, and waits for this one's.
    let slower = ["--first", "3", "--count", "1", "--adds", "--delay-ms", "350"];
    let _slower = cluster.world.devices("slower", &slower);
    for number in 1..=STEADY {
        cluster.world.online(&name(number), true).await;
    }
    told("at work for a round: the round goes on", &at_work(&cluster, 10).await);
    told("that nobody asks is known to be offline", &idle(&cluster, 100).await);
    heading("the same cluster, the broker that leads a training is killed: another");
    owners(&mut cluster, &folder).await;
}

fn told(who: &str, took: &Times) {
    let (median, most, bar) = (took.median(), took.percentile(100), 3 * HEARTBEAT);
    let what = format!("{who}, median of {TIMES} {}, longest", ms(median));
    against_bar(&what, &ms(most), &format!("{} = 3 heartbeats", ms(bar)), most <= bar);
}

fn name(number: usize) -> String {
    format!("device-{number:05}")
}

/// A training of nothing but moving parameters, of the devices that nobody kills at least.
fn job(rounds: usize) -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": rounds, "evaluate": false,
        "local": {"epochs": 0}, "register_as": MODEL,
        "participation": {"quorum": STEADY, "deadline_ms": 120_000},
    }})
}

/// From the death of a device to when it is known to be offline, of some from a number on.
async fn idle(cluster: &Cluster, first: usize) -> Times {
    let mut times = Times::default();
    for number in first..first + TIMES {
        let mut device = started(cluster, number, "0").await;
        tokio::time::sleep(between_heartbeats(number - first)).await;
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

/// From the death of a device that works for a round, which waits for it alone, to when the round
/// is stored as one that does not wait for it any more.
async fn at_work(cluster: &Cluster, first: usize) -> Times {
    let id = cluster.world.submit(&job(10_000)).await;
    let mut writes = Writes::of(&cluster.world.client().await, &id).await;
    let mut times = Times::default();
    for number in first.. {
        if times.len() == TIMES {
            break;
        }
        let name = name(number);
        let mut device = started(cluster, number, "60000").await;
        let waits = |stored: &Stored| {
            let (answered, others) = stored.devices();
            stored.phase() == "collecting" && answered.len() == STEADY && others == [name.as_str()]
        };
        let works = |stored: &Stored| waits(stored) && standing(stored, &name) == "working";
        let round = writes.find(works).await.unwrap().round();
        let mut goes_on =
            async || writes.find(|stored| stored.round() > round || !waits(stored)).await;
        // On a busy machine a device may be missed that is there.
        if timeout(between_heartbeats(number % 4), goes_on()).await.is_ok() {
            continue;
        }
        device.kill();
        let begun = Instant::now();
        goes_on().await.unwrap();
        times.push(begun.elapsed());
        assert!(missing(cluster, &id, round).await.contains(&name), "{name} in round {round}");
    }
    cluster.world.post(&format!("/v1/jobs/{id}:cancel"), &json!({})).await;
    cluster.world.ended(&id).await;
    times
}

/// A device that takes so long for each task, when it is online.
async fn started(cluster: &Cluster, number: usize, delay_ms: &str) -> Process {
    let only = number.to_string();
    let options = ["--first", &only, "--adds", "--delay-ms", delay_ms];
    let device = cluster.world.devices("killed", &options);
    cluster.world.online(&name(number), true).await;
    device
}

/// They die all over the time between two heartbeats.
fn between_heartbeats(number: usize) -> Duration {
    Duration::from_secs(1) + HEARTBEAT / 4 * u32::try_from(number).unwrap()
}

/// What is stored of a member of the round at work.
fn standing(stored: &Stored, device: &str) -> Value {
    let members = stored.0["machine"]["round"]["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["device"] == device);
    member.map_or(Value::Null, |member| member["standing"].clone())
}

/// Who a round says it did without, once it has ended.
async fn missing(cluster: &Cluster, id: &str, round: u64) -> Vec<String> {
    let mut found = Vec::new();
    let ended = async || {
        let job = cluster.world.job(id).await;
        let rounds = job["rounds"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(ended) = rounds.iter().find(|it| it["round"] == round) else { return false };
        let missing = ended["missing"].as_array().unwrap().iter();
        found = missing.map(|it| it[0].as_str().unwrap().to_owned()).collect();
        true
    };
    cluster.world.until("the round has ended", ended).await;
    found
}

/// Kills the owner of a training again and again, in the middle of a round; in the end everything
/// has been counted.
async fn owners(cluster: &mut Cluster, folder: &Path) {
    let id = cluster.world.submit(&job(ROUNDS)).await;
    let mut writes = Writes::of(&cluster.world.client().await, &id).await;
    let (mut taken, mut gone_on) = (Times::default(), Times::default());
    let mut next = 1;
    while gone_on.len() < TIMES {
        let owner = owner(cluster).await;
        writes.forget();
        let is_time = |stored: &Stored| stored.round() >= next && stored.is_partway();
        let before = writes.find(is_time).await.expect("the training is at work");
        let term = before.owner().1;
        cluster.kill_broker(owner);
        let begun = Instant::now();
        let after = writes.find(|stored| stored.owner().1 > term).await.unwrap();
        taken.push(begun.elapsed());
        let round = after.round();
        let after = writes.find(|stored| stored.round() > round).await.unwrap();
        gone_on.push(begun.elapsed());
        next = after.round() + ROUNDS_BETWEEN;
        cluster.start_broker(owner);
        cluster.ready(owner).await;
    }
    for (what, times) in [("leads it", taken), ("has ended the round", gone_on)] {
        let (median, most) = (ms(times.median()), times.percentile(100));
        let what = format!("{what}, median of {TIMES} {median}, longest");
        against_bar(&what, &ms(most), &ms(BROKER_BAR), most <= BROKER_BAR);
    }
    let job = cluster.world.ended_within(&id, Duration::from_mins(5)).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    nothing_lost(cluster, job["rounds"].as_array().unwrap(), folder);
}

async fn owner(cluster: &mut Cluster) -> Which {
    loop {
        if let Some(owner) = cluster.owner().await {
            return owner;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every round was done once, with the update of each device, and parameters moved by nothing else.
fn nothing_lost(cluster: &Cluster, rounds: &[Value], folder: &Path) {
    let in_order = rounds.iter().zip(1..).all(|(round, number)| round["round"] == number);
    let counted: usize = rounds.iter().map(|it| it["updates"].as_array().unwrap().len()).sum();
    let all = in_order && rounds.len() == ROUNDS && counted == ROUNDS * STEADY;
    let found = format!("{} rounds, {counted} updates", rounds.len());
    let bar = format!("{ROUNDS} rounds, {} updates", ROUNDS * STEADY);
    against_bar("nothing lost: what was counted", &found, &bar, all);
    let file = folder.join(format!("{MODEL}.onnx"));
    let pull = ["models", "pull", MODEL, "--output", file.to_str().unwrap()];
    let output = cluster.world.dunlin(&pull);
    assert!(output.status.success(), "{output:?}");
    assert_result(rounds, folder, Sums::Plain, &std::fs::read(&file).unwrap());
    println!("  the parameters after each round and the model are these sums, to the last bit");
}
