//! Three nats-servers, two brokers: each is killed, one after the other, while devices train. Each
//! device adds a number of its own to all values, so the parameters that a round begins with tell
//! whose updates were counted in the one before, and how often.

use std::path::Path;
use std::time::Duration;

use models::params::Parameters;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Which};
use tests::simulated::added;

/// What happens to the cluster.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// `kill -9` of a broker; the other one is left alone for a while.
    Broker(Which),
    /// `kill -9` of a server.
    Server(usize),
    /// A server neither hears nor speaks for a while.
    Silence(usize),
    /// `kill -9` of a device.
    Device,
}

const ROUNDS: usize = 24;
/// A device reports as many examples.
const EXAMPLES: f64 = 8.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_update_counts_once_whoever_is_killed() {
    let mut cluster = Cluster::start().await;
    let folder = cluster.world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let record = folder.to_str().unwrap().to_owned();
    let steady = ["--first", "1", "--count", "3", "--adds", "--delay-ms", "150"];
    let _steady = cluster.devices("steady", &[&steady[..], &["--record", &record]].concat());
    let killed = ["--first", "4", "--count", "1", "--adds", "--delay-ms", "150"];
    let mut device = cluster.devices("killed", &killed);
    for number in 1..=4 {
        cluster.world.online(&format!("device-{number:05}"), true).await;
    }
    let id = cluster.world.submit(&job()).await;
    let faults = [
        (Fault::Broker(Which::First), "collecting"),
        (Fault::Server(1), "collecting"),
        (Fault::Broker(Which::Second), "evaluating"),
        (Fault::Device, "collecting"),
        (Fault::Server(0), "evaluating"),
        (Fault::Silence(2), "collecting"),
        (Fault::Broker(Which::First), "collecting"),
    ];
    for (number, (fault, phase)) in faults.into_iter().enumerate() {
        in_phase(&cluster, &id, 2 * number + 1, phase).await;
        match fault {
            Fault::Broker(which) => {
                cluster.kill_broker(which);
                let before = ended(&cluster, &id).await;
                in_phase(&cluster, &id, before + 1, "collecting").await;
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
                device = cluster.devices("killed", &killed);
            }
        }
    }
    let job = cluster.world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap();
    let good = rounds.iter().filter(|round| round["failure"].is_null());
    assert_eq!(good.count(), ROUNDS);
    assert_each_counts_once(rounds, &folder);
    for round in rounds {
        let devices = round["updates"].as_array().unwrap().len();
        assert!(!round["failure"].is_null() || devices >= 3, "who lives is counted: {round:#}");
    }
    drop(device);
}

fn job() -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": ROUNDS, "local": {"epochs": 0},
        "participation": {"quorum": 2, "deadline_ms": 20_000, "failed_rounds_max": 10},
    }})
}

/// Rounds that ended.
async fn ended(cluster: &Cluster, id: &str) -> usize {
    cluster.world.job(id).await["rounds"].as_array().map_or(0, Vec::len)
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

/// Holds what each round began with to what the one before says of itself, to the last bit.
fn assert_each_counts_once(rounds: &[Value], folder: &Path) {
    let given = |round: &Value| {
        let bytes = std::fs::read(folder.join(round["round"].to_string())).unwrap();
        Parameters::from_safetensors(&bytes).unwrap()
    };
    for pair in rounds.windows(2) {
        let (before, after) = (given(&pair[0]), given(&pair[1]));
        let expected =
            if pair[0]["failure"].is_null() { mean_of(&pair[0], &before) } else { before };
        assert_eq!(after.to_safetensors(), expected.to_safetensors(), "after {:#}", pair[0]);
    }
}

/// The mean of what the devices of a round made of these parameters, the slow way.
fn mean_of(round: &Value, before: &Parameters) -> Parameters {
    let number = |update: &Value| update[0].as_str().unwrap()["device-".len()..].parse().unwrap();
    let bytes = before.to_safetensors();
    let updates = round["updates"].as_array().unwrap().iter().map(number);
    let updates: Vec<Parameters> = updates
        .map(|number| Parameters::from_safetensors(&added(&bytes, number)).unwrap())
        .collect();
    let mut items = before.items().to_vec();
    for (at, item) in items.iter_mut().enumerate() {
        for (index, value) in item.values.iter_mut().enumerate() {
            let (mut sum, mut weight) = (0.0, 0.0);
            for update in &updates {
                sum += f64::from(update.items()[at].values[index]) * EXAMPLES;
                weight += EXAMPLES;
            }
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let mean = (sum / weight) as f32;
            *value = mean;
        }
    }
    Parameters::new(items).unwrap()
}
