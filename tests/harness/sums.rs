//! Devices that add a number of their own to all values: the parameters that a round begins with
//! tell whose updates were counted in the one before, and how often.

use std::path::Path;

use models::params::Parameters;
use models::train::{Sgd, Trainer};
use secagg::{Quantisation, Rounding};
use serde_json::Value;

use crate::simulated::added;

/// A device reports as many examples.
const EXAMPLES: u32 = 8;

/// How what devices send becomes a mean.
#[derive(Debug, Clone, Copy)]
pub enum Sums {
    /// By their examples.
    Plain,
    /// Of differences as levels, up to this one, with as much weight as a device has examples.
    Masked {
        /// The greatest magnitude of a difference.
        clip: f32,
    },
}

/// Holds what each round began with to what the one before says of itself, to the last bit.
pub fn assert_each_counts_once(rounds: &[Value], folder: &Path) {
    for pair in rounds.windows(2) {
        let (before, after) = (given(&pair[0], folder), given(&pair[1], folder));
        let expected = if pair[0]["failure"].is_null() {
            mean_of(&pair[0], &before, Sums::Plain)
        } else {
            before
        };
        assert_eq!(after.to_safetensors(), expected.to_safetensors(), "after {:#}", pair[0]);
    }
}

/// The same of a job's rounds that gave new parameters, and of the model that was registered.
pub fn assert_result(rounds: &[Value], folder: &Path, sums: Sums, onnx: &[u8]) {
    let made: Vec<&Value> = rounds.iter().filter(|round| round["failure"].is_null()).collect();
    for (at, round) in made.iter().enumerate() {
        let expected = mean_of(round, &given(round, folder), sums);
        match made.get(at + 1) {
            Some(next) => assert_same(&given(next, folder), &expected, round),
            None => assert_model(onnx, &expected, round),
        }
    }
}

/// Holds a model to what a round was to come to.
pub fn assert_model(onnx: &[u8], expected: &Parameters, round: &Value) {
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    assert_same(&Trainer::new(onnx, sgd).unwrap().parameters(), expected, round);
}

fn assert_same(found: &Parameters, expected: &Parameters, round: &Value) {
    let same = values_of(found) == values_of(expected);
    assert!(same, "the parameters after this round are others: {round:#}");
}

/// Values in their order, as bits.
fn values_of(parameters: &Parameters) -> Vec<u32> {
    let values = parameters.items().iter().flat_map(|item| &item.values);
    values.map(|value| value.to_bits()).collect()
}

/// The parameters that a round began with.
fn given(round: &Value, folder: &Path) -> Parameters {
    let file = folder.join(round["round"].to_string());
    let bytes = std::fs::read(&file);
    let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    Parameters::from_safetensors(&bytes).unwrap()
}

/// The mean of what the devices of a round made of these parameters, the slow way.
fn mean_of(round: &Value, before: &Parameters, sums: Sums) -> Parameters {
    let number = |update: &Value| update[0].as_str().unwrap()["device-".len()..].parse().unwrap();
    let updates: Vec<u32> = round["updates"].as_array().unwrap().iter().map(number).collect();
    match sums {
        Sums::Plain => plain_mean_of(&updates, before),
        Sums::Masked { clip } => {
            let missing = round["missing"].as_array().unwrap().iter();
            // Who was not there when the round began was not asked.
            let missing = missing.filter(|missing| missing[1]["code"] != "not_there").count();
            let asked = u32::try_from(updates.len() + missing).unwrap();
            let quantisation = Quantisation::new(clip, asked, EXAMPLES).unwrap();
            masked_mean_of(&updates, before, &quantisation)
        }
    }
}

fn plain_mean_of(numbers: &[u32], before: &Parameters) -> Parameters {
    let bytes = before.to_safetensors();
    let update = |number| Parameters::from_safetensors(&added(&bytes, number)).unwrap();
    mean(&numbers.iter().map(|number| update(*number)).collect::<Vec<_>>())
}

/// The mean of updates of as many examples each.
pub fn mean(updates: &[Parameters]) -> Parameters {
    let mut items = updates[0].items().to_vec();
    for (at, item) in items.iter_mut().enumerate() {
        for (index, value) in item.values.iter_mut().enumerate() {
            let (mut sum, mut weight) = (0.0, 0.0);
            for update in updates {
                sum += f64::from(update.items()[at].values[index]) * f64::from(EXAMPLES);
                weight += f64::from(EXAMPLES);
            }
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let mean = (sum / weight) as f32;
            *value = mean;
        }
    }
    Parameters::new(items).unwrap()
}

fn masked_mean_of(numbers: &[u32], before: &Parameters, quantisation: &Quantisation) -> Parameters {
    let mut levels = Vec::new();
    for number in numbers {
        let moved = [f32::from(u16::try_from(*number).unwrap())];
        quantisation.encode(0, &moved, EXAMPLES, &Rounding::Nearest, &mut levels).unwrap();
    }
    let weight = EXAMPLES * u32::try_from(numbers.len()).unwrap();
    let moved = quantisation.mean(levels.iter().sum(), weight);
    let mut items = before.items().to_vec();
    for value in items.iter_mut().flat_map(|item| &mut item.values) {
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        let after = (f64::from(*value) + moved) as f32;
        *value = after;
    }
    Parameters::new(items).unwrap()
}
