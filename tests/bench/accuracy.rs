//! Federated against central training: CIFAR-10, ResNet-8, ten devices that each have a tenth
//! of the pictures, against one that has them all, for the same number of epochs.

use std::path::Path;

use serde_json::{Value, json};
use tests::data::shared;
use tests::process::Process;
use tests::world::World;

use crate::figures::{against_bar, heading};

const EPOCHS: u32 = 30;
const DEVICES: usize = 10;
const POINTS_BAR: f64 = 3.0;

pub(crate) async fn measure() {
    heading("CIFAR-10, ResNet-8, 10,000 pictures, 30 epochs: ten devices (iid) against one");
    let Some(source) = shared("data/cifar10") else { return };
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("cifar10");
    std::fs::create_dir(&from).unwrap();
    for file in ["train_jpeg_10000.bin.gz", "test_jpeg_2000.bin.gz", "batches.meta.txt"] {
        std::fs::copy(source.join(file), from.join(file)).unwrap();
    }
    let central = train(&from, 1, 32).await;
    let federated = train(&from, DEVICES, 16).await;
    println!("  {:<44} {:>10.1} %", "central, on 2,000 test pictures", central * 100.0);
    println!("  {:<44} {:>10.1} %", "federated, on the same", federated * 100.0);
    let points = (central - federated) * 100.0;
    let holds = points <= POINTS_BAR;
    against_bar("central ahead by", &format!("{points:.1} points"), "3 points", holds);
}

/// Trains on so many devices, an epoch each round; the accuracy at the end.
async fn train(from: &Path, devices: usize, batch_size: u32) -> f64 {
    let world = World::start().await;
    let out = world.folder().join("shares");
    let count = devices.to_string();
    let split = ["data", "split", "--from", from.to_str().unwrap(), "--partition", "iid"];
    let to = ["--held-out", "0", "--devices", &count, "--out", out.to_str().unwrap()];
    let output = world.dunlin(&[&split[..], &to].concat());
    assert!(output.status.success(), "{output:?}");
    let mut agents: Vec<Process> = Vec::new();
    for number in 1..=devices {
        let share = out.join(format!("device-{number}"));
        agents.push(world.join(&format!("device-{number}"), Some(("cifar10", &share))).await);
    }
    let job = json!({"kind": "train", "spec": {
        "model": "resnet8", "dataset": "cifar10", "rounds": EPOCHS,
        "local": {"epochs": 1, "batch_size": batch_size, "learning_rate": 0.05},
        "participation": {"devices": devices},
    }});
    let id = world.submit(&job).await;
    let mut shown = 0;
    loop {
        let job = world.job(&id).await;
        let rounds = job["rounds"].as_array().unwrap();
        for round in &rounds[shown..] {
            println!(
                "  {devices} devices, epoch {}: {:.1} %",
                round["round"],
                100.0 * judged(round)
            );
        }
        shown = rounds.len();
        if !job["ended_at"].is_null() {
            assert_eq!(job["state"], "succeeded", "{job:#}");
            return judged(rounds.last().unwrap());
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// The accuracy of a round on all test pictures.
pub(crate) fn judged(round: &Value) -> f64 {
    let (mut right, mut all) = (0.0, 0.0);
    for entry in round["evaluations"].as_array().unwrap() {
        let examples = entry[1]["examples"].as_f64().unwrap();
        right += examples * entry[1]["accuracy"].as_f64().unwrap();
        all += examples;
    }
    right / all
}
