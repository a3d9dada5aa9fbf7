//! What a promise costs: digits learnt without privacy and with it, accuracy beside epsilon.

use std::time::{Duration, Instant};

use jobs::privacy::noise_multiplier;
use serde_json::{Value, json};
use tests::data::Digits;
use tests::process::Process;
use tests::world::{World, answer};

use crate::figures::heading;

const DEVICES: usize = 100;
const ROUNDS: u32 = 20;
const DELTA: f64 = 1e-5;
const FIXED: &str = "norm=1";
const ADAPTIVE: &str = "initial=0.1,rate=0.5";
/// What all rounds together may cost, mode, clipping, and whether updates are masked.
const PLANS: [(f64, &str, &str, bool); 7] = [
    (2.0, "central", FIXED, false),
    (8.0, "central", FIXED, false),
    (8.0, "central", ADAPTIVE, false),
    (8.0, "central", FIXED, true),
    (8.0, "central", ADAPTIVE, true),
    (8.0, "local", FIXED, false),
    (512.0, "local", FIXED, false),
];

pub(crate) async fn measure() {
    heading(&format!(
        "digits, {DEVICES} devices, iid, mlp of 4,810 parameters, {ROUNDS} rounds, delta {DELTA}; \
         bytes of all devices"
    ));
    println!(
        "  {:<41} {:>8} {:>7} {:>9} {:>8} {:>8} {:>6}",
        "privacy", "epsilon", "rounds", "accuracy", "down MB", "up MB", "s"
    );
    let world = World::start().await;
    let digits = Digits::write_as(world.folder(), DEVICES, "iid");
    let _agents = joined(&world, &digits).await;
    train(&world, &digits, "none", None, false).await;
    for (epsilon, mode, clip, masked) in PLANS {
        let noise = noise_multiplier(ROUNDS, 1.0, epsilon, DELTA).unwrap();
        // The budget has room for what is lost when it is written.
        let budget = 1.01 * epsilon;
        let privacy = format!(
            "{mode}:{clip},noise_multiplier={noise:.4},delta={DELTA},epsilon_budget={budget}"
        );
        let masks = if masked { " + SecAgg+" } else { "" };
        train(&world, &digits, &format!("{mode}:{clip}{masks}"), Some(&privacy), masked).await;
    }
}

async fn joined(world: &World, digits: &Digits) -> Vec<Process> {
    let url = world.nats_url();
    let names = (1..=DEVICES).map(|number| format!("device-{number}"));
    let start = |(number, name): (usize, String)| {
        let mut command = world.agent_command_via((&url, 2000), &name);
        command.arg("--data").arg(format!("digits={}", digits.share(number).display()));
        world.run_agent(&name, command)
    };
    let agents = (1..).zip(names.clone()).map(start).collect();
    for name in names {
        world.online(&name, true).await;
    }
    agents
}

/// Trains anew and prints a row.
async fn train(world: &World, digits: &Digits, name: &str, privacy: Option<&str>, masked: bool) {
    let privacy: Option<jobs::spec::Privacy> = privacy.map(|text| text.parse().unwrap());
    let secure = masked.then(jobs::spec::SecureAggregation::default);
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "digits", "rounds": ROUNDS, "evaluate": false,
        "local": {"epochs": 5, "batch_size": 4, "learning_rate": 0.05},
        "participation": {"devices": DEVICES, "quorum": DEVICES / 2},
        // A name that is registered would be gone on from.
        "register_as": "private", "privacy": privacy, "secure_aggregation": secure,
    }});
    let (before, began) = (moved(world).await, Instant::now());
    let id = world.submit(&job).await;
    let job = world.ended_within(&id, Duration::from_mins(10)).await;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(job["state"], "succeeded", "{:#}", job["failure"]);
    let after = moved(world).await;
    let (down, up) = ((after.0 - before.0) / 1e6, (after.1 - before.1) / 1e6);
    let rounds = job["rounds"].as_array().unwrap();
    let spent = rounds.last().unwrap()["privacy"]["epsilon"].as_f64();
    let spent = spent.map_or_else(|| "-".to_owned(), |spent| format!("{spent:.2}"));
    let accuracy = 100.0 * accuracy(world, digits, &job).await;
    let count = rounds.len();
    println!(
        "  {name:<41} {spent:>8} {count:>7} {accuracy:>7.1} % {down:>8.1} {up:>8.1} {seconds:>6.1}"
    );
}

/// Bytes of rounds to and from devices, until now.
async fn moved(world: &World) -> (f64, f64) {
    let text = world.request("GET", "/metrics").send().await.unwrap().text().await.unwrap();
    let total = |direction: &str| {
        let name = format!("dunlin_round_bytes_total{{direction=\"{direction}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0.0, |value| value.parse().unwrap())
    };
    (total("down"), total("up"))
}

/// The share of pictures that no device has which the job's model tells rightly.
pub(crate) async fn accuracy(world: &World, digits: &Digits, job: &Value) -> f64 {
    let model = &job["result"]["model"];
    let (name, version) = (model["name"].as_str().unwrap(), model["version"].as_str().unwrap());
    let path = format!("/v2/models/{name}/versions/{version}/infer");
    let (mut right, mut all) = (0.0, 0.0);
    for (picture, class) in digits.held_out() {
        let bytes = std::fs::read(picture).unwrap();
        let request = world.request("POST", &path).header("content-type", "image/png");
        let answer = answer(request.body(bytes)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let is_right = answer.body["classes"][0][0]["index"] == json!(class);
        right += f64::from(u8::from(is_right));
        all += 1.0;
    }
    right / all
}
