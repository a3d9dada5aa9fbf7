//! Sums that vectorise and stay exact enough: `f32` in lanes over a stretch, `f64` over stretches.

use rayon::prelude::*;

use super::simd::vectorised;

const LANES: usize = 16;

/// Elements summed in `f32`: 64 additions per lane.
const STRETCH: usize = 64 * LANES;

/// The sum.
pub(super) fn sum(values: &[f32]) -> f32 {
    narrow(sum_of(values, values, |value, _| value))
}

/// The sum of `term(a, b)` over both.
pub(super) fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    vectorised(|| total = sum_of_stretches(a, b, term));
    total
}

#[inline(always)]
fn sum_of_stretches(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let stretches = a.chunks(STRETCH).zip(b.chunks(STRETCH));
    stretches
        .map(|(a, b)| {
            let mut lanes = [0.0_f32; LANES];
            let (a, a_rest) = a.as_chunks::<LANES>();
            let (b, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    lanes[lane] += term(a[lane], b[lane]);
                }
            }
            for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
                *lane += term(*a, *b);
            }
            lanes.iter().copied().map(f64::from).sum::<f64>()
        })
        .sum()
}

/// The sum of squares, exact enough for any finite values; the same for any number of threads.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    const CHUNK: usize = 1 << 14;
    let sum = |values: &[f32]| {
        let mut lanes = [0.0_f64; LANES];
        vectorised(|| {
            for values in values.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane += f64::from(*value) * f64::from(*value);
                }
            }
        });
        lanes.iter().sum::<f64>()
    };
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(sum).collect();
    sums.iter().sum()
}

/// The sums of `value - mean` and of its square.
pub(super) fn moments(values: &[f32], mean: f32) -> (f64, f64) {
    let mut moments = (0.0, 0.0);
    vectorised(|| moments = moments_of_stretches(values, mean));
    moments
}

#[inline(always)]
fn moments_of_stretches(values: &[f32], mean: f32) -> (f64, f64) {
    let (mut sum, mut squares) = (0.0, 0.0);
    for stretch in values.chunks(STRETCH) {
        let mut lanes = [[0.0_f32; LANES]; 2];
        let mut add = |lane: usize, value: f32| {
            let away = value - mean;
            lanes[0][lane] += away;
            lanes[1][lane] += away * away;
        };
        let (full, rest) = stretch.as_chunks::<LANES>();
        for values in full {
            (0..LANES).for_each(|lane| add(lane, values[lane]));
        }
        rest.iter().enumerate().for_each(|(lane, value)| add(lane, *value));
        sum += lanes[0].iter().copied().map(f64::from).sum::<f64>();
        squares += lanes[1].iter().copied().map(f64::from).sum::<f64>();
    }
    (sum, squares)
}

/// The nearest `f32`.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// A count as a number.
#[expect(clippy::cast_precision_loss, reason = "counts of elements in memory are below 2^53")]
pub(super) fn count(elements: usize) -> f64 {
    elements as f64
}
