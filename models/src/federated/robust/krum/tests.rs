//! Against scores taken from the vectors themselves.

use proptest::prelude::*;

use super::*;
use crate::federated::tests::{combined, distances, updates};

fn naive_score(rows: &[Vec<f32>], device: usize, byzantine: usize) -> f64 {
    let squared = |row: &Vec<f32>| {
        let pairs = row.iter().zip(&rows[device]);
        pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>()
    };
    let others = rows.iter().enumerate().filter(|(other, _)| *other != device);
    let mut near: Vec<f64> = others.map(|(_, row)| squared(row)).collect();
    near.sort_by(f64::total_cmp);
    near.iter().take(rows.len() - byzantine - 2).sum()
}

proptest! {
    #[test]
    fn is_the_definition(rows in updates(3..12), f in 0..5_usize, m in 1..12_usize) {
        let (n, rule) = (rows.len(), MultiKrum { byzantine: f, selected: m });
        let selected = rule.select(&distances(&rows));
        if n < 2 * f + 3 {
            prop_assert!(matches!(selected, Err(KrumError::Devices(_))));
        } else if m > n - f {
            prop_assert_eq!(selected, Err(KrumError::Selected { selected: m, max: n - f }));
        } else {
            let selection = selected.unwrap();
            let scores: Vec<f64> = (0..n).map(|device| naive_score(&rows, device, f)).collect();
            prop_assert_eq!(selection.chosen().len(), m);
            let of = |device: &usize| scores[*device];
            let worst = selection.chosen().iter().map(of).fold(0.0, f64::max);
            for device in (0..n).filter(|device| !selection.chosen().contains(device)) {
                prop_assert!(scores[device] >= worst * (1.0 - 1e-9));
            }
            for (found, expected) in selection.scores.iter().zip(&scores) {
                prop_assert!((found - expected).abs() <= 1e-9 * expected);
            }
        }
    }
}

fn rows() -> Vec<Vec<f32>> {
    [0.1, 0.0, 50.0, 0.2, -60.0, -0.1, 0.05].iter().map(|value| vec![*value, 1.0]).collect()
}

#[test]
fn byzantine_devices_are_refused_and_named() {
    let selection = MultiKrum { byzantine: 2, selected: 3 }.select(&distances(&rows())).unwrap();
    assert_eq!(selection.chosen(), [0, 1, 6]);
    let influences = selection.influences();
    for (device, influence) in influences.iter().enumerate() {
        let kept = selection.chosen().contains(&device);
        let verdict = if kept { Verdict::Kept } else { Verdict::Refused };
        assert_eq!(influence.verdict, verdict, "{device}");
        let Measure::Score { score, limit } = influence.measure else { panic!("a score") };
        assert_eq!(score <= limit, kept, "{device}");
    }
}

#[test]
fn of_equals_the_first_is_selected() {
    let equal = distances(&vec![vec![1.0]; 5]);
    assert_eq!(MultiKrum::krum(1).select(&equal).unwrap().chosen(), [0]);
}

#[test]
fn the_selected_count_alike() {
    let rows = rows();
    let selection = MultiKrum { byzantine: 2, selected: 4 }.select(&distances(&rows)).unwrap();
    assert_eq!(selection.chosen(), [0, 1, 3, 6]);
    assert_eq!(selection.coefficients(), [0.25, 0.25, 0.0, 0.25, 0.0, 0.0, 0.25]);
    let one = MultiKrum::krum(2).select(&distances(&rows)).unwrap();
    let found = combined(None, &rows, &one.coefficients());
    assert_eq!(found, rows[one.chosen()[0]]);
}

#[test]
fn bad_input_is_refused() {
    let distances = distances(&rows());
    let few = MultiKrum::krum(3).select(&distances).unwrap_err();
    let says = "krum: n >= 2 f + 3 must hold, found n = 7 devices, f = 3 byzantine: \
                at least 9 devices are needed";
    assert_eq!(few.to_string(), says);
    assert!(MultiKrum::krum(usize::MAX).select(&distances).is_err());
    for selected in [0, 6] {
        let refused = KrumError::Selected { selected, max: 5 };
        assert_eq!(MultiKrum { byzantine: 2, selected }.select(&distances), Err(refused));
    }
}
