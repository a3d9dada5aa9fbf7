//! Against the paper's algorithm, on vectors and over all subsets.

#![expect(clippy::cast_precision_loss, reason = "a number of devices")]

use proptest::prelude::*;

use super::super::Verdict;
use super::*;
use crate::federated::tests::{distances, long, on_threads, slices, updates};

/// Repeats Krum on what is left.
fn naive_selection(rows: &[Vec<f32>], byzantine: usize) -> Vec<usize> {
    let mut rest: Vec<usize> = (0..rows.len()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < rows.len() - 2 * byzantine {
        let score = |device: usize| {
            let squared = |other: &usize| {
                let pairs = rows[*other].iter().zip(&rows[device]);
                pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>()
            };
            let others = rest.iter().filter(|other| **other != device);
            let mut near: Vec<f64> = others.map(squared).collect();
            near.sort_by(f64::total_cmp);
            let nearest = (rest.len().saturating_sub(byzantine + 2)).max(1);
            near.iter().take(nearest).sum::<f64>()
        };
        let best = rest.iter().copied().min_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap();
        rest.retain(|device| *device != best);
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}

/// The mean of the values that lie nearest to the median, found by their distances from it.
fn naive_mean(column: &[f32], count: usize) -> f64 {
    let mut column: Vec<f64> = column.iter().copied().map(f64::from).collect();
    column.sort_by(f64::total_cmp);
    let median = f64::midpoint(column[(column.len() - 1) / 2], column[column.len() / 2]);
    column.sort_by(|a, b| (a - median).abs().total_cmp(&(b - median).abs()));
    column[..count].iter().sum::<f64>() / count as f64
}

fn by_tiles(bulyan: &mut Bulyan, rows: &[Vec<f32>], tile: usize) -> Vec<f32> {
    let mut found = vec![0.0; rows[0].len()];
    for (index, part) in found.chunks_mut(tile).enumerate() {
        let columns = index * tile..index * tile + part.len();
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[columns.clone()]).collect();
        bulyan.tile(&rows, part).unwrap();
    }
    found
}

fn chosen(bulyan: &Bulyan) -> Vec<usize> {
    bulyan.coordinates().iter().map(|(device, _)| *device).collect()
}

proptest! {
    #[test]
    fn is_the_definition(rows in updates(11..16), f in 0..3_usize, tile in 1..100_usize) {
        let mut bulyan = Bulyan::new(&distances(&rows), f).unwrap();
        let selected = chosen(&bulyan);
        for influence in bulyan.influences() {
            let Measure::Score { score, limit } = influence.measure else { unreachable!() };
            prop_assert!(influence.verdict == Verdict::Kept || score >= limit, "{score} {limit}");
        }
        prop_assert_eq!(&selected, &naive_selection(&rows, f));
        let found = by_tiles(&mut bulyan, &rows, tile);
        for (at, found) in found.iter().enumerate() {
            let column: Vec<f32> = selected.iter().map(|device| rows[*device][at]).collect();
            let expected = naive_mean(&column, rows.len() - 4 * f);
            prop_assert!((f64::from(*found) - expected).abs() < 1e-4);
        }
    }

    /// No other values of that number have a smaller sum of distances.
    #[test]
    fn the_nearest_are_the_nearest(
        mut values in prop::collection::vec(-9.0_f32..9.0, 1..9),
        reference in -9.0..9.0_f64,
        count in 1..9_usize,
    ) {
        values.sort_by(f32::total_cmp);
        let count = count.min(values.len());
        let sum = |values: &[f32]| {
            values.iter().map(|value| (f64::from(*value) - reference).abs()).sum::<f64>()
        };
        let found = sum(nearest_to(&values, reference, count));
        for bits in (0..1_u32 << values.len()).filter(|bits| bits.count_ones() as usize == count) {
            let subset = values.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
            let subset: Vec<f32> = subset.map(|(_, value)| *value).collect();
            prop_assert!(found <= sum(&subset) + 1e-9);
        }
    }
}

#[test]
fn has_the_same_bits_however_it_is_cut_and_on_threads() {
    let rows: Vec<Vec<f32>> = (0..11).map(|seed| long(seed, 20_000)).collect();
    let bulyan = Bulyan::new(&distances(&rows), 2).unwrap();
    let run = |tile| {
        let mut bulyan = bulyan.clone();
        (by_tiles(&mut bulyan, &rows, tile), bulyan.coordinates())
    };
    let whole = on_threads(1, || run(20_000));
    for tile in [777, 4097, 20_000] {
        assert_eq!(on_threads(3, || run(tile)), whole, "tile {tile}");
    }
}

/// Six honest devices and one that is like them but for a single coordinate.
#[test]
fn a_hidden_coordinate_does_not_count() {
    let mut rows: Vec<Vec<f32>> = (0..7_u8).map(|at| vec![f32::from(at) / 100.0; 3]).collect();
    rows[3][1] = 0.9;
    let mut bulyan = Bulyan::new(&distances(&rows), 1).unwrap();
    let found = by_tiles(&mut bulyan, &rows, 3);
    assert!(found.iter().all(|value| (0.0..=0.06).contains(value)), "{found:?}");
    assert_eq!(bulyan.influences().iter().filter(|it| it.verdict == Verdict::Refused).count(), 2);
}

#[test]
fn rows_that_were_not_selected_are_not_read() {
    let mut rows: Vec<Vec<f32>> = (0..7_u8).map(|at| vec![f32::from(at), 1.0]).collect();
    rows[6][0] = 1e6;
    let mut bulyan = Bulyan::new(&distances(&rows), 1).unwrap();
    assert!(!chosen(&bulyan).contains(&6));
    rows[6][0] = f32::NAN;
    let mut found = [0.0; 2];
    bulyan.tile(&slices(&rows), &mut found).unwrap();
    assert!(found.iter().all(|value| value.is_finite()));
    let last = *chosen(&bulyan).last().unwrap();
    rows[last][1] = f32::NAN;
    let spoiled = bulyan.tile(&slices(&rows), &mut found);
    assert!(matches!(spoiled, Err(TileError::NotFinite { row, column: 1, .. }) if row == last));
}

#[test]
fn bad_input_is_refused() {
    let rows = vec![vec![1.0]; 10];
    let few = Bulyan::new(&distances(&rows), 2).unwrap_err();
    assert_eq!((few.needed, few.inequality), (11, "n >= 4 f + 3"));
    let mut bulyan = Bulyan::new(&distances(&rows), 1).unwrap();
    let missing = TileError::Rows { expected: 10, found: 2 };
    assert_eq!(bulyan.tile(&slices(&rows[..2]), &mut [0.0]), Err(missing));
}
