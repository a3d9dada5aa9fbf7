//! A round without training: devices get the parameters, send them back, the broker averages. One
//! of them changes all values, so that those of each round are new to everybody.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use link::blobs::Blobs;
use serde_json::{Value, json};
use tests::process::Process;
use tests::world::World;

use crate::figures::{Times, against_bar, against_limit, heading, mb, ms};

pub(crate) const WARM_UP: usize = 2;
/// Bytes beyond three times the model that the broker may take.
pub(crate) const BROKER_ROOM: u64 = 64_000_000;
/// And a device.
pub(crate) const DEVICE_ROOM: u64 = 32_000_000;

/// A number of devices, a size of model, and what a round of them may take.
struct Case {
    devices: usize,
    name: &'static str,
    /// Pixels across and down: the family `mlp` has 64 weights for each.
    side: u16,
    rounds: usize,
    bar: Duration,
    flower: &'static str,
}

const fn case(
    devices: usize,
    (name, side): (&'static str, u16),
    rounds: usize,
    bar_ms: u64,
    flower: &'static str,
) -> Case {
    Case { devices, name, side, rounds, bar: Duration::from_millis(bar_ms), flower }
}

const CASES: [Case; 5] = [
    case(4, ("1 MB", 63), 20, 15, "33-80 ms, 140 MB"),
    case(10, ("1 MB", 63), 20, 30, "80-155 ms, 191 MB"),
    case(4, ("25 MB", 313), 20, 500, "0.7-1.7 s, 1.6 GB"),
    case(10, ("25 MB", 313), 10, 1000, "1.5-5 s, 2.6 GB"),
    case(10, ("100 MB", 625), 5, 4000, "13-19 s, 5.5 GB"),
];

pub(crate) async fn measure() {
    for case in CASES {
        measure_case(&case).await;
    }
    for case in [&CASES[0], &CASES[1], &CASES[3]] {
        measure_encoded(case).await;
    }
}

/// An agent that does not look for engines: they answer, nobody asks them, and to find them takes
/// the time of processors that rounds are measured on.
pub(crate) async fn agent(world: &World, number: usize, data: &Path) -> Process {
    let name = format!("device-{number}");
    let mut command = world.agent_command(&name);
    command.arg("--data").arg(format!("blank={}", data.display()));
    for engine in ["cuda", "webgpu", "ort-cpu"] {
        command.args(["--forbid-engine", engine]);
    }
    let agent = world.run_agent(&name, command);
    world.online(&name, true).await;
    agent
}

/// What 8 bits both ways save, and what they cost to encode. Each device is a process that moves
/// every value a little, and sends what it has, or the differences.
async fn measure_encoded(case: &Case) {
    let devices = case.devices;
    heading(&format!("a round of {devices} devices that move a model of {}", case.name));
    println!("  {:<44} {:>12} {:>12} {:>12}", "", "a round", "MB down", "MB up");
    for (what, encoding) in [("exact", "plain"), ("int8 both ways", "int8")] {
        let world = World::start().await;
        let mut processes = Vec::new();
        for number in 0..devices {
            let (first, side) = (number.to_string(), case.side.to_string());
            let options = ["--moves", "--first", &first, "--side", &side];
            processes.push(world.devices(&format!("device-{number}"), &options));
            world.online(&format!("device-{number:05}"), true).await;
        }
        let job = json!({"kind": "train", "spec": {
            "model": "mlp", "dataset": "blank", "rounds": WARM_UP + case.rounds, "evaluate": false,
            "update": {"encoding": encoding}, "download": encoding,
            "participation": {"devices": devices, "quorum": devices},
        }});
        let Ran { rounds, median, computed } = run(&world, &processes, &job).await;
        let moved = |way: &str| mb(rounds[WARM_UP]["moved"][way].as_u64().unwrap());
        let (median, down, up) = (ms(median), moved("down"), moved("up"));
        println!("  {what:<44} {median:>12} {down:>12} {up:>12}");
        computed.print();
    }
}

async fn measure_case(case: &Case) {
    let devices = case.devices;
    heading(&format!("a round of {devices} devices without training, model of {}", case.name));
    let world = World::start().await;
    let data = world.folder().join("data");
    tests::data::write_blank(&data, case.side);
    let mut agents = Vec::new();
    for number in 1..devices {
        agents.push(agent(&world, number, &data).await);
    }
    let options = ["--first", "1", "--adds", "--data", data.to_str().unwrap()];
    let _changing = world.devices("changing", &options);
    world.online("device-00001", true).await;
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": WARM_UP + case.rounds, "evaluate": false,
        "local": {"epochs": 0}, "participation": {"devices": devices, "quorum": devices},
    }});
    let mut stored = job.clone();
    stored["spec"]["transfer"] = "stored".into();
    let Ran { rounds, median, computed } = run(&world, &agents, &job).await;
    let model = rounds[0]["parameters"]["size"].as_u64().unwrap();
    let (peak, most) = (world.broker.memory("VmHWM"), 3 * model + BROKER_ROOM);
    let nats = world.nats.memory("VmHWM");
    let limit = moving_only(&world, case, usize::try_from(model).unwrap()).await;
    let bar = format!("{} (Flower {})", ms(case.bar), case.flower);
    let what = format!("a round, median of {}", case.rounds);
    against_bar(&what, &ms(median), &bar, median <= case.bar);
    against_limit("", median, "the same bytes through the object store", limit);
    against_bar("the broker's peak memory", &mb(peak), &mb(most), peak <= most);
    let agent = agents.iter().map(|agent: &Process| agent.memory("VmHWM")).max().unwrap();
    let most = 3 * model + DEVICE_ROOM;
    against_bar("an agent's peak memory", &mb(agent), &mb(most), agent <= most);
    println!("  {:<44} {:>12}", "nats-server's peak memory", mb(nats));
    computed.print();
    let Ran { median, computed, .. } = run(&world, &agents, &stored).await;
    println!("  {:<44} {:>12}", "updates go through the object store", ms(median));
    computed.print();
}

/// What became of a training.
pub(crate) struct Ran {
    pub(crate) rounds: Vec<Value>,
    /// From round to round.
    pub(crate) median: Duration,
    computed: Computed,
}

pub(crate) async fn run(world: &World, devices: &[Process], job: &Value) -> Ran {
    let before = Computed::so_far(world, devices);
    let id = world.submit(job).await;
    let job = world.ended_within(&id, Duration::from_mins(5)).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap().clone();
    let count = u32::try_from(rounds.len()).unwrap();
    let computed = Computed::so_far(world, devices).in_a_round(&before, count);
    let mut times = Times::default();
    between_ends(&rounds[WARM_UP - 1..]).for_each(|time| times.push(time));
    Ran { rounds, median: times.median(), computed }
}

/// Time that the processes have computed.
struct Computed {
    nats: Duration,
    broker: Duration,
    agents: Duration,
}

impl Computed {
    fn so_far(world: &World, agents: &[Process]) -> Self {
        Self {
            nats: world.nats.processor_time(),
            broker: world.broker.processor_time(),
            agents: agents.iter().map(Process::processor_time).sum(),
        }
    }

    /// What each of so many rounds has cost since.
    fn in_a_round(&self, before: &Self, rounds: u32) -> Self {
        let each = |now: Duration, before: Duration| now.saturating_sub(before) / rounds;
        Self {
            nats: each(self.nats, before.nats),
            broker: each(self.broker, before.broker),
            agents: each(self.agents, before.agents),
        }
    }

    /// The processes share the cores for it.
    fn print(&self) {
        for (who, time) in
            [("nats-server", self.nats), ("the broker", self.broker), ("all agents", self.agents)]
        {
            let what = format!("computed in a round by {who}");
            println!("  {what:<44} {:>12}", ms(time));
        }
    }
}

/// From the end of a round to the end of the next: what is between them counts too.
pub(crate) fn between_ends(rounds: &[Value]) -> impl Iterator<Item = Duration> {
    let ended = |round: &Value| round["ended_at"].as_u64().unwrap();
    rounds.windows(2).map(move |pair| Duration::from_millis(ended(&pair[1]) - ended(&pair[0])))
}

/// The same transfers without Dunlin: a model put once, got by all at the same time, put by all.
async fn moving_only(world: &World, case: &Case, size: usize) -> Duration {
    let bytes = Bytes::from(vec![7_u8; size]);
    let mut stores = Vec::new();
    for _ in 0..case.devices {
        stores.push(Blobs::new(world.client().await));
    }
    let mut times = Times::default();
    for number in 0..case.rounds {
        let began = Instant::now();
        let model = stores[0].put_named(format!("limit/{number}"), bytes.clone()).await.unwrap();
        let each = stores.iter().enumerate().map(|(device, store)| {
            let (bytes, model) = (bytes.clone(), model.clone());
            async move {
                store.get(&model).await.unwrap();
                let name = format!("limit/{number}/{device}");
                let update = store.put_named(name, bytes).await.unwrap();
                // The broker reads each update once.
                store.get(&update).await.unwrap();
            }
        });
        futures::future::join_all(each).await;
        times.push(began.elapsed());
    }
    times.median()
}
