//! The reference task: ResNet-50 on CIFAR-10, trained by an agent and by PyTorch from random
//! weights with the same hyper-parameters, several seeds each.
//!
//! The network is torchvision's, whose first layers are those for ImageNet (7x7 with stride 2,
//! pooling); the built-in `resnet50` has a 3x3 first layer for pictures this small. So its graph
//! for larger pictures is registered with inputs of 3x32x32, which its other layers do not mind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use models::dataset::{self, Dataset, Examples, Limits, cifar};
use models::onnx::{self, ValueInfoProto};
use models::train::{Sgd, Trainer};
use models::zoo;
use serde_json::{Value, json};
use tests::data::shared;
use tests::process::{program, static_agent};
use tests::world::World;

use crate::accuracy::judged;
use crate::figures::{heading, verdict};
use crate::pytorch::PyTorch;

/// How much of the reference task is done.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// reference: training pictures, the first ones
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    examples: usize,
    /// reference: runs of each, with seeds from 1
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,
}

/// The accuracy is taken after so many epochs.
const EPOCHS: [u32; 2] = [1, 3];
const FILES: [&str; 3] = ["train_jpeg_10000.bin.gz", "test_jpeg_2000.bin.gz", "batches.meta.txt"];
const LIMIT: Duration = Duration::from_hours(12);

const JUDGED_AGAIN: u32 = 5;

/// Accuracies of the seeds, by [`EPOCHS`].
type Accuracies = [Vec<f64>; 2];

pub(crate) async fn measure(options: &Options) {
    heading(&format!(
        "CIFAR-10, ResNet-50 (7x7 stem) from random weights, {} pictures, SGD 0.001, momentum \
         0.9, batch 32",
        options.examples
    ));
    let Some(source) = shared("data/cifar10") else { return };
    let pytorch = PyTorch::find();
    let world = World::start().await;
    let folder = world.folder().join("cifar10");
    let dataset = write_data(&source, &folder, options.examples);
    println!(
        "  on {} test pictures; PyTorch {}",
        dataset.test.len(),
        match &pytorch {
            Some(pytorch) => &pytorch.version,
            None => "is absent",
        }
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new(static_agent().unwrap_or_else(|| program("dunlin-agent")));
    // With the usual time between heartbeats: a busy machine does not lose the device.
    command.args(["--nats", &world.nats_url(), "--name", "one"]);
    command.arg("--state-dir").arg(world.folder().join("state-one"));
    command.arg("--data").arg(format!("cifar10={}", folder.display()));
    command.args(["--threads", &threads.to_string()]);
    let _agent = world.run_agent("one", command);
    world.online("one", true).await;
    let (mut ours, mut theirs) = (Accuracies::default(), Accuracies::default());
    for seed in 1..=options.seeds {
        let model = format!("resnet50-{seed}");
        let (onnx, parameters) = with_large_stem(seed);
        let answer = world.register(&model, onnx).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        for (at, epochs) in EPOCHS.into_iter().enumerate() {
            let accuracy = train(&world, &model, epochs, seed).await;
            println!("  seed {seed}, epoch {epochs}: agent {:.2} %", 100.0 * accuracy);
            ours[at].push(accuracy);
        }
        let Some(pytorch) = &pytorch else { continue };
        let most = EPOCHS[1].to_string();
        let path = folder.to_str().unwrap();
        let seed_word = seed.to_string();
        let threads_word = threads.to_string();
        let arguments = ["resnet50_large_stem", path, &seed_word, &most, &threads_word];
        let lines = pytorch.run("pytorch_reference.py", &arguments, threads);
        for (at, epochs) in EPOCHS.into_iter().enumerate() {
            let line = lines.iter().find(|line| line["epoch"] == epochs).unwrap();
            assert_eq!(line["parameters"], parameters, "PyTorch's is another network");
            let accuracy = line["accuracy"].as_f64().unwrap();
            println!("  seed {seed}, epoch {epochs}: PyTorch {:.2} %", 100.0 * accuracy);
            theirs[at].push(accuracy);
        }
    }
    for (at, epochs) in EPOCHS.into_iter().enumerate() {
        show(epochs, &ours[at], &theirs[at]);
    }
}

/// Writes the pictures for both: `train.bin` and `test.bin`.
fn write_data(source: &Path, folder: &Path, examples: usize) -> Dataset {
    let read = |name: &str| (name.to_owned(), std::fs::read(source.join(name)).unwrap());
    let mut dataset = dataset::decode(&FILES.map(read).to_vec(), Limits::default()).unwrap();
    let first: Vec<usize> = (0..examples.min(dataset.train.len())).collect();
    dataset.train = dataset.train.select(&first);
    std::fs::create_dir(folder).unwrap();
    let write = |name: &str, examples: &Examples| {
        std::fs::write(folder.join(name), cifar::encode(examples, cifar::Cifar::Ten).unwrap())
            .unwrap();
    };
    write("train.bin", &dataset.train);
    write("test.bin", &dataset.test);
    dataset
}

/// ResNet-50 for ImageNet with inputs of 3x32x32, in the form that can be registered: that it
/// normalises by running statistics is for inference only. And its number of trained values.
fn with_large_stem(seed: u64) -> (Vec<u8>, usize) {
    let large = zoo::build("resnet50", [3, 224, 224], 10, seed).unwrap();
    let mut model = onnx::parse(&large).unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph.input = vec![ValueInfoProto::batched("input", "n", &[3, 32, 32])];
    let none = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let trainer = Trainer::new(&model.to_bytes(), none).unwrap();
    (trainer.to_inference_onnx(), trainer.trained_len())
}

/// One round of so many epochs, so that the momentum is kept from epoch to epoch; the accuracy
/// on all test pictures.
async fn train(world: &World, model: &str, epochs: u32, seed: u64) -> f64 {
    let after = format!("{model}-after-{epochs}");
    let mut round = run_round(world, model, &after, epochs, seed).await;
    // A device that is lost for a moment as its round ends does not judge: it is asked again.
    for _ in 0..JUDGED_AGAIN {
        if round["evaluations"].as_array().is_some_and(|judged| !judged.is_empty()) {
            return judged(&round);
        }
        round = run_round(world, &after, &after, 0, seed).await;
    }
    panic!("nobody judged {after}: {round:#}");
}

async fn run_round(world: &World, model: &str, after: &str, epochs: u32, seed: u64) -> Value {
    let id = world
        .submit(&json!({"kind": "train", "spec": {
            "model": model, "dataset": "cifar10", "rounds": 1, "seed": seed, "register_as": after,
            "local": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.001, "momentum": 0.9},
            "participation": {"devices": 1, "deadline_ms": LIMIT.as_millis()},
        }}))
        .await;
    let job = world.ended_within(&id, LIMIT).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    job["rounds"][0].clone()
}

/// Both spreads and means; whether our mean is within PyTorch's spread.
fn show(epochs: u32, ours: &[f64], theirs: &[f64]) {
    for (who, accuracies) in [("agent", ours), ("PyTorch", theirs)] {
        if !accuracies.is_empty() {
            let (least, most) = spread(accuracies);
            let what = format!("{who}, epoch {epochs}, {} seeds, mean", accuracies.len());
            let mean = mean(accuracies);
            println!("  {what:<44} {mean:>10.2} %   {least:.2} to {most:.2} %");
        }
    }
    if !theirs.is_empty() {
        let ((our_least, our_most), (least, most)) = (spread(ours), spread(theirs));
        let mean = mean(ours);
        let is_within = (least..=most).contains(&mean);
        let said = if is_within {
            "the agent's mean is within PyTorch's spread"
        } else if our_least <= most && least <= our_most {
            "the agent's mean is outside of PyTorch's spread, the spreads overlap"
        } else {
            "the spreads do not overlap"
        };
        let (what, bar) = (format!("epoch {epochs}"), format!("{least:.2} to {most:.2} %"));
        let verdict = verdict(&what, &format!("{mean:.2} %"), &bar, is_within);
        println!("  {:<44} {said}: {verdict}", "");
    }
}

/// Percent.
fn mean(accuracies: &[f64]) -> f64 {
    let sum: f64 = accuracies.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a few seeds")]
    let count = accuracies.len() as f64;
    100.0 * sum / count
}

/// The least and the most, in percent.
fn spread(accuracies: &[f64]) -> (f64, f64) {
    let least = accuracies.iter().copied().fold(f64::INFINITY, f64::min);
    let most = accuracies.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (100.0 * least, 100.0 * most)
}
