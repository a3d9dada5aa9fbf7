//! Ten devices learn digits, two of which send the opposite of what they learnt, ten times as far.

use std::process::Command;

use serde_json::json;
use tests::data::Digits;
use tests::process::{Process, program};
use tests::world::World;

use crate::accuracy::judged;
use crate::figures::{against_bar, heading};

const DEVICES: usize = 10;
const ATTACKERS: usize = 2;
const ROUNDS: u32 = 40;
const POINTS_BAR: f64 = 5.0;
/// Accuracy with which a training has failed.
const FAILED: f64 = 0.5;
const BEARING: [&str; 7] = [
    "krum:byzantine=2",
    "multikrum:byzantine=2",
    "fedtrimmedavg:fraction=0.2",
    "geometricmedian",
    "fedmedian",
    "centredclipping:radius=1,iterations=3",
    "normbound:norm=1",
];

pub(crate) async fn measure() {
    heading("digits, LeNet, 40 rounds, 8 of 10 devices honest, 2 flip signs (times 10)");
    let world = World::start().await;
    let digits = Digits::write_as(world.folder(), DEVICES, "iid");
    let mut agents = Vec::new();
    for number in 1..=DEVICES - ATTACKERS {
        let name = format!("device-{number}");
        agents.push(world.join(&name, Some(("digits", &digits.share(number)))).await);
    }
    let alone = async |strategy| train(&world, strategy, DEVICES - ATTACKERS).await;
    let plain = alone("fedavg").await;
    println!("  {:<44} {:>10.1} %", "fedavg, the honest ones alone", 100.0 * plain);
    let mut without = Vec::new();
    for strategy in BEARING {
        without.push(alone(strategy).await);
    }
    let _attackers: Vec<Process> = (DEVICES - ATTACKERS + 1..=DEVICES)
        .map(|number| {
            let mut command = Command::new(program("simulated-devices"));
            command.args(["--nats", &world.nats_url(), "--dataset", "digits", "--flips", "10"]);
            command.args(["--first", &number.to_string(), "--heartbeat-ms", "300"]);
            command.arg("--data").arg(digits.share(number));
            Process::start(&format!("attacker-{number}"), world.folder(), command)
        })
        .collect();
    for number in DEVICES - ATTACKERS + 1..=DEVICES {
        world.online(&format!("device-{number:05}"), true).await;
    }
    let failing = train(&world, "fedavg", DEVICES).await;
    let shown = format!("{:.1} %", 100.0 * failing);
    against_bar("fedavg under attack", &shown, "fails: below 50 %", failing < FAILED);
    for (strategy, without) in BEARING.into_iter().zip(without) {
        let accuracy = train(&world, strategy, DEVICES).await;
        let shown = format!("{:.1} %", 100.0 * accuracy);
        let holds = 100.0 * (without - accuracy) <= POINTS_BAR;
        let bar = format!("within 5 of {:.1} % alone", 100.0 * without);
        against_bar(strategy, &shown, &bar, holds);
    }
}

/// Trains anew; the accuracy of the last round on the test pictures of the honest ones.
async fn train(world: &World, strategy: &str, devices: usize) -> f64 {
    let strategy: jobs::spec::Strategy = strategy.parse().unwrap();
    let job = json!({"kind": "train", "spec": {
        "model": "lenet", "dataset": "digits", "rounds": ROUNDS, "strategy": strategy,
        "local": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9},
        "participation": {"devices": devices, "quorum": devices},
        // A name that is registered would be gone on from.
        "register_as": "attacked",
    }});
    let id = world.submit(&job).await;
    let job = world.ended(&id).await;
    let rounds = job["rounds"].as_array().unwrap();
    let judged =
        rounds.iter().rev().find(|round| !round["evaluations"].as_array().unwrap().is_empty());
    judged.map_or(0.0, judged_or_zero)
}

/// A training whose numbers left the range of floats has learnt nothing.
fn judged_or_zero(round: &serde_json::Value) -> f64 {
    let accuracy = judged(round);
    if accuracy.is_finite() { accuracy } else { 0.0 }
}
