//! Ten steps beside PyTorch's, from recorded figures.
//!
//! Losses, first gradients and the evaluation agree, and so do the parameters' norms of mlp, lenet
//! and cnn. In ResNet-8 a rectifier near zero may open on one rounding and stay shut on another; the
//! smallest biases then end up to two per cent apart, in a few distinct ways: a change of the
//! initial weights in their last bit is enough. PyTorch's run is one of those ways, so the test
//! looks for last bits that lead to all of its figures.

use std::io::Read;
use std::path::PathBuf;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::params::Parameters;
use crate::train::{Sgd, Trainer};

fn shared(path: &str) -> Option<Vec<u8>> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    std::fs::read(root.join(path)).ok()
}

struct Recorded {
    onnx: Vec<u8>,
    figures: Value,
    examples: Vec<f32>,
    labels: Vec<u32>,
}

impl Recorded {
    fn read(name: &str) -> Option<Self> {
        let onnx = shared(&format!("vectors/pytorch_training/{name}.onnx"))?;
        let figures = shared(&format!("vectors/pytorch_training/{name}.json"))?;
        let packed = shared("data/cifar10/train_orig_2283.bin.gz")?;
        let mut records = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut records).unwrap();
        let records = || records.chunks_exact(3073).take(320);
        let labels = records().map(|record| u32::from(record[0])).collect();
        let normal = |pixel: &u8| (f32::from(*pixel) / 255.0 - 0.5) / 0.25;
        let examples = records().flat_map(|record| record[1..].iter().map(normal)).collect();
        let figures = serde_json::from_slice(&figures).unwrap();
        Some(Self { onnx, figures, examples, labels })
    }

    fn batch(&self, index: usize) -> (&[f32], &[u32]) {
        (&self.examples[index * 32 * 3072..][..32 * 3072], &self.labels[index * 32..][..32])
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// Relative difference from PyTorch's figures.
const BAR: f64 = 1e-3;

fn difference(found: f64, expected: f64, floor: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(floor)
}

/// The running statistics as the recorded runs began with them: the export's trace of the graph
/// has moved those in the file.
fn unmoved(parameters: &Parameters) -> Parameters {
    let mut items = parameters.items().to_vec();
    for item in &mut items {
        if item.name.ends_with("running_mean") {
            item.values.fill(0.0);
        } else if item.name.ends_with("running_var") {
            item.values.fill(1.0);
        }
    }
    Parameters::new(items).unwrap()
}

/// Moves each value by a step of its last bit up, down, or not at all; seed 0 moves none.
fn perturbed(parameters: &Parameters, seed: u64) -> Parameters {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut items = parameters.items().to_vec();
    if seed > 0 {
        for value in items.iter_mut().flat_map(|item| &mut item.values) {
            *value = match random.random_range(0..3) {
                0 => value.next_down(),
                1 => value.next_up(),
                _ => *value,
            };
        }
    }
    Parameters::new(items).unwrap()
}

/// A figure, and how far from PyTorch's it is.
type Difference = (f64, String);

/// Trains for ten steps: the worst of all figures before the parameters, and of all.
fn ten_steps(recorded: &Recorded, seed: u64) -> [Difference; 2] {
    let run = &recorded.figures["runs"]["sgd"];
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 };
    let mut trainer = Trainer::new(&recorded.onnx, sgd).unwrap();
    trainer.set_parameters(&perturbed(&unmoved(&trainer.parameters()), seed)).unwrap();
    let mut differences = Vec::new();
    let mut compare = |what: String, found: f64, expected: &Value, floor: f64| {
        differences.push((difference(found, expected.as_f64().unwrap(), floor), what));
    };
    for (step, expected) in run["losses"].as_array().unwrap().iter().enumerate() {
        let (examples, labels) = recorded.batch(step);
        let result = trainer.step(examples, labels).unwrap();
        compare(format!("loss {step}"), result.loss, expected, 1e-9);
        if step == 0 {
            for (weight, expected) in recorded.figures["first_gradient_l2"].as_object().unwrap() {
                let found = norm(trainer.gradient(weight).unwrap());
                compare(format!("gradient of {weight}"), found, expected, 1e-5);
            }
        }
    }
    let (examples, labels) = recorded.batch(0);
    let evaluated = trainer.evaluate(examples, labels).unwrap();
    compare("evaluation".to_owned(), evaluated.loss, &run["eval_loss_batch0"], 1e-9);
    let before = worst(&differences);
    differences.extend(parameter_differences(&trainer.parameters(), &run["params"]));
    let logits = trainer.logits(examples).unwrap();
    for (found, expected) in logits.iter().zip(run["eval_logits_first_image"].as_array().unwrap()) {
        let differs = difference(f64::from(*found), expected.as_f64().unwrap(), 1.0);
        differences.push((differs, "a logit".to_owned()));
    }
    [before, worst(&differences)]
}

fn worst(differences: &[Difference]) -> Difference {
    differences.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap().clone()
}

fn parameter_differences(parameters: &Parameters, expected: &Value) -> Vec<Difference> {
    let expected = expected.as_object().unwrap();
    assert_eq!(parameters.items().len(), expected.len());
    let mut differences = Vec::new();
    for (weight, expected) in expected {
        let found = &parameters.find(weight).unwrap().values;
        let l2 = expected["l2"].as_f64().unwrap();
        differences.push((difference(norm(found), l2, 1e-3), weight.clone()));
        for (found, expected) in found.iter().zip(expected["first"].as_array().unwrap()) {
            let expected = expected.as_f64().unwrap();
            let differs = difference(f64::from(*found), expected, l2.max(0.01));
            differences.push((differs, format!("a value of {weight}")));
        }
    }
    differences
}

/// Tries so many sets of last bits, the initial weights as they are first.
fn compare(name: &str, tries: u64) {
    let Some(recorded) = Recorded::read(name) else {
        #[expect(clippy::print_stderr, reason = "a test that compares nothing must say so")]
        {
            eprintln!("{name}: no ../shared, not compared with PyTorch");
        }
        return;
    };
    let mut found = Vec::new();
    for seed in 0..tries {
        let [before, all] = ten_steps(&recorded, seed);
        assert!(seed > 0 || before.0 < BAR, "{name}: {before:?}");
        assert!(all.0 < 0.05, "{name} from last bits {seed}: {all:?}");
        if all.0 < BAR {
            return;
        }
        found.push(all);
    }
    panic!("{name}: no last bits of {tries} lead to PyTorch's parameters: {found:?}");
}

#[test]
fn mlp() {
    compare("mlp", 1);
}

#[test]
fn lenet() {
    compare("lenet", 1);
}

#[test]
fn cnn() {
    compare("cnn", 1);
}

#[test]
fn resnet8() {
    compare("resnet8", 60);
}

#[test]
fn efficientnet_tiny() {
    compare("efficientnet_tiny", 1);
}
