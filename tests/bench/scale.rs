//! Many devices: a round of a thousand without training, and ten thousand that are only there.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::process::{Process, program};
use tests::world::World;

use crate::figures::{Times, against_bar, heading, mb, ms};
use crate::round::between_ends;

/// Processes that play the devices.
const PROCESSES: u32 = 4;
/// The family `mlp` has 64 weights for each pixel: 1 MB.
const SIDE: u32 = 63;
const ROUNDS: usize = 5;
const ROUND_BAR: Duration = Duration::from_secs(10);
const MEMORY_BAR: u64 = 300_000_000;

pub(crate) async fn measure() {
    a_round_of_many(1000).await;
    many_that_are_there(10_000).await;
}

/// Starts processes that play so many devices, and waits until all are online.
async fn joined(world: &World, devices: u32, sharing: u32, heartbeat_ms: u64) -> Vec<Process> {
    let each = devices.div_ceil(PROCESSES);
    let begun = Instant::now();
    let processes = (0..PROCESSES).map(|number| {
        let mut command = Command::new(program("simulated-devices"));
        command.args(["--nats", &world.nats_url(), "--side", &SIDE.to_string()]);
        command.args(["--first", &(number * each).to_string(), "--count", &each.to_string()]);
        command.args(["--sharing", &sharing.to_string()]);
        command.args(["--heartbeat-ms", &heartbeat_ms.to_string()]);
        Process::start(&format!("devices-{number}"), world.folder(), command)
    });
    let processes = processes.collect();
    let online = format!("dunlin_devices{{presence=\"online\"}} {devices}");
    loop {
        let text = world.request("GET", "/metrics").send().await.unwrap().text().await.unwrap();
        if text.contains(&online) {
            break;
        }
        let found = text.lines().find(|line| line.contains("presence=\"online\""));
        assert!(begun.elapsed() < Duration::from_mins(2), "{found:?} of {devices} are online");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("  {:<44} {:>12}", format!("{devices} devices joined in"), ms(begun.elapsed()));
    processes
}

async fn a_round_of_many(devices: u32) {
    heading(&format!("a round of {devices} devices without training, model of 1 MB"));
    let world = World::start().await;
    let _devices = joined(&world, devices, 1, 2000).await;
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": ROUNDS + 1, "evaluate": false,
        "local": {"epochs": 0}, "participation": {"devices": devices, "quorum": devices},
    }});
    let id = world.submit(&job).await;
    let job = world.ended_within(&id, Duration::from_mins(5)).await;
    assert_eq!(job["state"], "succeeded", "{:#}", job["failure"]);
    let rounds = job["rounds"].as_array().unwrap();
    let mut times = Times::default();
    between_ends(rounds).for_each(|time| times.push(time));
    let missing: usize =
        rounds.iter().map(|round| round["missing"].as_array().unwrap().len()).sum();
    println!("  {:<44} {missing:>12}", "updates that were missing, all rounds");
    let median = times.median();
    let what = format!("a round, median of {ROUNDS}");
    against_bar(&what, &ms(median), &ms(ROUND_BAR), median <= ROUND_BAR);
    println!("  {:<44} {:>12}", "the broker's peak memory", mb(world.broker.memory("VmHWM")));
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(world.nats.memory("VmHWM")));
}

async fn many_that_are_there(devices: u32) {
    heading(&format!("{devices} devices with a heartbeat every 5 s"));
    let world = World::start().await;
    let _devices = joined(&world, devices, 100, 5000).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (resident, peak) = (world.broker.memory("VmRSS"), world.broker.memory("VmHWM"));
    println!("  {:<44} {:>12}", "the broker's memory", mb(resident));
    against_bar("its peak", &mb(peak), &mb(MEMORY_BAR), peak <= MEMORY_BAR);
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(world.nats.memory("VmHWM")));
}
