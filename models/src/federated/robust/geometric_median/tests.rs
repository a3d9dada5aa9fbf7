//! Against Weiszfeld's algorithm on vectors, and known medians.

use proptest::prelude::*;

use super::*;
use crate::federated::distances::PairwiseDistances;
use crate::federated::tests::{combined, distances, updates};

fn norm(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn objective(rows: &[Vec<f32>], point: &[f64]) -> f64 {
    rows.iter().map(|row| norm(point, row)).sum()
}

fn mean(rows: &[Vec<f32>], shares: &[f64]) -> Vec<f64> {
    let total: f64 = shares.iter().sum();
    let value =
        |at: usize| rows.iter().zip(shares).map(|(row, s)| s * f64::from(row[at])).sum::<f64>();
    (0..rows[0].len()).map(|at| value(at) / total).collect()
}

fn naive(rows: &[Vec<f32>], steps: usize) -> Vec<f64> {
    let mut point = mean(rows, &vec![1.0; rows.len()]);
    for _ in 0..steps {
        let shares: Vec<f64> = rows.iter().map(|row| 1.0 / norm(&point, row).max(1e-6)).collect();
        point = mean(rows, &shares);
    }
    point
}

proptest! {
    #[test]
    fn steps_are_those_on_vectors(rows in updates(3..9), steps in 1..6_usize) {
        let rule = GeometricMedian { iterations_max: steps, tolerance: -1.0, ..Default::default() };
        let located = rule.locate(&distances(&rows)).unwrap();
        prop_assert_eq!(located.iterations, steps);
        let expected = naive(&rows, steps);
        let found = combined(None, &rows, &located.shares);
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-3);
        }
        for (row, found) in rows.iter().zip(&located.distances) {
            prop_assert!((norm(&expected, row) - found).abs() < 1e-3);
        }
    }

    /// Nothing nearby is better.
    #[test]
    fn is_a_minimum(rows in updates(3..9), at in 0..1000_usize, step in -0.5..0.5_f64) {
        let located = GeometricMedian::default().locate(&distances(&rows)).unwrap();
        let mut point = mean(&rows, &located.shares);
        let least = objective(&rows, &point);
        let at = at % point.len();
        point[at] += step;
        prop_assert!(objective(&rows, &point) >= least * (1.0 - 1e-6));
    }
}

/// Of a triangle whose angles are all below 120 degrees it is Fermat's point; here, by symmetry,
/// where all sides are seen under 120 degrees.
#[test]
fn of_a_triangle_it_is_the_point_of_fermat() {
    let rows = [vec![-1.0, 0.0], vec![1.0, 0.0], vec![0.0, 3.0]];
    let located = GeometricMedian::default().locate(&distances(&rows)).unwrap();
    let found = combined(None, &rows, &located.shares);
    assert!(found[0].abs() < 1e-5 && (found[1] - 3.0_f32.sqrt() / 3.0).abs() < 1e-4, "{found:?}");
}

#[test]
fn a_far_device_hardly_counts() {
    let rows = [vec![0.0], vec![0.1], vec![0.2], vec![0.3], vec![1e6]];
    let located = GeometricMedian::default().locate(&distances(&rows)).unwrap();
    let found = combined(None, &rows, &located.shares)[0];
    assert!((0.1..=0.31).contains(&found), "{found}");
    let far = located.influences()[4];
    assert_eq!(far.verdict, Verdict::Reduced);
    let Measure::Distance { distance, share } = far.measure else { panic!("a distance") };
    assert!(share < 1e-6 && (distance - 1e6).abs() < 1.0, "{far:?}");
    assert!((located.shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn equal_updates_are_their_own_median() {
    let rows = vec![vec![3.0, -2.0]; 4];
    let located = GeometricMedian::default().locate(&distances(&rows)).unwrap();
    assert_eq!(located.shares, [0.25; 4]);
    assert_eq!(located.distances, [0.0; 4]);
}

#[test]
fn bad_input_is_refused() {
    let points = distances(&[vec![1.0], vec![2.0]]);
    let rule = GeometricMedian::default();
    let nobody = PairwiseDistances::new(0).distances();
    assert_eq!(rule.locate(&nobody), Err(GeometricMedianError::Devices));
    for rule in
        [GeometricMedian { smoothing: 0.0, ..rule }, GeometricMedian { iterations_max: 0, ..rule }]
    {
        let refused = rule.locate(&points);
        assert!(matches!(refused, Err(GeometricMedianError::Settings { .. })), "{rule:?}");
    }
}
