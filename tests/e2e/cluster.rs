//! Three nats-servers, two brokers: each is killed, one after the other, while devices train. Each
//! device adds a number of its own to all values, so the parameters that a round begins with tell
//! whose updates were counted in the one before, and how often.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Which};

use crate::sums::assert_each_counts_once;

/// What happens to the cluster.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// `kill -9` of a broker when some updates have come; the other one is left alone for a while.
    Broker(Which),
    /// The same of the one that does not own the training.
    Bystander(Which),
    /// `kill -9` of a server.
    Server(usize),
    /// A server neither hears nor speaks for a while.
    Silence(usize),
    /// `kill -9` of a device.
    Device,
}

/// More than end before the test does.
const ROUNDS: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_update_counts_once_whoever_is_killed() {
    let mut cluster = Cluster::start().await;
    let folder = cluster.world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let record = folder.to_str().unwrap().to_owned();
    let steady = ["--first", "1", "--count", "3", "--adds", "--delay-ms", "150"];
    let _steady = cluster.world.devices("steady", &[&steady[..], &["--record", &record]].concat());
    // It is slower: the others wait for it with what they have done.
    let killed = ["--first", "4", "--count", "1", "--adds", "--delay-ms", "600"];
    let mut device = cluster.world.devices("killed", &killed);
    for number in 1..=4 {
        cluster.world.online(&format!("device-{number:05}"), true).await;
    }
    let id = cluster.world.submit(&job()).await;
    let faults = [
        (Fault::Broker(Which::First), "collecting"),
        (Fault::Bystander(Which::First), "collecting"),
        (Fault::Server(1), "collecting"),
        (Fault::Broker(Which::Second), "evaluating"),
        (Fault::Device, "collecting"),
        (Fault::Server(0), "evaluating"),
        (Fault::Silence(2), "collecting"),
        (Fault::Broker(Which::First), "collecting"),
    ];
    let mut known = Vec::new();
    for (number, (fault, phase)) in faults.into_iter().enumerate() {
        in_phase(&cluster, &id, 2 * number + 1, phase).await;
        match fault {
            Fault::Broker(which) | Fault::Bystander(which) => {
                let (owner, updates) = with_updates(&cluster, &id).await;
                known.push(updates);
                cluster.kill_broker(which);
                let before = ended(&cluster, &id).await;
                in_phase(&cluster, &id, before + 1, "collecting").await;
                if matches!(fault, Fault::Bystander(_)) {
                    assert_eq!(cluster.stored(&id).await["owner"], owner);
                }
                cluster.start_broker(which);
            }
            Fault::Server(at) => {
                cluster.kill_server(at);
                tokio::time::sleep(Duration::from_secs(1)).await;
                cluster.start_server(at);
            }
            Fault::Silence(at) => {
                cluster.server(at).signal(Signal::STOP);
                tokio::time::sleep(Duration::from_secs(3)).await;
                cluster.server(at).signal(Signal::CONT);
            }
            Fault::Device => {
                device.kill();
                device = cluster.world.devices("killed", &killed);
            }
        }
    }
    // While servers are away, devices may be too; in the end none is.
    let before = ended(&cluster, &id).await;
    let back = async || rounds(&cluster, &id).await.iter().skip(before).any(|it| counted(it) == 4);
    cluster.world.until("all devices are counted again", back).await;
    let rounds = cancelled(&cluster, &id).await;
    assert_each_counts_once(&rounds, &folder);
    for (number, devices) in known {
        let round = rounds.iter().find(|round| round["round"] == number).unwrap();
        let counted = round["updates"].as_array().unwrap().iter().map(|update| &update[0]);
        let counted: BTreeSet<&str> = counted.filter_map(Value::as_str).collect();
        let lost: Vec<_> = devices.iter().filter(|it| !counted.contains(it.as_str())).collect();
        assert!(lost.is_empty(), "a broker that was killed took updates along: {lost:?} {round:#}");
    }
    drop(device);
}

/// Waits until some devices' updates are known, but not all; the owner, the round, and the devices.
async fn with_updates(cluster: &Cluster, id: &str) -> (Value, (Value, BTreeSet<String>)) {
    let mut found = None;
    let some = async || {
        let stored = cluster.stored(id).await;
        let round = &stored["machine"]["round"];
        let members = round["members"].as_array().map_or(&[][..], Vec::as_slice);
        let answered = members.iter().filter(|it| it["standing"]["answered"].is_object());
        let devices = answered.map(|it| it["device"].as_str().unwrap().to_owned());
        let devices: BTreeSet<String> = devices.collect();
        let collecting = round["phase"]["type"] == "collecting";
        let are_there = collecting && !devices.is_empty() && devices.len() < members.len();
        found =
            are_there.then(|| (stored["owner"].clone(), (round["plan"]["round"].clone(), devices)));
        are_there
    };
    cluster.world.until("some updates have come", some).await;
    found.unwrap()
}

/// The server and the broker that owns the training are cut off, with two of the devices. The other
/// side goes on with its own, and what was counted there is all that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_counts_nothing() {
    let mut cluster = Cluster::start_in_parts().await;
    let folder = cluster.world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let steady = ["--first", "1", "--count", "3", "--adds", "--delay-ms", "300", "--record"];
    let near = [cluster.nats_url(1), cluster.nats_url(2)].join(",");
    let near = cluster.world.devices_via(
        &near,
        "near",
        &[&steady[..], &[folder.to_str().unwrap()]].concat(),
    );
    let parted = ["--first", "4", "--count", "2", "--adds", "--delay-ms", "300"];
    let far = cluster.world.devices_via(&cluster.nats_url(0), "far", &parted);
    for number in 1..=5 {
        cluster.world.online(&format!("device-{number:05}"), true).await;
    }
    // The first broker owns what it is given.
    let id = cluster.world.submit(&job()).await;
    in_phase(&cluster, &id, 2, "collecting").await;
    cluster.cut_off();
    // What one server does not know the others may, also while it still takes itself for a leader.
    let answer = cluster.world.get("/v1/jobs/01arz3ndektsv4rrffq69g5fav").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    // No majority hears the first broker, so what it knows stays as it is.
    let alone = ended(&cluster, &id).await;
    cluster.speak_to(Which::Second);
    let goes_on = async || ended(&cluster, &id).await >= alone + 3;
    cluster.world.until("the other side goes on", goes_on).await;
    let unheard = cluster.world.submit(&json!({"kind": "telemetry"})).await;
    cluster.speak_to(Which::First);
    assert!(ended(&cluster, &id).await <= alone + 1, "a round ended without a majority");
    let answer = cluster.world.get(&format!("/v1/jobs/{unheard}")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    cluster.join_again();
    let back = async || {
        let rounds = rounds(&cluster, &id).await;
        let parted = rounds.iter().position(|round| counted(round) == 3);
        parted.is_some_and(|parted| rounds[parted..].iter().any(|round| counted(round) == 5))
    };
    cluster.world.until("the two devices that were away are counted again", back).await;
    assert_each_counts_once(&cancelled(&cluster, &id).await, &folder);
    drop((near, far));
}

fn job() -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": ROUNDS, "local": {"epochs": 0},
        "participation": {"quorum": 2, "deadline_ms": 20_000, "failed_rounds_max": 10},
    }})
}

/// Cancels a job; its rounds but for the one that was stopped by that, before which nothing may have
/// been given to anyone.
async fn cancelled(cluster: &Cluster, id: &str) -> Vec<Value> {
    // The broker may still be without an answer of the servers.
    let cancel = format!("/v1/jobs/{id}:cancel");
    let accepted = async || cluster.world.post(&cancel, &json!({})).await.status < 300;
    cluster.world.until("the job is cancelled", accepted).await;
    let job = cluster.world.ended(id).await;
    assert_eq!(job["state"], "cancelled", "{job:#}");
    let mut rounds = job["rounds"].as_array().unwrap().clone();
    rounds.retain(|round| round["failure"]["code"] != "cancelled");
    rounds
}

/// Rounds that ended; none where the broker does not answer.
async fn rounds(cluster: &Cluster, id: &str) -> Vec<Value> {
    let job = cluster.world.job(id).await;
    job["rounds"].as_array().cloned().unwrap_or_default()
}

fn counted(round: &Value) -> usize {
    round["updates"].as_array().unwrap().len()
}

/// Rounds that ended, as the broker says once it can: one that was just cut off asks servers that
/// do not hear it, and says so after a while.
async fn ended(cluster: &Cluster, id: &str) -> usize {
    let mut rounds = 0;
    let known = async || {
        let job = cluster.world.job(id).await;
        rounds = job["rounds"].as_array().map_or(0, Vec::len);
        job["id"] == *id
    };
    cluster.world.until("the broker knows the job", known).await;
    rounds
}

/// Waits until so many rounds have ended and the one at work is in a phase.
async fn in_phase(cluster: &Cluster, id: &str, rounds: usize, phase: &str) {
    let what = format!("{rounds} rounds have ended, one is {phase}");
    let reached = async || {
        let job = cluster.world.job(id).await;
        assert!(job["ended_at"].is_null(), "the job ended too soon: {job:#}");
        job["rounds"].as_array().map_or(0, Vec::len) >= rounds
            && cluster.stored(id).await["machine"]["round"]["phase"]["type"] == phase
    };
    cluster.world.until(&what, reached).await;
}
