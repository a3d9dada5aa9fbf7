//! Against naive sums.

#![expect(clippy::cast_precision_loss, reason = "a number of devices")]

use proptest::prelude::*;

use super::*;
use crate::federated::tests::{combined, distances, long, on_threads, slices, updates};

fn naive(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-12 * expected
}

/// Norms of all but the first row, and distances of all, over tiles of these lengths in turn.
fn by_tiles(rows: &[Vec<f32>], tiles: &[usize]) -> (Vec<f64>, Distances) {
    let mut norms = UpdateNorms::new(rows.len() - 1);
    let mut distances = PairwiseDistances::new(rows.len());
    let (mut start, length) = (0, rows[0].len());
    for tile in tiles.iter().cycle() {
        let end = length.min(start + tile);
        let tile: Vec<&[f32]> = rows.iter().map(|row| &row[start..end]).collect();
        norms.add(start, Some(tile[0]), &tile[1..]).unwrap();
        distances.add(start, &tile).unwrap();
        start = end;
        if start == length {
            break;
        }
    }
    (norms.norms(), distances.distances())
}

proptest! {
    #[test]
    fn are_the_definition(rows in updates(2..7)) {
        let (norms, distances) = by_tiles(&rows, &[1000]);
        for i in 0..rows.len() {
            for j in 0..rows.len() {
                prop_assert!(near(distances.squared(i, j), naive(&rows[i], &rows[j])));
            }
        }
        for (row, norm) in rows[1..].iter().zip(norms) {
            prop_assert!(near(norm * norm, naive(row, &rows[0])));
        }
    }

    #[test]
    fn differences_have_norms_of_their_own(rows in updates(1..4)) {
        let mut norms = UpdateNorms::new(rows.len());
        norms.add(0, None, &slices(&rows)).unwrap();
        for (row, norm) in rows.iter().zip(norms.norms()) {
            prop_assert!(near(norm * norm, naive(row, &vec![0.0; row.len()])));
        }
    }

    #[test]
    fn have_the_same_bits_however_they_are_cut(
        tiles in prop::collection::vec(1..9000_usize, 1..6),
        length in 1..20_000_u32,
    ) {
        let rows: Vec<Vec<f32>> = (0..3).map(|seed| long(seed, length)).collect();
        prop_assert_eq!(by_tiles(&rows, &tiles), by_tiles(&rows, &[usize::MAX / 2]));
    }

    #[test]
    fn lead_to_combinations(rows in updates(1..7), seed in 0.1..2.0_f64) {
        let shares: Vec<f64> = (1..=rows.len()).map(|at| (seed * at as f64).sin() + 1.5).collect();
        let total: f64 = shares.iter().sum();
        let shares: Vec<f64> = shares.iter().map(|share| share / total).collect();
        let point = combined(None, &rows, &shares);
        for (row, found) in rows.iter().zip(distances(&rows).to_combination(&shares)) {
            prop_assert!((found - naive(row, &point).sqrt()).abs() < 1e-3);
        }
    }
}

#[test]
fn have_the_same_bits_on_threads() {
    let rows: Vec<Vec<f32>> = (0..5).map(|seed| long(seed, 400_000)).collect();
    let alone = on_threads(1, || by_tiles(&rows, &[400_000]));
    assert_eq!(on_threads(3, || by_tiles(&rows, &[400_000])), alone);
    assert_eq!(on_threads(2, || by_tiles(&rows, &[65_536])), alone);
    assert_eq!(on_threads(4, || by_tiles(&rows, &[1000, 70_001])), alone);
}

#[test]
fn bad_tiles_change_nothing() {
    let mut distances = PairwiseDistances::new(2);
    distances.add(0, &[&[1.0, 2.0], &[1.0, 5.0]]).unwrap();
    let order = TileError::Order { expected: 2, found: 0 };
    assert_eq!(distances.add(0, &[&[1.0], &[2.0]]), Err(order));
    assert_eq!(distances.add(2, &[&[1.0]]), Err(TileError::Rows { expected: 2, found: 1 }));
    let short = TileError::Length { row: 1, expected: 2, found: 1 };
    assert_eq!(distances.add(2, &[&[1.0, 2.0], &[1.0]]), Err(short));
    let spoiled = distances.add(2, &[&[1.0], &[f32::NAN]]);
    assert!(matches!(spoiled, Err(TileError::NotFinite { row: 1, column: 0, .. })));
    assert_eq!(distances.distances().squared, [0.0, 9.0, 9.0, 0.0]);

    let mut norms = UpdateNorms::new(1);
    assert_eq!(norms.add(1, None, &[&[1.0]]), Err(TileError::Order { expected: 0, found: 1 }));
    let spoiled = norms.add(0, Some(&[f32::INFINITY]), &[&[1.0]]);
    assert!(matches!(spoiled, Err(TileError::NotFinite { row: 1, column: 0, .. })));
    norms.add(0, None, &[&[3.0]]).unwrap();
    norms.add(1, None, &[&[-4.0]]).unwrap();
    assert_eq!(norms.norms(), [5.0]);
}

/// The squares of the largest values fit `f64`.
#[test]
fn large_values_have_distances() {
    let found = distances(&[vec![f32::MAX], vec![-f32::MAX]]).squared(0, 1);
    assert!(near(found.sqrt(), 2.0 * f64::from(f32::MAX)));
}
