//! Ten devices learn digits, two of which send the opposite of what they learnt, ten times as far.
//! Every training has the same settings; each is done with several seeds, whose median counts.

use std::process::Command;

use clap::Args;
use serde_json::json;
use tests::data::Digits;
use tests::process::{Process, program};
use tests::world::World;

use crate::figures::{against_bar, heading};
use crate::privacy;

/// What is measured under attack, and how it is learnt.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// attack: rounds of a training
    #[arg(long, value_name = "N", default_value_t = 60)]
    rounds: u32,
    /// attack: epochs on a device in a round
    #[arg(long, value_name = "N", default_value_t = 2)]
    epochs: u32,
    /// attack: step size on devices
    #[arg(long, value_name = "RATE", default_value_t = 0.02)]
    learning_rate: f64,
    /// attack: trainings of each strategy, with seeds from 0
    #[arg(long, value_name = "N", default_value_t = 3)]
    trainings: u64,
    /// attack: parts of the names of strategies; all when absent
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    strategies: Vec<String>,
}

const DEVICES: usize = 10;
const ATTACKERS: usize = 2;
const POINTS_BAR: f64 = 5.0;
/// Accuracy with which a training has failed.
const FAILED: f64 = 0.5;
/// The first ones are promised to bear the attack.
const BEARING: [&str; 7] = [
    "krum:byzantine=2",
    "multikrum:byzantine=2",
    "fedtrimmedavg:fraction=0.2",
    "geometricmedian",
    "fedmedian",
    "centredclipping:radius=1,iterations=3",
    "normbound:norm=1",
];
const PROMISED: usize = 4;

/// Accuracies of the seeds, in their order by size.
struct Learnt(Vec<f64>);

impl Learnt {
    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn shown(&self) -> String {
        let (least, most) = (100.0 * self.0[0], 100.0 * self.0[self.0.len() - 1]);
        format!("{:.1} % ({least:.1} to {most:.1})", 100.0 * self.median())
    }
}

pub(crate) async fn measure(options: &Options) {
    let Options { rounds, epochs, learning_rate, trainings, .. } = options;
    heading(&format!(
        "digits, LeNet, {rounds} rounds of {epochs} epochs, step size {learning_rate}, 8 of 10 \
         devices honest, 2 flip signs (times 10); 360 held-out pictures, median of {trainings}"
    ));
    let world = World::start().await;
    let digits = Digits::write_as(world.folder(), DEVICES, "iid");
    let mut agents = Vec::new();
    for number in 1..=DEVICES - ATTACKERS {
        let name = format!("device-{number}");
        agents.push(world.join(&name, Some(("digits", &digits.share(number)))).await);
    }
    let fleet = Fleet { world: &world, digits: &digits, options };
    let wanted = |strategy: &&str| {
        let named = &options.strategies;
        named.is_empty() || named.iter().any(|name| strategy.contains(name))
    };
    let strategies: Vec<&str> = BEARING.into_iter().filter(wanted).collect();
    let plain = fleet.learn("fedavg", DEVICES - ATTACKERS).await;
    println!("  {:<44} {}", "fedavg, the honest ones alone", plain.shown());
    let mut alone = Vec::new();
    for strategy in &strategies {
        alone.push(fleet.learn(strategy, DEVICES - ATTACKERS).await);
    }
    let _attackers = attackers(&world, &digits).await;
    let failing = fleet.learn("fedavg", DEVICES).await;
    let holds = failing.median() < FAILED;
    against_bar("fedavg under attack", &failing.shown(), "fails: below 50 %", holds);
    for (strategy, alone) in strategies.into_iter().zip(alone) {
        let attacked = fleet.learn(strategy, DEVICES).await;
        let [from_plain, from_alone] =
            [&plain, &alone].map(|other| 100.0 * (other.median() - attacked.median()));
        let found = format!("{}, {from_plain:+.1} points", attacked.shown());
        if BEARING[..PROMISED].contains(&strategy) {
            let bar = format!("{POINTS_BAR} below fedavg alone");
            against_bar(strategy, &found, &bar, from_plain <= POINTS_BAR);
        } else {
            println!("  {strategy:<44} {found} below fedavg alone");
        }
        println!("  {:<44} {}, {from_alone:+.1} points", "  itself alone", alone.shown());
    }
}

async fn attackers(world: &World, digits: &Digits) -> Vec<Process> {
    let numbers = DEVICES - ATTACKERS + 1..=DEVICES;
    let attackers = numbers.clone().map(|number| {
        let mut command = Command::new(program("simulated-devices"));
        command.args(["--nats", &world.nats_url(), "--dataset", "digits", "--flips", "10"]);
        command.args(["--first", &number.to_string(), "--heartbeat-ms", "300"]);
        command.arg("--data").arg(digits.share(number));
        Process::start(&format!("attacker-{number}"), world.folder(), command)
    });
    let attackers = attackers.collect();
    for number in numbers {
        world.online(&format!("device-{number:05}"), true).await;
    }
    attackers
}

/// Who learns, and how.
struct Fleet<'a> {
    world: &'a World,
    digits: &'a Digits,
    options: &'a Options,
}

impl Fleet<'_> {
    async fn learn(&self, strategy: &str, devices: usize) -> Learnt {
        let mut accuracies = Vec::new();
        for seed in 0..self.options.trainings {
            accuracies.push(self.train(strategy, devices, seed).await);
        }
        accuracies.sort_by(f64::total_cmp);
        Learnt(accuracies)
    }

    /// Trains anew; the accuracy of the last model on pictures that no device has. A training whose
    /// numbers left the range of floats has learnt nothing.
    async fn train(&self, strategy: &str, devices: usize, seed: u64) -> f64 {
        let strategy: jobs::spec::Strategy = strategy.parse().unwrap();
        let Options { rounds, epochs, learning_rate, .. } = self.options;
        let job = json!({"kind": "train", "spec": {
            "model": "lenet", "dataset": "digits", "rounds": rounds, "strategy": strategy,
            "seed": seed, "evaluate": false,
            "local": {
                "epochs": epochs, "batch_size": 16, "learning_rate": learning_rate, "momentum": 0.9,
            },
            "participation": {"devices": devices, "quorum": devices},
            // A name that is registered would be gone on from.
            "register_as": "attacked",
        }});
        let id = self.world.submit(&job).await;
        let job = self.world.ended(&id).await;
        if job["result"]["model"].is_null() {
            return 0.0;
        }
        privacy::accuracy(self.world, self.digits, &job).await
    }
}
