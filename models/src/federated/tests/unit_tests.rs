//! The figures of Flower's own unit tests, of those that are about what is done here; where the
//! others are met says `tests/flower/main.rs`.

use super::functions::nearest_mean;
use super::strategies::{by_examples, step};
use super::*;
use crate::federated::privacy::{PrivateMean, Protection, protect};
use crate::federated::robust::bulyan::Bulyan;
use crate::federated::robust::krum::{KrumError, MultiKrum};
use crate::federated::robust::norm_bound::NormBound;
use crate::federated::robust::trimmed_mean::TrimmedMean;
use crate::federated::server::{Adaptive, Aggregate, ServerError, ServerOptimizer};
use crate::federated::tile::TileError;
use crate::params::{Layout, Parameter, Parameters};

#[derive(Deserialize)]
struct Facts {
    tests: Vec<Value>,
}

/// Numbers of arrays of any shape, one after the other.
fn flat(arrays: &Value) -> Vec<f64> {
    match arrays.as_array() {
        Some(inner) => inner.iter().flat_map(flat).collect(),
        None => vec![arrays.as_f64().unwrap_or_else(|| panic!("{arrays} is no number"))],
    }
}

/// Vectors, each of arrays.
fn vectors(value: &Value) -> Vec<Vec<f32>> {
    value.as_array().unwrap().iter().map(|arrays| narrow(&flat(arrays))).collect()
}

fn clients(fact: &Value) -> Vec<Client> {
    let client = |client: &Value| Client {
        examples: u32::try_from(client["num_examples"].as_u64().unwrap()).unwrap(),
        values: flat(&client["arrays"]),
        loss: None,
    };
    fact["clients"].as_array().unwrap().iter().map(client).collect()
}

/// 0 where it is not given.
fn number(fact: &Value, name: &str) -> f64 {
    let of = |value: &Value| value.get(name).and_then(Value::as_f64);
    of(fact).or_else(|| of(&fact["params"])).unwrap_or_default()
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// Values that arrays of these shapes have together.
fn length(shapes: &Value) -> usize {
    let extents = |shape: &Value| shape.as_array().unwrap().iter().map(count).product::<usize>();
    shapes.as_array().unwrap().iter().map(extents).sum()
}

fn run_optimizer(fact: &Value, optimizer: ServerOptimizer) -> Vec<f32> {
    let mut parameters = narrow(&flat(&fact["initial"]));
    let mut state = optimizer.state(parameters.len());
    for _ in 0..fact["rounds"].as_u64().unwrap_or(1) {
        step(optimizer, &mut state, &mut parameters, &mean(&clients(fact)));
    }
    parameters
}

/// Flower scores `f = 1` of 3 devices by the nearest neighbour. Here this is refused; without a
/// byzantine device 3 have the same scores.
fn run_krum(fact: &Value) -> Vec<f32> {
    let clients = clients(fact);
    let rows = rows(&clients);
    let distances = distances(&rows);
    let selected = fact["params"].get("keep").map_or(1, count);
    let refused = MultiKrum { byzantine: 1, selected }.select(&distances).unwrap_err();
    assert!(matches!(refused, KrumError::Devices(few) if few.needed == 5), "{refused}");
    let selection = MultiKrum { byzantine: 0, selected }.select(&distances).unwrap();
    combined(None, &rows, &by_examples(&selection, &clients))
}

fn run_columns(fact: &Value, rule: &str) -> Vec<f32> {
    let rows = rows(&clients(fact));
    let (devices, slices) = (rows.len(), slices(&rows));
    let mut combined = vec![0.0; rows[0].len()];
    match rule {
        "bulyan" => Bulyan::new(&distances(&rows), 0).unwrap().tile(&slices, &mut combined),
        "median" => TrimmedMean::median(devices).unwrap().tile(&slices, &mut combined),
        _ => {
            let mut mean = TrimmedMean::new(devices, number(fact, "beta")).unwrap();
            mean.tile(&slices, &mut combined)
        }
    }
    .unwrap();
    combined
}

fn run(fact: &Value) -> Vec<f32> {
    match fact["algo"].as_str().unwrap() {
        "fedavg" => mean(&clients(fact)),
        "fedavgm" => {
            let (learning_rate, momentum) = (number(fact, "server_lr"), number(fact, "momentum"));
            run_optimizer(fact, ServerOptimizer::FedAvgM { learning_rate, momentum })
        }
        "fedadagrad" => {
            let (learning_rate, tau) = (number(fact, "eta"), number(fact, "tau"));
            let adaptive = Adaptive { learning_rate, beta1: 0.0, beta2: 0.0, tau, initial: 0.0 };
            run_optimizer(fact, ServerOptimizer::FedAdagrad(adaptive))
        }
        rule @ ("bulyan" | "median" | "trimmed_mean") => run_columns(fact, rule),
        "krum" | "multikrum" => run_krum(fact),
        "bulyan_n_closest" => {
            let rows = vectors(&fact["candidates"]);
            nearest_mean(&rows, &flat(&fact["reference"]), count(&fact["beta"]))
        }
        other => panic!("no test of {other}"),
    }
}

/// As many values as there are updates at most are nearest to their median: no rule is made that
/// would take more.
fn nearest_of_too_few(fact: &Value) {
    let rows = vectors(&fact["candidates"]);
    assert!(rows.len() < count(&fact["beta"]) && fact["expected"] == "error");
    assert!((0..3).all(|byzantine| Bulyan::new(&distances(&rows), byzantine).is_err()));
}

/// Updates that are added piece by piece have the mean that the whole ones have, within Flower's
/// part of 1e-7; weights need not be whole numbers.
fn streamed(fact: &Value) {
    let length = u32::try_from(length(&fact["shapes"])).unwrap();
    let weights = flat(fact.get("num_examples").or(fact.get("weights")).unwrap());
    let rows: Vec<Vec<f32>> = (0..).zip(&weights).map(|(seed, _)| long(seed, length)).collect();
    let mut mean = WeightedMean::new(rows[0].len());
    for (row, weight) in rows.iter().zip(&weights) {
        for (index, piece) in row.chunks(1000).enumerate() {
            mean.add_piece(1000 * index, piece, *weight);
        }
        mean.add_weight(*weight);
    }
    let total: f64 = weights.iter().sum();
    for (at, found) in mean.piece(0, rows[0].len()).unwrap().iter().enumerate() {
        let weighed = rows.iter().zip(&weights).map(|(row, weight)| weight * f64::from(row[at]));
        let expected = weighed.sum::<f64>() / total;
        assert!((f64::from(*found) - expected).abs() <= 1e-7 * expected.abs(), "{at}: {found}");
    }
}

/// What rules know updates by: equal ones lie at no distance, and others do; those of another
/// length have none.
fn equal(fact: &Value) {
    let rows = [narrow(&flat(&fact["a"])), narrow(&flat(&fact["b"]))];
    let mut distances = PairwiseDistances::new(2);
    let added = distances.add(0, &slices(&rows));
    if rows[0].len() == rows[1].len() {
        added.unwrap();
        let at_once = distances.distances().squared(0, 1) <= 0.0;
        assert_eq!(Some(at_once), fact["expected"].as_bool(), "{fact}");
    } else {
        assert!(matches!(added, Err(TileError::Length { row: 1, .. })), "{added:?}");
    }
}

fn found_among(fact: &Value) {
    let mut rows = vectors(&fact["candidates"]);
    rows.push(narrow(&flat(&fact["reference"])));
    let distances = distances(&rows);
    let reference = rows.len() - 1;
    let same: Vec<usize> =
        (0..reference).filter(|at| distances.squared(*at, reference) <= 0.0).collect();
    assert_eq!(same, [count(&fact["expected"])]);
}

fn optimizers_check_lengths(fact: &Value) {
    for case in fact["cases"].as_array().unwrap() {
        let (expected, found) = (length(&case["global_shapes"]), length(&case["agg_shapes"]));
        for optimizer in
            [ServerOptimizer::FED_ADAGRAD, ServerOptimizer::FED_ADAM, ServerOptimizer::FED_YOGI]
        {
            let (mut parameters, other) = (vec![0.0; expected], vec![1.0; found]);
            let mut state = optimizer.state(expected);
            let moments = state.piece(0, expected);
            let step = optimizer.step(moments, &mut parameters, Aggregate::Parameters(&other));
            let refused = Err(ServerError::Length { what: "aggregate", expected, found });
            assert_eq!(step, if case["ok"] == true { Ok(()) } else { refused });
        }
    }
}

fn optimizers_take_single_numbers(fact: &Value) {
    for optimizer in
        [ServerOptimizer::FED_ADAGRAD, ServerOptimizer::FED_ADAM, ServerOptimizer::FED_YOGI]
    {
        let single = run_optimizer(fact, optimizer);
        assert!(single.len() == 1 && single[0].is_finite() && single[0] > 0.0, "{single:?}");
    }
}

/// The norm before, the update after.
fn clipped(server: &[f32], client: Vec<f32>, norm: f64) -> (f64, Vec<f32>) {
    let rows = [client];
    let clipped = NormBound::new(norm).unwrap().clip(&norms(server, &rows), &[1.0]).unwrap();
    (clipped.norms[0], combined(Some(server), &rows, &clipped.coefficients))
}

fn clip(fact: &Value) {
    let input = flat(&fact["input"]);
    let bound = number(fact, "clipping_norm");
    let (norm, found) = clipped(&vec![0.0; input.len()], narrow(&input), bound);
    assert_close(&narrow(&[norm]), &[number(fact, "derived_norm")], "norm");
    let expected: Vec<f64> = input.iter().map(|value| value * bound / norm).collect();
    assert_close(&found, &expected, "clipped");
}

fn clip_update(fact: &Value) {
    let (server, client) = (narrow(&flat(&fact["server"])), narrow(&flat(&fact["client"])));
    let (norm, found) = clipped(&server, client, number(fact, "clipping_norm"));
    assert_close(&narrow(&[norm]), &[number(fact, "derived_update_norm")], "norm");
    assert_close(&found, &flat(&fact["expected"]), "clipped");
}

/// The noise of a mean without updates.
#[expect(clippy::cast_precision_loss, reason = "a number of values")]
fn deviation(fact: &Value) {
    let protection = Protection {
        bound: NormBound::new(number(fact, "clipping_norm")).unwrap(),
        planned: u32::try_from(count(&fact["num_sampled_clients"])).unwrap(),
        noise_multiplier: number(fact, "noise_multiplier"),
    };
    let mean = PrivateMean::new(protection, &[], [3; 32]).unwrap();
    let mut noise = vec![0.0; 100_000];
    mean.tile(0, &vec![0.0; noise.len()], &[], &mut noise).unwrap();
    let squares: f64 = noise.iter().map(|value| f64::from(*value).powi(2)).sum();
    let (found, expected) = ((squares / noise.len() as f64).sqrt(), number(fact, "expected"));
    assert!((found / expected - 1.0).abs() < 0.01, "{found}");
}

/// `McMahan` et al. 2018, and for the count Andrew et al. 2021: a single number is shortened as any
/// other, and does not count as one within the norm. Flower 1.41 leaves it as it is.
fn single_number(fact: &Value) {
    let (server, client) = (narrow(&flat(&fact["server"])), narrow(&flat(&fact["client"])));
    let norm = number(fact, "clipping_norm");
    let kept = flat(&fact["expected_in_flower"])[0];
    let (before, after) = clipped(&server, client.clone(), norm);
    assert!(before > norm && (kept - before).abs() < 1e-9, "{fact}");
    assert_close(&after, &[norm], "clipped");
    let bound = NormBound::new(norm).unwrap();
    let protection = Protection { bound, planned: 1, noise_multiplier: 1.0 };
    let within = PrivateMean::new(protection, &[before], [0; 32]).unwrap().within();
    assert_eq!((within.within, within.devices), (0, 1));
    // On the device, with next to no noise.
    let scalar = |values: Vec<f32>| {
        let item = Parameter { name: "scale".to_owned(), shape: Vec::new(), values };
        Parameters::new(vec![item]).unwrap()
    };
    let (server, client) = (scalar(server), scalar(client));
    let found = protect(&server, &client, &[], (norm, 1e-12), [0; 32]).unwrap();
    assert_close(&found.items()[0].values, &[norm], "protected");
}

/// Updates have the names of the model; what else a report needs, `jobs` says.
fn other_names(fact: &Value) {
    assert!(fact["reject"].as_array().unwrap().contains(&"different array names".into()));
    let named = |name: &str| {
        let item = Parameter { name: name.to_owned(), shape: vec![1], values: vec![0.0] };
        Parameters::new(vec![item]).unwrap()
    };
    let model = Layout::of(&named("a"));
    assert!(named("a").check_like(&model).is_ok() && named("b").check_like(&model).is_err());
}

#[test]
fn flower_unit_tests() {
    let facts = include_str!("../../../../tests/flower/unit_tests.json");
    let facts: Facts = serde_json::from_str(facts).unwrap();
    for fact in &facts.tests {
        match fact["algo"].as_str().unwrap() {
            "fedavg" if fact.get("property").is_some() => streamed(fact),
            "bulyan_n_closest" if fact["expected"] == "error" => nearest_of_too_few(fact),
            "weights_equal" => equal(fact),
            "find_index" => found_among(fact),
            "fedopt_shape_check" => optimizers_check_lengths(fact),
            "fedadagrad|fedadam|fedyogi" => optimizers_take_single_numbers(fact),
            "l2_norm" => {
                let rows = [narrow(&flat(&fact["input"]))];
                let norms = norms(&vec![0.0; rows[0].len()], &rows);
                assert_close(&narrow(&norms), &flat(&fact["expected"]), "norm");
            }
            "clip" => clip(fact),
            "clip_model_update" => clip_update(fact),
            "dp_stddev" => deviation(fact),
            "client_fixed_clip" | "client_adaptive_clip" | "local_dp" => single_number(fact),
            "reply_validation" => other_names(fact),
            // What `jobs` and `secagg` do.
            "weighted_loss_avg"
            | "metric average"
            | "client_selection_count"
            | "quorum"
            | "quorum_evaluate"
            | "adaptive_noise"
            | "shamir"
            | "secagg_state_machine" => {}
            _ => assert_close(&run(fact), &flat(&fact["expected"]), &fact["test"].to_string()),
        }
    }
}
