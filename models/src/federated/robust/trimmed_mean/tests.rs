//! Against sorting one coordinate after the other.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]

use proptest::prelude::*;

use super::*;
use crate::federated::tests::{long, on_threads, slices, updates};

fn naive(rows: &[Vec<f32>], cut: usize) -> Vec<f32> {
    let column = |at| {
        let mut column: Vec<f32> = rows.iter().map(|row| row[at]).collect();
        column.sort_by(f32::total_cmp);
        let kept = &column[cut..rows.len() - cut];
        (kept.iter().copied().map(f64::from).sum::<f64>() / kept.len() as f64) as f32
    };
    (0..rows[0].len()).map(column).collect()
}

fn by_tiles(mut mean: TrimmedMean, rows: &[Vec<f32>], tile: usize) -> (Vec<f32>, Vec<Influence>) {
    let mut found = vec![0.0; rows[0].len()];
    for (index, part) in found.chunks_mut(tile).enumerate() {
        let columns = index * tile..index * tile + part.len();
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[columns.clone()]).collect();
        mean.tile(&rows, part).unwrap();
    }
    (found, mean.influences())
}

proptest! {
    #[test]
    fn is_the_definition(rows in updates(1..80), fraction in 0.0..0.5_f64, tile in 1..100_usize) {
        let devices = rows.len();
        let mean = TrimmedMean::new(devices, fraction).unwrap();
        let (found, influences) = by_tiles(mean.clone(), &rows, tile);
        prop_assert_eq!(&found, &naive(&rows, (fraction * devices as f64) as usize));
        prop_assert_eq!(by_tiles(mean, &rows, 1000), (found, influences));
        let (median, _) = by_tiles(TrimmedMean::median(devices).unwrap(), &rows, tile);
        prop_assert_eq!(median, naive(&rows, (devices - 1) / 2));
    }

    /// The order of devices changes who is who, not the result.
    #[test]
    fn devices_may_change_places(rows in updates(2..20)) {
        let mut reversed = rows.clone();
        reversed.reverse();
        let mean = TrimmedMean::new(rows.len(), 0.2).unwrap();
        let (found, influences) = by_tiles(mean.clone(), &rows, 64);
        let (again, mut others) = by_tiles(mean, &reversed, 64);
        others.reverse();
        prop_assert_eq!((found, influences), (again, others));
    }
}

#[test]
fn has_the_same_bits_however_it_is_cut_and_on_threads() {
    let rows: Vec<Vec<f32>> = (0..10).map(|seed| long(seed, 30_000)).collect();
    let mean = TrimmedMean::new(10, 0.2).unwrap();
    let whole = on_threads(1, || by_tiles(mean.clone(), &rows, 30_000));
    for tile in [1000, 4097, 30_000] {
        assert_eq!(on_threads(3, || by_tiles(mean.clone(), &rows, tile)), whole, "tile {tile}");
    }
}

#[test]
fn says_who_was_left_out() {
    let rows = [vec![1.0, 1.0], vec![2.0, 1.5], vec![3.0, 2.0], vec![1e9, -1e9], vec![2.5, 9.0]];
    let (found, influences) = by_tiles(TrimmedMean::tolerating(5, 1).unwrap(), &rows, 2);
    assert_eq!(found, [2.5, 1.5]);
    let verdicts: Vec<Verdict> = influences.iter().map(|it| it.verdict).collect();
    let expected = [Verdict::Reduced, Verdict::Kept, Verdict::Kept, Verdict::Refused];
    assert_eq!(verdicts[..4], expected);
    assert_eq!(influences[4].measure, Measure::Coordinates { kept: 1, total: 2 });
}

#[test]
fn bad_input_is_refused() {
    for fraction in [-0.1, 0.5, f64::NAN] {
        let refused = TrimmedMean::new(5, fraction);
        assert!(matches!(refused, Err(TrimmedMeanError::Fraction(_))), "{fraction}");
    }
    let few = TrimmedMean::tolerating(4, 2).unwrap_err();
    assert_eq!((few.needed, few.inequality), (5, "n > 2 f"));
    let says = "trimmed mean: n > 2 f must hold, found n = 4 devices, f = 2 byzantine: \
                at least 5 devices are needed";
    assert_eq!(few.to_string(), says);
    assert!(TrimmedMean::median(0).is_err() && TrimmedMean::new(0, 0.1).is_err());
    let mut median = TrimmedMean::median(2).unwrap();
    let mut into = [0.0; 1];
    let rows = TileError::Rows { expected: 2, found: 1 };
    assert_eq!(median.tile(&[&[1.0]], &mut into), Err(rows));
    let short = TileError::Length { row: 1, expected: 1, found: 2 };
    assert_eq!(median.tile(&[&[1.0], &[1.0, 2.0]], &mut into), Err(short));
    let spoiled = median.tile(&[&[1.0], &[f32::NAN]], &mut into);
    assert!(matches!(spoiled, Err(TileError::NotFinite { row: 1, column: 0, .. })));
    assert_eq!(median.influences()[0].measure, Measure::Coordinates { kept: 0, total: 0 });
}

/// Large values have a mean, and a chunk's end that is not a whole vector is no trouble.
#[test]
fn large_values_have_a_mean() {
    let rows = [vec![f32::MAX; 4161], vec![f32::MAX; 4161]];
    let mut found = vec![0.0; 4161];
    TrimmedMean::median(2).unwrap().tile(&slices(&rows), &mut found).unwrap();
    assert_eq!(found, rows[0]);
}
