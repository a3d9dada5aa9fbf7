//! What rounds of ten devices with a model of 100 MB take of memory, by how updates are combined:
//! real agents that send what they got, and for SCAFFOLD, which needs a step, one that they made.

use clap::Args;
use serde_json::{Value, json};
use tests::process::Process;
use tests::world::World;

use crate::figures::{against_bar, heading, mb, ms};
use crate::round::{BROKER_ROOM, DEVICE_ROOM, Ran, agent, run};

const DEVICES: usize = 10;
/// Pixels across and down: the family `mlp` has 64 weights for each.
const SIDE: u16 = 625;
/// One after the other: what is left of one meets the next.
const ROUNDS: usize = 3;
const NOISED: &str = "central:norm=1,noise_multiplier=1,delta=1e-5,epsilon_budget=1000";

/// What is measured of memory.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// memory: parts of the names of plans; all when absent
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    plans: Vec<String>,
}

pub(crate) async fn measure(options: &Options) {
    let noised: jobs::spec::Privacy = NOISED.parse().unwrap();
    let plans = [
        ("fedavg", json!({})),
        ("fedadam", json!({"strategy": {"name": "fedadam"}})),
        (
            "scaffold",
            json!({"strategy": {"name": "scaffold"}, "local": {"epochs": 1, "momentum": 0}}),
        ),
        ("fedmedian", json!({"strategy": {"name": "fedmedian"}})),
        ("fedtrimmedavg", json!({"strategy": {"name": "fedtrimmedavg"}})),
        ("multikrum", json!({"strategy": {"name": "multikrum", "byzantine": 1}})),
        ("bulyan", json!({"strategy": {"name": "bulyan", "byzantine": 1}})),
        ("geometricmedian", json!({"strategy": {"name": "geometricmedian"}})),
        ("fedavg, central privacy", json!({"privacy": noised})),
        ("fedavg, masked", json!({"secure_aggregation": {}})),
        ("fedavg, int8 updates", json!({"update": {"encoding": "int8"}})),
        ("fedavg, top-k updates", json!({"update": {"encoding": "topk"}})),
    ];
    let wanted = |name: &str| {
        options.plans.is_empty() || options.plans.iter().any(|plan| name.contains(plan))
    };
    for (name, plan) in plans.iter().filter(|(name, _)| wanted(name)) {
        measure_plan(name, plan).await;
    }
}

async fn measure_plan(name: &str, plan: &Value) {
    heading(&format!("{ROUNDS} rounds of {DEVICES} devices, model of 100 MB: {name}"));
    let world = World::start().await;
    let data = world.folder().join("data");
    tests::data::write_blank(&data, SIDE);
    let mut agents = Vec::new();
    for number in 0..DEVICES {
        agents.push(agent(&world, number, &data).await);
    }
    let mut job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": ROUNDS, "evaluate": false,
        "local": {"epochs": 0}, "participation": {"devices": DEVICES, "quorum": DEVICES},
    }});
    let spec = job["spec"].as_object_mut().unwrap();
    spec.extend(plan.as_object().unwrap().clone());
    let Ran { rounds, median, .. } = run(&world, &agents, &job).await;
    let model = rounds[0]["parameters"]["size"].as_u64().unwrap();
    let (peak, most) = (world.broker.memory("VmHWM"), 3 * model + BROKER_ROOM);
    against_bar("the broker's peak memory", &mb(peak), &mb(most), peak <= most);
    let peak = agents.iter().map(|agent: &Process| agent.memory("VmHWM")).max().unwrap();
    let most = 3 * model + DEVICE_ROOM;
    if plan.get("local").is_none() {
        against_bar("an agent's peak memory", &mb(peak), &mb(most), peak <= most);
    } else {
        // Gradients and control variates are two models and more, beside what training holds.
        println!("  {:<44} {:>12}", "an agent's peak memory, in training", mb(peak));
    }
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(world.nats.memory("VmHWM")));
    println!("  {:<44} {:>12}", "a round", ms(median));
}
