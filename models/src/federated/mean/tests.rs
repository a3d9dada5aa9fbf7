//! Against a naive mean, and against Flower's figures.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn mean(vectors: &[(Vec<f32>, f64)], cut: usize) -> Vec<f32> {
    let length = vectors[0].0.len();
    let mut mean = WeightedMean::new(length);
    for (values, weight) in vectors {
        // Pieces from the end to the front: their order does not matter.
        for (index, piece) in values.chunks(cut).enumerate().collect::<Vec<_>>().into_iter().rev() {
            mean.add_piece(index * cut, piece, *weight);
        }
        mean.add_weight(*weight);
    }
    let pieces = (0..length).step_by(cut).flat_map(|at| mean.piece(at, cut).unwrap()).collect();
    assert_eq!(mean.piece(0, usize::MAX / 2).unwrap(), pieces);
    pieces
}

/// The definition, one value after the other.
fn naive(vectors: &[(Vec<f32>, f64)]) -> Vec<f64> {
    let total: f64 = vectors.iter().map(|(_, weight)| weight).sum();
    (0..vectors[0].0.len())
        .map(|at| vectors.iter().map(|(v, n)| f64::from(v[at]) * n).sum::<f64>() / total)
        .collect()
}

fn vectors() -> impl Strategy<Value = Vec<(Vec<f32>, f64)>> {
    (1..40_usize).prop_flat_map(|length| {
        let vector = prop::collection::vec(-1e3_f32..1e3, length);
        prop::collection::vec((vector, (1..10_000_u32).prop_map(f64::from)), 1..8)
    })
}

proptest! {
    #[test]
    fn is_the_definition(vectors in vectors(), cut in 1..10_usize) {
        for (value, expected) in mean(&vectors, cut).iter().zip(naive(&vectors)) {
            let tolerance = f64::from(f32::EPSILON) * expected.abs().max(1.0);
            prop_assert!((f64::from(*value) - expected).abs() <= tolerance);
        }
    }

    #[test]
    fn differences_and_parameters_have_one_mean(vectors in vectors(), cut in 1..10_usize) {
        let length = vectors[0].0.len();
        let base: Vec<f32> = (0_u8..40).take(length).map(|at| 500.0 - f32::from(at) / 3.0).collect();
        let (mut mean, mut differences) = (WeightedMean::new(length), 0.0);
        let mut whole = Vec::new();
        // Every other vector is taken for differences.
        for (index, (values, weight)) in vectors.iter().enumerate() {
            mean.add_piece(0, values, *weight);
            mean.add_weight(*weight);
            let mut values: Vec<f64> = values.iter().copied().map(f64::from).collect();
            if index % 2 == 0 {
                differences += weight;
                values.iter_mut().zip(&base).for_each(|(value, base)| *value += f64::from(*base));
            }
            whole.push((values, *weight));
        }
        let total: f64 = whole.iter().map(|(_, weight)| weight).sum();
        for (at, base) in base.chunks(cut).enumerate() {
            let found = mean.piece_from(at * cut, base, differences).unwrap();
            prop_assert_eq!(found.len(), base.len());
            for (index, found) in found.iter().enumerate() {
                let at = at * cut + index;
                let expected = whole.iter().map(|(v, n)| v[at] * n).sum::<f64>() / total;
                let tolerance = f64::from(f32::EPSILON) * expected.abs().max(1.0);
                prop_assert!((f64::from(*found) - expected).abs() <= tolerance);
            }
        }
    }

    #[test]
    fn has_the_same_bits_however_it_is_cut(vectors in vectors(), cut in 1..10_usize) {
        prop_assert_eq!(mean(&vectors, cut), mean(&vectors, 1000));
    }
}

#[test]
fn long_vectors_have_the_same_bits_on_threads() {
    let values = |seed: f32| {
        let value = |at: u32| (seed + f32::from(u16::try_from(at % 60_013).unwrap())).sin();
        (0..300_000).map(value).collect::<Vec<f32>>()
    };
    let vectors = [(values(0.1), 3.0), (values(0.2), 5.0), (values(0.3), 11.0)];
    let whole = mean(&vectors, 300_000);
    assert_eq!(whole.len(), 300_000);
    for cut in [1000, BLOCK, BLOCK + 1, 150_001] {
        assert_eq!(mean(&vectors, cut), whole, "cut {cut}");
    }
}

#[test]
fn nothing_has_no_mean() {
    assert!(WeightedMean::new(2).piece(0, 2).is_err());
    let mut weightless = WeightedMean::new(2);
    weightless.add_piece(0, &[1.0, 2.0], 0.0);
    weightless.add_weight(0.0);
    assert!(weightless.piece(0, 2).is_err());
}

/// Flower 1.41, `aggregate_test.py::test_aggregate` and the definition by hand.
#[test]
fn flower_unit_test() {
    let vector: Vec<f32> = (1..=10_u8).map(f32::from).collect();
    assert_eq!(mean(&[(vector.clone(), 1.0), (vector.clone(), 2.0)], 6), vector);
    assert_eq!(mean(&[(vec![2.0], 1.0), (vec![1.0], 2.0), (vec![2.0], 1.0)], 1), [1.5]);
}

#[derive(Deserialize)]
struct Strategies {
    cases: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Round {
    clients: Vec<Client>,
    output: serde_json::Value,
}

#[derive(Deserialize)]
struct Client {
    num_examples: u32,
    arrays: Vec<Array>,
}

#[derive(Deserialize)]
struct Array {
    data: Vec<f64>,
}

fn flat(arrays: Vec<Array>) -> Vec<f64> {
    arrays.into_iter().flat_map(|array| array.data).collect()
}

/// Flower 1.41's `FedAvg`, run on seeded inputs, where the figures are there.
#[test]
#[expect(clippy::print_stdout, reason = "says what is not tested")]
#[expect(clippy::cast_possible_truncation, reason = "updates are f32")]
fn flower_fed_avg() {
    let path = "/../../shared/vectors/flower_strategies.json";
    let Ok(bytes) = std::fs::read(format!("{}{path}", env!("CARGO_MANIFEST_DIR"))) else {
        println!("absent, not tested: {path}");
        return;
    };
    let strategies: Strategies = serde_json::from_slice(&bytes).unwrap();
    let mut rounds = 0;
    for case in strategies.cases.iter().filter(|case| case["strategy"] == "FedAvg") {
        for round in case["rounds"].as_array().unwrap() {
            let Round { clients, output } = serde_json::from_value(round.clone()).unwrap();
            let vectors: Vec<(Vec<f32>, f64)> = clients
                .into_iter()
                .map(|client| {
                    let values = flat(client.arrays).iter().map(|value| *value as f32).collect();
                    (values, f64::from(client.num_examples))
                })
                .collect();
            let output = output.get("arrays").cloned().unwrap_or(output);
            let expected = flat(serde_json::from_value(output).unwrap());
            let found = mean(&vectors, 4);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() <= 2e-7 * expected.abs().max(1.0));
            }
            rounds += 1;
        }
    }
    assert!(rounds > 0, "the file holds no FedAvg case");
}
