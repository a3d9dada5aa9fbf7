//! Beside Flower's figures: its strategies run on seeded inputs, and those of its unit tests.
//!
//! Every strategy and function in `tests/flower.json`, and every unit test of what is done here, is
//! held to its figures within a few roundings of `f32`. Where Flower and the paper differ,
//! [`differences`] has the paper's value.

#![expect(clippy::cast_possible_truncation, reason = "updates are f32")]

mod differences;
mod functions;
mod strategies;
mod unit_tests;

use std::ops::Range;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::combination::combine;
use super::distances::{Distances, PairwiseDistances, UpdateNorms};
use super::mean::WeightedMean;

#[derive(Deserialize)]
struct Flower {
    strategies: Vec<Case>,
    functions: Vec<Value>,
}

/// Some rounds of a strategy from initial parameters on.
#[derive(Deserialize)]
struct Case {
    strategy: String,
    params: Value,
    initial: Vec<f64>,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    clients: Vec<Client>,
    /// Absent where the round is refused.
    output: Option<Vec<f64>>,
    bound_after: Option<f64>,
}

#[derive(Deserialize)]
struct Client {
    examples: u32,
    values: Vec<f64>,
    loss: Option<f64>,
}

fn flower() -> Flower {
    serde_json::from_str(include_str!("tests/flower.json")).unwrap()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn rows(clients: &[Client]) -> Vec<Vec<f32>> {
    clients.iter().map(|client| narrow(&client.values)).collect()
}

/// The rows as a tile.
pub(super) fn slices(rows: &[Vec<f32>]) -> Vec<&[f32]> {
    rows.iter().map(Vec::as_slice).collect()
}

fn examples(clients: &[Client]) -> Vec<f64> {
    clients.iter().map(|client| f64::from(client.examples)).collect()
}

fn mean(clients: &[Client]) -> Vec<f32> {
    let length = clients[0].values.len();
    let mut mean = WeightedMean::new(length);
    for (row, weight) in rows(clients).iter().zip(examples(clients)) {
        mean.add_piece(0, row, weight);
        mean.add_weight(weight);
    }
    mean.piece(0, length).unwrap()
}

pub(super) fn distances(rows: &[Vec<f32>]) -> Distances {
    let mut distances = PairwiseDistances::new(rows.len());
    distances.add(0, &slices(rows)).unwrap();
    distances.distances()
}

fn norms(centre: &[f32], rows: &[Vec<f32>]) -> Vec<f64> {
    let mut norms = UpdateNorms::new(rows.len());
    norms.add(0, Some(centre), &slices(rows)).unwrap();
    norms.norms()
}

pub(super) fn combined(
    centre: Option<&[f32]>,
    rows: &[Vec<f32>],
    coefficients: &[f64],
) -> Vec<f32> {
    let mut combined = vec![0.0; rows[0].len()];
    combine(centre, &slices(rows), coefficients, &mut combined).unwrap();
    combined
}

/// Updates of so many devices, of up to 200 values each.
pub(super) fn updates(devices: Range<usize>) -> impl Strategy<Value = Vec<Vec<f32>>> {
    (devices, 1..200_usize).prop_flat_map(|(devices, length)| {
        prop::collection::vec(prop::collection::vec(-1e2_f32..1e2, length), devices)
    })
}

/// Does the work on so many threads.
pub(super) fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Long vectors that differ by seed.
pub(super) fn long(seed: u16, length: u32) -> Vec<f32> {
    let value = |at: u32| (f32::from(seed) + f32::from(u16::try_from(at % 60_013).unwrap())).sin();
    (0..length).map(value).collect()
}

/// Within Flower's tolerance for `f32`: a part of 1e-5, or of the size that values have here.
fn assert_close(found: &[f32], expected: &[f64], case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 1e-5 * expected.abs().max(0.1), "{case}, {index}: {found}, {expected}");
    }
}
