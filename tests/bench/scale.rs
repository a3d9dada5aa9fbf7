//! Many devices: rounds of hundreds without training, and ten thousand that are only there.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::process::{Process, program};
use tests::world::World;

use crate::figures::{Times, against_bar, heading, mb, ms};
use crate::round::{BROKER_ROOM, between_ends};

/// Processes that play the devices.
const PROCESSES: u32 = 4;
/// The family `mlp` has 64 weights for each pixel: 1 MB.
const SIDE: u32 = 63;
const ROUNDS: usize = 5;
const ROUND_BAR: Duration = Duration::from_secs(10);
const MEMORY_BAR: u64 = 300_000_000;
/// What a rule that looks at all updates has under way of them together, and of each one besides.
const BATCHES: u64 = 64 * 1024 * 1024;
const CHUNK: u64 = 128 * 1024;
const HEARTBEATS: Duration = Duration::from_secs(15);

pub(crate) async fn measure() {
    a_round_of_many(1000, "fedavg", BROKER_ROOM).await;
    let devices = 400;
    let room = BROKER_ROOM + BATCHES + u64::from(devices) * CHUNK;
    a_round_of_many(devices, "fedmedian", room).await;
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
    loop {
        let found = online(world).await;
        if found == devices {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "{found} of {devices} are online");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("  {:<44} {:>12}", format!("{devices} devices joined in"), ms(begun.elapsed()));
    processes
}

/// Devices that the broker takes to be online.
async fn online(world: &World) -> u32 {
    let text = world.request("GET", "/metrics").send().await.unwrap().text().await.unwrap();
    let name = "dunlin_devices{presence=\"online\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Its broker may take three times the model and so many bytes.
async fn a_round_of_many(devices: u32, strategy: &str, room: u64) {
    heading(&format!("a round of {devices} devices without training, model of 1 MB, {strategy}"));
    let world = World::start().await;
    let _devices = joined(&world, devices, 1, 2000).await;
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": ROUNDS + 1, "evaluate": false,
        "local": {"epochs": 0}, "strategy": {"name": strategy},
        "participation": {"devices": devices, "quorum": devices},
    }});
    let id = world.submit(&job).await;
    let job = world.ended_within(&id, Duration::from_mins(5)).await;
    assert_eq!(job["state"], "succeeded", "{:#}", job["failure"]);
    let rounds = job["rounds"].as_array().unwrap();
    show(&world, rounds, room);
}

fn show(world: &World, rounds: &[Value], room: u64) {
    let mut times = Times::default();
    between_ends(rounds).for_each(|time| times.push(time));
    let missing: usize =
        rounds.iter().map(|round| round["missing"].as_array().unwrap().len()).sum();
    println!("  {:<44} {missing:>12}", "updates that were missing, all rounds");
    let median = times.median();
    let what = format!("a round, median of {ROUNDS}");
    against_bar(&what, &ms(median), &ms(ROUND_BAR), median <= ROUND_BAR);
    let model = rounds[0]["parameters"]["size"].as_u64().unwrap();
    let (peak, most) = (world.broker.memory("VmHWM"), 3 * model + room);
    let bar = format!("{} = 3 x model + {}", mb(most), mb(room));
    against_bar("the broker's peak memory", &mb(peak), &bar, peak <= most);
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(world.nats.memory("VmHWM")));
}

async fn many_that_are_there(devices: u32) {
    heading(&format!("{devices} devices with a heartbeat every 5 s"));
    let world = World::start().await;
    let mut processes = joined(&world, devices, 100, 5000).await;
    // Those that the broker did not hear in time are offline at some moment of it.
    let (begun, mut least) = (Instant::now(), devices);
    while begun.elapsed() < HEARTBEATS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        least = least.min(online(&world).await);
    }
    let what = format!("online for {} s, the least", HEARTBEATS.as_secs());
    against_bar(&what, &least.to_string(), &devices.to_string(), least == devices);
    let (resident, peak) = (world.broker.memory("VmRSS"), world.broker.memory("VmHWM"));
    println!("  {:<44} {:>12}", "the broker's memory", mb(resident));
    against_bar("its peak", &mb(peak), &mb(MEMORY_BAR), peak <= MEMORY_BAR);
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(world.nats.memory("VmHWM")));
    assert!(!processes.iter_mut().any(Process::has_ended), "the devices were there to the end");
}
