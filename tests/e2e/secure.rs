//! A secure aggregation of real agents of which some are killed at each stage: the new parameters
//! are those that the plain levels give, to the bit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use models::params::Parameters;
use models::train::{Sgd, Trainer};
use secagg::Quantisation;
use serde_json::{Value, json};
use tests::process::Process;

use crate::story::{Fleet, fleet, join, register};

const DEVICES: usize = 10;
const CLIP: f32 = 0.5;

/// Values of a model's parameters, in their order.
fn values(onnx: &[u8]) -> Vec<f32> {
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let parameters: Parameters = Trainer::new(onnx, sgd).unwrap().parameters();
    parameters.items().iter().flat_map(|item| item.values.clone()).collect()
}

/// What a device keeps of the round.
fn kept(fleet: &Fleet, device: &str, job: &str, kind: &str) -> PathBuf {
    fleet.world.folder().join(format!("state-{device}/masking/{job}.1.{kind}"))
}

/// Waits until a device was asked something of its session, and kills its agent at that moment.
fn kill_when_asked(fleet: &Fleet, job: &str, number: usize, question: &str) {
    let file = kept(fleet, &format!("device-{number}"), job, "session");
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        assert!(Instant::now() < until, "device-{number} is asked for {question}");
        let session = std::fs::read(&file).ok();
        let session = session.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        if session.is_some_and(|session| !session[question].is_null()) {
            let pid = i32::try_from(fleet.agents[number - 1].pid()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn names(round: &Value, member: &str) -> Vec<String> {
    let list = round[member].as_array().unwrap();
    list.iter().map(|entry| entry[0].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_mean_is_that_of_the_plain_levels_whoever_is_killed() {
    let mut fleet = fleet(DEVICES).await;
    register(&fleet.world, "start", "mlp").await;
    let id = fleet
        .world
        .submit(&json!({"kind": "train", "spec": {
            "model": "start", "dataset": "digits", "rounds": 1, "register_as": "trained",
            "local": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
            "participation": {"quorum": 5, "devices": DEVICES, "deadline_ms": 60_000},
            "secure_aggregation": {"clip": CLIP, "weight_max": 50, "stage_deadline_ms": 20_000},
        }}))
        .await;
    std::thread::scope(|scope| {
        for (number, question) in [(2, "roster"), (5, "inbox"), (8, "request")] {
            let (fleet, id) = (&fleet, &id);
            scope.spawn(move || kill_when_asked(fleet, id, number, question));
        }
    });
    // One of them comes back.
    let again: Process = join(&fleet.world, &fleet.digits, 5).await;
    fleet.agents[4] = again;
    let job = fleet.world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let round = &job["rounds"][0];
    let (counted, missing) = (names(round, "updates"), names(round, "missing"));
    // The second one never answers the stages after the one that it is killed at.
    assert!((7..=9).contains(&counted.len()), "{round:#}");
    assert_eq!(counted.len() + missing.len(), DEVICES, "{round:#}");
    for (_, failure) in round["missing"].as_array().unwrap().iter().map(|it| (&it[0], &it[1])) {
        let text = failure["message"].as_str().unwrap();
        assert!(text.contains("dropped out of the secure aggregation"), "{text}");
    }

    let mut sum: Vec<u64> = Vec::new();
    for device in &counted {
        let bytes = std::fs::read(kept(&fleet, device, &id, "levels")).unwrap();
        let levels = bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap()));
        let levels: Vec<u64> = levels.map(u64::from).collect();
        sum.resize(levels.len(), 0);
        sum.iter_mut().zip(levels).for_each(|(sum, level)| *sum += level);
    }
    let mut sum = sum.into_iter().map(|sum| u32::try_from(sum).expect("no sum is too large"));
    let onnx = models::zoo::build("mlp", [1, 8, 8], 10, 7).unwrap();
    let before = values(&onnx);
    let sums: Vec<u32> = sum.by_ref().take(before.len()).collect();
    let weight = sum.next().unwrap();
    let quantisation = Quantisation::new(CLIP, u32::try_from(DEVICES).unwrap(), 50).unwrap();
    let expected: Vec<u32> = before
        .iter()
        .zip(sums)
        .map(|(before, sum)| {
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let after = (f64::from(*before) + quantisation.mean(sum, weight)) as f32;
            after.to_bits()
        })
        .collect();

    let file = fleet.world.folder().join("trained.onnx");
    let pull = ["models", "pull", "trained", "--output", file.to_str().unwrap()];
    let output = fleet.world.dunlin(&pull);
    assert!(output.status.success(), "{output:?}");
    let found = values(&std::fs::read(&file).unwrap());
    let found: Vec<u32> = found.iter().map(|value| value.to_bits()).collect();
    assert_eq!(found, expected);
}
