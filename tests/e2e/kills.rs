//! `kill -9` in each phase that a training is stored in: of the broker that owns it, whose place
//! the other one takes, of the other one and the server that leads its store, and of devices.
//!
//! A kill follows the write that names the phase, which is seen when NATS has it and the broker
//! does not know that yet. It counts where whoever looks into the store next finds the same phase; short
//! phases are tried again, in another round or another job. Nobody starts anything but what was
//! killed.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Which};
use tests::process::{PATIENCE, Process};
use tests::world::World;
use tests::writes::{Stored, Writes};

use crate::sums::{Sums, assert_result};

mod agents;
mod bystander;
mod devices;
mod owner;
mod private;
mod servers;
mod transfers;

/// How often a phase that is over too soon is tried again.
const TRIES: usize = 8;
/// How long a write may be on its way to who looks on.
const ON_ITS_WAY: Duration = Duration::from_millis(5);

/// A cluster in which brokers are killed, with devices that add their numbers.
struct Scene {
    cluster: Cluster,
    folder: PathBuf,
    /// What brokers call themselves, as far as that is known.
    names: [Option<String>; 2],
    /// What was stored when an owner was killed.
    seen: Vec<Stored>,
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let folder = cluster.world.folder().join("rounds");
        std::fs::create_dir(&folder).unwrap();
        Self { cluster, folder, names: [None, None], seen: Vec::new() }
    }

    /// The same with a data set that is known though its device, the fourth, is away.
    async fn start_with_nobody() -> Self {
        let scene = Self::start().await;
        drop(scene.devices(4..=4, &["--fails"]).await);
        scene.offline(4).await;
        scene
    }

    /// Devices of these numbers in one process, when they are online; the first one of all records
    /// what rounds begin with.
    async fn devices(&self, numbers: RangeInclusive<u32>, options: &[&str]) -> Process {
        let (first, count) = (numbers.start().to_string(), numbers.clone().count().to_string());
        let record = ["--record", self.folder.to_str().unwrap()];
        let record = if first == "1" { &record[..] } else { &[] };
        let numbered = ["--first", &first, "--count", &count];
        let options = [&numbered[..], record, options].concat();
        let devices = self.cluster.world.devices(&format!("devices-{first}"), &options);
        for number in numbers {
            self.cluster.world.online(&device(number), true).await;
        }
        devices
    }

    /// Waits until a device that was killed is known to be away.
    async fn offline(&self, number: u32) {
        let (world, path) = (&self.cluster.world, format!("/v1/devices/{}", device(number)));
        let is_away = async || world.get(&path).await.body["presence"] == "offline";
        world.until("the device is away", is_away).await;
    }

    async fn submit(&self, job: &Value) -> (String, Writes) {
        submit(&self.cluster.world, job).await
    }

    /// Kills the owner as soon as it writes that it is in this phase, until the broker that takes
    /// over finds it so; false where the training ends before.
    async fn kill_owner(&mut self, writes: &mut Writes, phase: &str) -> bool {
        self.kill_owner_when(writes, phase, |_| true).await
    }

    /// The same when some of those who are asked in this phase have answered and some have not.
    async fn kill_owner_partway(&mut self, writes: &mut Writes, phase: &str) {
        let hit = self.kill_owner_when(writes, phase, Stored::is_partway).await;
        assert!(hit, "the training was over before its owner was killed {phase}");
    }

    async fn kill_owner_when(
        &mut self,
        writes: &mut Writes,
        phase: &str,
        such: impl Fn(&Stored) -> bool,
    ) -> bool {
        for _ in 0..TRIES {
            let wanted = |stored: &Stored| stored.phase() == phase && such(stored);
            let Some(before) = writes.find(wanted).await else { return false };
            let (name, term) = before.owner();
            let Some(owner) = self.broker(name).await else { return false };
            self.cluster.kill_broker(owner);
            let after = writes.find(|stored| stored.owner().1 > term).await;
            self.names[owner as usize] = None;
            self.cluster.start_broker(owner);
            self.cluster.ready(owner).await;
            let at = (before.round(), phase);
            let hit = after.as_ref().is_some_and(|after| (after.round(), after.phase()) == at);
            self.seen.push(before);
            if hit {
                return true;
            }
            if after.is_none() {
                return false;
            }
        }
        panic!("{TRIES} times the phase was over before the owner was killed {phase}");
    }

    /// The broker of this name; nobody owns a training that is over before the first is asked for.
    async fn broker(&mut self, name: &str) -> Option<Which> {
        let all = [Which::First, Which::Second];
        let known = |names: &[Option<String>; 2]| {
            let called = |which: Which| names[which as usize].as_deref();
            let by_name = all.into_iter().find(|which| called(*which) == Some(name));
            let other = || all.into_iter().find(|which| called(which.other()).is_some());
            by_name.or_else(other)
        };
        let mut found = known(&self.names);
        if found.is_none() {
            let begun = Instant::now();
            while found.is_none() && begun.elapsed() < PATIENCE {
                found = self.cluster.owner().await;
            }
        }
        self.names[found? as usize] = Some(name.to_owned());
        found
    }

    /// Waits until a job has succeeded; each of its rounds was made of each of its updates once,
    /// and what was known when an owner was killed is in them.
    async fn succeeded(&self, id: &str, model: &str, sums: Sums) -> Vec<Value> {
        let rounds = succeeded(&self.cluster.world, id).await;
        assert_result(&rounds, &self.folder, sums, &registered(&self.cluster.world, model).await);
        for seen in &self.seen {
            assert_nothing_lost(&rounds, seen);
        }
        rounds
    }
}

async fn submit(world: &World, job: &Value) -> (String, Writes) {
    let id = world.submit(job).await;
    let writes = Writes::of(&world.client().await, &id).await;
    (id, writes)
}

/// A training of devices that add their numbers, of which so many are needed.
fn adding(dataset: &str, rounds: u32, quorum: u32) -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": dataset, "rounds": rounds, "register_as": dataset,
        "local": {"epochs": 0},
        "participation": {"quorum": quorum, "deadline_ms": 60_000, "failed_rounds_max": 20},
    }})
}

/// The rounds of a job that has succeeded: their numbers follow each other, and each device is in
/// each of them once.
async fn succeeded(world: &World, id: &str) -> Vec<Value> {
    let job = world.ended(id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap().clone();
    for (index, round) in rounds.iter().enumerate() {
        assert_eq!(round["round"], index + 1, "{job:#}");
        let mut all = [names(round, "updates"), names(round, "missing")].concat();
        let listed = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), listed, "a device counts once: {round:#}");
    }
    rounds
}

fn device(number: u32) -> String {
    format!("device-{number:05}")
}

/// The only version of a model.
async fn registered(world: &World, model: &str) -> Vec<u8> {
    let models = world.get(&format!("/v1/models/{model}")).await.body;
    assert_eq!(models["versions"].as_array().map(Vec::len), Some(1), "{models:#}");
    let file = world.folder().join(format!("{model}.onnx"));
    let output = world.dunlin(&["models", "pull", model, "--output", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    std::fs::read(&file).unwrap()
}

/// Who had answered in a phase of a round is in that round.
fn assert_nothing_lost(rounds: &[Value], seen: &Stored) {
    let (answered, _) = seen.devices();
    let Some(round) = rounds.iter().find(|round| round["round"] == seen.round()) else { return };
    if !round["failure"].is_null() {
        return;
    }
    let within = if seen.phase() == "evaluating" { "evaluations" } else { "updates" };
    let counted: BTreeSet<String> = names(round, within).into_iter().collect();
    let lost: Vec<_> = answered.iter().filter(|it| !counted.contains(*it)).collect();
    let phase = seen.phase();
    assert!(lost.is_empty(), "an owner that was killed {phase} took along {lost:?}: {round:#}");
}

/// Names of the devices in a list of a round.
fn names(round: &Value, list: &str) -> Vec<String> {
    let list = round[list].as_array().unwrap();
    list.iter().map(|entry| entry[0].as_str().unwrap().to_owned()).collect()
}
