//! Trainings as an operator asks for them on the command line, in ways that no other test does.

use std::path::{Path, PathBuf};

use models::params::Parameters;
use serde_json::Value;
use tests::data::{Digits, write_blank};
use tests::process::Process;
use tests::proxy::Proxy;
use tests::world::World;

use crate::story::join;

/// Runs `dunlin train` with these options to its end; what it said, and the job.
pub(crate) async fn trained(world: &World, options: &str) -> (String, Value) {
    let words: Vec<&str> = ["train"].into_iter().chain(options.split_whitespace()).collect();
    let output = world.dunlin(&words);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':');
    (text.clone(), world.job(id).await)
}

pub(crate) fn rounds(job: &Value) -> &Vec<Value> {
    job["rounds"].as_array().unwrap()
}

/// Devices whose updates a round counted.
pub(crate) fn counted(round: &Value) -> Vec<&str> {
    let updates = round["updates"].as_array().unwrap();
    updates.iter().map(|update| update[0].as_str().unwrap()).collect()
}

/// Starts an agent with data, given as `NAME=FOLDER`, behind a proxy.
async fn join_via(
    world: &World,
    name: &str,
    data: &str,
    proxy: &Proxy,
    options: &[&str],
) -> Process {
    let mut command = world.agent_command_via((&proxy.url(), 300), name);
    command.args(["--data", data]).args(options);
    let agent = world.run_agent(name, command);
    world.online(name, true).await;
    agent
}

/// What a device says beside parameters and updates, at most.
const MESSAGES: u64 = 100_000;
/// Bytes a second of a device whose way is metered, and those that it may move before it waits.
const LIMIT: u64 = 500_000;

/// A device whose way costs money moves no parameters, and says why; with a limit it takes part,
/// and keeps to that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metered_device_trains_within_a_limit_or_not_at_all() {
    let world = World::start().await;
    let pictures = world.folder().join("blank");
    write_blank(&pictures, 60);
    let data = format!("blank={}", pictures.display());
    let (metered, free) = (Proxy::to(world.nats_port()), Proxy::to(world.nats_port()));
    let mut agent = join_via(&world, "device-1", &data, &metered, &["--metered"]).await;
    let _other = join_via(&world, "device-2", &data, &free, &[]).await;
    let train = "--dataset blank --model mlp --rounds 1 --no-evaluate";
    let (text, job) = trained(&world, train).await;
    let round = &rounds(&job)[0];
    let model = round["parameters"]["size"].as_u64().unwrap();
    assert!(model > 2 * MESSAGES, "{model} bytes tell nothing");
    assert_eq!(counted(round), ["device-2"]);
    let missing = &round["missing"][0];
    assert_eq!((&missing[0], &missing[1]["code"]), (&"device-1".into(), &"metered".into()));
    assert!(text.contains("device-1") && text.contains("--bytes-per-second"), "{text}");
    let (up, down) = metered.passed();
    assert!(up + down < MESSAGES, "{up} bytes went up and {down} came down");
    let (up, down) = free.passed();
    assert!(up > model && down > model, "{up} bytes went up and {down} came down");

    agent.kill();
    let limit = LIMIT.to_string();
    let limited = ["--metered", "--bytes-per-second", &limit];
    let _agent = join_via(&world, "device-1", &data, &metered, &limited).await;
    let (up_before, down_before) = metered.passed();
    let (_, job) = trained(&world, &format!("{train} --quorum 2")).await;
    let round = &rounds(&job)[0];
    assert_eq!(counted(round), ["device-1", "device-2"]);
    let (up, down) = metered.passed();
    assert!(up - up_before > model && down - down_before > model);
    let took = round["ended_at"].as_u64().unwrap() - round["started_at"].as_u64().unwrap();
    let least = 1000 * (2 * model - LIMIT) / LIMIT;
    assert!(took >= least, "{model} bytes down and up within {took} ms, not {least}");
}

const ADDING: &str = "--dataset blank --model mlp --no-evaluate";

/// Plays devices that add their numbers to all values; the first writes what it is given.
struct Adders {
    world: World,
    folder: PathBuf,
    _devices: Vec<Process>,
}

impl Adders {
    async fn start(numbers: &[u32]) -> Self {
        let world = World::start().await;
        let folder = world.folder().join("rounds");
        std::fs::create_dir(&folder).unwrap();
        let mut devices = Vec::new();
        for number in numbers {
            let (number, records) = (number.to_string(), number == &numbers[0]);
            let record = ["--record", folder.to_str().unwrap()];
            let options = ["--adds", "--first", &number];
            let options = [&options[..], if records { &record } else { &[] }].concat();
            devices.push(world.devices(&format!("device-{number}"), &options));
            world.online(&format!("device-{number:0>5}"), true).await;
        }
        Self { world, folder, _devices: devices }
    }
}

/// What was added to all values between two rounds that the first device took part in.
fn added(folder: &Path, before: u32, after: u32) -> f32 {
    let values = |round: u32| {
        let bytes = std::fs::read(folder.join(round.to_string())).unwrap();
        let parameters = Parameters::from_safetensors(&bytes).unwrap();
        parameters.items().iter().flat_map(|item| item.values.clone()).collect::<Vec<f32>>()
    };
    let (before, after) = (values(before), values(after));
    let differences = before.iter().zip(&after).map(|(before, after)| after - before);
    let differences: Vec<f32> = differences.collect();
    let first = differences[0];
    assert!(differences.iter().all(|it| (it - first).abs() < 1e-4), "{differences:?}");
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_device_goes_on_from_what_the_one_before_made() {
    let Adders { world, folder, _devices } = Adders::start(&[1, 2, 4]).await;
    let how = "--selection cyclic --devices 1 --rounds 7";
    let (_, job) = trained(&world, &format!("{ADDING} {how}")).await;
    let turns: Vec<Vec<&str>> = rounds(&job).iter().map(counted).collect();
    let [first, second, third] =
        ["device-00001", "device-00002", "device-00004"].map(|it| vec![it]);
    assert_eq!(turns[..3], [first.clone(), second.clone(), third.clone()]);
    assert_eq!(turns[3..], [first.clone(), second, third, first]);
    for (before, after) in [(1, 4), (4, 7)] {
        let sum = added(&folder, before, after);
        assert!((sum - 7.0).abs() < 1e-3, "{sum} was added in rounds {before} to {after}");
    }
}

/// The median bears a device that is far off, and momentum goes on in its direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_optimizer_steps_against_what_a_robust_rule_makes() {
    let Adders { world, folder, _devices } = Adders::start(&[1, 2, 50_000]).await;
    let how = "--strategy fedavgm:momentum=0.5 --rule fedmedian --quorum 3 --rounds 4";
    let (_, job) = trained(&world, &format!("{ADDING} {how}")).await;
    for round in rounds(&job) {
        assert_eq!(counted(round).len(), 3, "{round:#}");
        assert!(round["server_state"].is_object(), "momentum is kept: {round:#}");
    }
    for (round, expected) in [(1, 2.0), (2, 3.0), (3, 3.5)] {
        let step = added(&folder, round, round + 1);
        assert!((step - expected).abs() < 1e-3, "{step} was added in round {round}");
    }
}

/// Bytes a second of a device that is late.
const LATE: u32 = 800_000;

/// Rounds close without a device that is late, whose update counts when it comes; the broker, which
/// has digits of its own, says how good each version is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_judges_what_a_buffer_of_updates_makes() {
    let mut world = World::start().await;
    let digits = Digits::write_as(world.folder(), 4, "iid");
    world.broker.kill();
    let data = format!("digits={}", digits.share(4).display());
    world.restart_broker_with(&["--data", &data]).await;
    let way = Proxy::slow(world.nats_port(), LATE);
    let _quick = [join(&world, &digits, 1).await, join(&world, &digits, 2).await];
    let share = format!("digits={}", digits.share(3).display());
    let _late = join_via(&world, "device-3", &share, &way, &[]).await;
    let train = "--dataset digits --model lenet --momentum 0.9 --rounds 40";
    let buffer = "--strategy fedbuff:staleness_max=100 --devices 2 --over-selection 0.5";
    let (text, job) = trained(&world, &format!("{train} {buffer} --evaluate broker")).await;
    let rounds = rounds(&job);
    assert_eq!(rounds.len(), 40, "{job:#}");
    let mut judged = Vec::new();
    for round in rounds {
        assert_eq!(counted(round).len(), 2, "{round:#}");
        assert_eq!(round["evaluations"].as_array().unwrap().len(), 0, "{round:#}");
        judged.push(round["judgement"]["judged"]["accuracy"].as_f64().unwrap());
    }
    let waits = |round: &&Value| round["stragglers"].to_string().contains("device-3");
    assert!(rounds.iter().any(|round| waits(&round)), "{job:#}");
    let old = rounds.iter().flat_map(|round| round["influences"].as_array().into_iter().flatten());
    let mut old = old.filter(|it| it[0] == "device-3" && it[1]["verdict"] == "reduced");
    let old = old.next().unwrap_or_else(|| panic!("no late update counted: {job:#}"));
    assert!(old[1]["reason"].as_str().unwrap().contains("versions ago"), "{old:#}");
    assert!(judged[39] > 0.6 && judged[39] > judged[0], "{judged:?}");
    let examples = &rounds[39]["judgement"]["judged"]["examples"];
    assert!(text.contains(&format!("on {examples} test examples")), "{text}");
}
