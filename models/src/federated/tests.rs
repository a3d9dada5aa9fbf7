//! What the tests below share.

use std::ops::Range;

use proptest::prelude::*;

use super::combination::combine;
use super::distances::{Distances, PairwiseDistances};

/// The rows as a tile.
pub(super) fn slices(rows: &[Vec<f32>]) -> Vec<&[f32]> {
    rows.iter().map(Vec::as_slice).collect()
}

pub(super) fn distances(rows: &[Vec<f32>]) -> Distances {
    let mut distances = PairwiseDistances::new(rows.len());
    distances.add(0, &slices(rows)).unwrap();
    distances.distances()
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
