//! Against the steps on vectors.

#![expect(clippy::cast_precision_loss, reason = "a number of devices")]

use proptest::prelude::*;

use super::super::Verdict;
use super::*;
use crate::federated::tests::{combined, distances, updates};

fn naive(rows: &[Vec<f32>], radius: f64, iterations: usize) -> Vec<f64> {
    let wide = |row: &Vec<f32>| row.iter().copied().map(f64::from).collect::<Vec<_>>();
    let mut guess = wide(&rows[0]);
    let devices: Vec<Vec<f64>> = rows[1..].iter().map(wide).collect();
    for _ in 0..iterations {
        let from = guess.clone();
        for device in &devices {
            let moves: Vec<f64> = device.iter().zip(&from).map(|(w, v)| w - v).collect();
            let norm = moves.iter().map(|value| value * value).sum::<f64>().sqrt();
            let factor = (radius / norm).min(1.0) / devices.len() as f64;
            guess.iter_mut().zip(moves).for_each(|(value, step)| *value += factor * step);
        }
    }
    guess
}

fn clip(rows: &[Vec<f32>], radius: f64, iterations: usize) -> (Vec<f32>, Clipped) {
    let clipped = CentredClipping { radius, iterations }.coefficients(&distances(rows)).unwrap();
    (combined(Some(&rows[0]), &rows[1..], &clipped.coefficients), clipped)
}

proptest! {
    #[test]
    fn is_the_definition(rows in updates(2..8), radius in 0.1..500.0_f64, steps in 1..6_usize) {
        let (found, _) = clip(&rows, radius, steps);
        for (found, expected) in found.iter().zip(naive(&rows, radius, steps)) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-3);
        }
    }
}

#[test]
fn within_the_radius_it_is_the_mean() {
    let rows = [vec![1.0, 1.0], vec![2.0, 5.0], vec![4.0, -3.0]];
    assert_eq!(clip(&rows, 1e3, 1).0, [3.0, 1.0]);
}

/// One device of four moves the result by a quarter of the radius at most.
#[test]
fn a_far_device_moves_it_no_farther_than_the_radius() {
    let rows = [vec![0.0], vec![0.1], vec![0.1], vec![0.1], vec![1e9]];
    let (found, clipped) = clip(&rows, 1.0, 1);
    assert!((found[0] - (0.3 + 1.0) / 4.0).abs() < 1e-6, "{found:?}");
    let verdicts: Vec<Verdict> = clipped.influences().iter().map(|it| it.verdict).collect();
    assert_eq!(verdicts, [Verdict::Kept, Verdict::Kept, Verdict::Kept, Verdict::Reduced]);
}

#[test]
fn bad_input_is_refused() {
    let rule = CentredClipping { radius: 1.0, iterations: 1 };
    let alone = CentredClippingError::Devices { points: 1 };
    assert_eq!(rule.coefficients(&distances(&[vec![1.0]])), Err(alone));
    let points = distances(&[vec![1.0], vec![2.0]]);
    let none = CentredClipping { iterations: 0, ..rule }.coefficients(&points);
    assert_eq!(none, Err(CentredClippingError::Iterations));
    let none = CentredClipping { radius: 0.0, ..rule }.coefficients(&points);
    assert_eq!(none, Err(CentredClippingError::Radius(NormBoundError::Bound(0.0))));
}
