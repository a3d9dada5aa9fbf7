//! Devices that add a number of their own to all values: the parameters that a round begins with
//! tell whose updates were counted in the one before, and how often.

use std::path::Path;

use models::params::Parameters;
use serde_json::Value;
use tests::simulated::added;

/// A device reports as many examples.
const EXAMPLES: f64 = 8.0;

/// Holds what each round began with to what the one before says of itself, to the last bit.
pub(crate) fn assert_each_counts_once(rounds: &[Value], folder: &Path) {
    let given = |round: &Value| {
        let bytes = std::fs::read(folder.join(round["round"].to_string())).unwrap();
        Parameters::from_safetensors(&bytes).unwrap()
    };
    for pair in rounds.windows(2) {
        let (before, after) = (given(&pair[0]), given(&pair[1]));
        let expected =
            if pair[0]["failure"].is_null() { mean_of(&pair[0], &before) } else { before };
        assert_eq!(after.to_safetensors(), expected.to_safetensors(), "after {:#}", pair[0]);
    }
}

/// The mean of what the devices of a round made of these parameters, the slow way.
fn mean_of(round: &Value, before: &Parameters) -> Parameters {
    let number = |update: &Value| update[0].as_str().unwrap()["device-".len()..].parse().unwrap();
    let bytes = before.to_safetensors();
    let updates = round["updates"].as_array().unwrap().iter().map(number);
    let updates: Vec<Parameters> = updates
        .map(|number| Parameters::from_safetensors(&added(&bytes, number)).unwrap())
        .collect();
    let mut items = before.items().to_vec();
    for (at, item) in items.iter_mut().enumerate() {
        for (index, value) in item.values.iter_mut().enumerate() {
            let (mut sum, mut weight) = (0.0, 0.0);
            for update in &updates {
                sum += f64::from(update.items()[at].values[index]) * EXAMPLES;
                weight += EXAMPLES;
            }
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let mean = (sum / weight) as f32;
            *value = mean;
        }
    }
    Parameters::new(items).unwrap()
}
