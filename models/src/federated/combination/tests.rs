//! Against a naive combination.

#![expect(clippy::cast_precision_loss, reason = "a number of devices")]

use proptest::prelude::*;

use super::*;
use crate::federated::tests::{combined, long, on_threads, slices, updates};

fn by_tiles(rows: &[Vec<f32>], coefficients: &[f64], tile: usize) -> Vec<f32> {
    let length = rows[0].len();
    let mut found = vec![0.0; length];
    for (index, part) in found.chunks_mut(tile).enumerate() {
        let columns = index * tile..index * tile + part.len();
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[columns.clone()]).collect();
        combine(Some(rows[0]), &rows[1..], coefficients, part).unwrap();
    }
    found
}

proptest! {
    #[test]
    fn is_the_definition(rows in updates(2..8), scale in -2.0..2.0_f64) {
        let coefficients: Vec<f64> = (1..=rows.len()).map(|at| scale / at as f64).collect();
        let found = combined(Some(&rows[0]), &rows, &coefficients);
        let plain = combined(None, &rows, &coefficients);
        for at in 0..found.len() {
            let value = |row: &Vec<f32>| f64::from(row[at]);
            let terms = rows.iter().zip(&coefficients);
            let moved: f64 = terms.clone().map(|(row, c)| c * (value(row) - value(&rows[0]))).sum();
            prop_assert!((f64::from(found[at]) - value(&rows[0]) - moved).abs() < 1e-4);
            let sum: f64 = terms.map(|(row, c)| c * value(row)).sum();
            prop_assert!((f64::from(plain[at]) - sum).abs() < 1e-4);
        }
    }
}

#[test]
fn has_the_same_bits_however_it_is_cut_and_on_threads() {
    let rows: Vec<Vec<f32>> = (0..4).map(|seed| long(seed, 30_000)).collect();
    let coefficients = [0.3, -0.7, 1.9];
    let whole = on_threads(1, || by_tiles(&rows, &coefficients, 30_000));
    for tile in [1000, 4096, 4097, 30_000] {
        assert_eq!(on_threads(3, || by_tiles(&rows, &coefficients, tile)), whole, "tile {tile}");
    }
}

#[test]
fn one_row_is_itself() {
    let row = vec![0.1, 1e-30, -3e30];
    assert_eq!(combined(None, &[vec![f32::NAN; 3], row.clone()], &[0.0, 1.0]), row);
}

#[test]
fn bad_tiles_are_refused() {
    let mut into = [0.0; 2];
    let two = vec![vec![1.0, 2.0], vec![3.0, f32::INFINITY]];
    let rows = slices(&two);
    let mut combine = |centre, rows: &[&[f32]], coefficients: &[f64]| {
        combine(centre, rows, coefficients, &mut into)
    };
    assert_eq!(combine(None, &[], &[]), Err(TileError::Rows { expected: 1, found: 0 }));
    assert_eq!(combine(None, &rows, &[1.0]), Err(TileError::Rows { expected: 1, found: 2 }));
    let spoiled = TileError::NotFinite { row: 1, column: 1, value: f32::INFINITY };
    assert_eq!(combine(None, &rows, &[0.5, 0.5]), Err(spoiled));
    let short = TileError::Length { row: 1, expected: 2, found: 1 };
    assert_eq!(combine(None, &[&[1.0, 2.0], &[1.0]], &[0.5, 0.5]), Err(short));
    assert_eq!(combine(Some(&[1.0]), &rows[..1], &[0.5]), Err(short));
    let spoiled = combine(Some(&[0.0, f32::NAN]), &rows[..1], &[0.5]);
    assert!(matches!(spoiled, Err(TileError::NotFinite { row: 1, column: 1, .. })));
    let coefficient = TileError::Coefficient { row: 0, value: f64::INFINITY };
    assert_eq!(combine(None, &rows[..1], &[f64::INFINITY]), Err(coefficient));
    assert_eq!(combine(None, &rows[..1], &[3e38]), Err(TileError::Overflow { column: 1 }));
}
