//! Against the definition, and what the paper says of it.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn is_the_definition(
        devices in prop::collection::vec((0.01..5.0_f64, 0.0..10.0_f64), 1..8),
        q in 0.0..3.0_f64,
        learning_rate in 0.01..1.0_f64,
    ) {
        let (losses, norms): (Vec<_>, Vec<_>) = devices.iter().copied().unzip();
        let found = QFedAvg { q, learning_rate }.coefficients(&losses, &norms).unwrap();
        let lipschitz = 1.0 / learning_rate;
        let h: f64 = devices
            .iter()
            .map(|(f, d)| q * f.powf(q - 1.0) * (lipschitz * d).powi(2) + lipschitz * f.powf(q))
            .sum();
        for ((loss, _), found) in devices.iter().zip(found) {
            let expected = loss.powf(q) * lipschitz / h;
            prop_assert!((found - expected).abs() <= 1e-6 * expected);
        }
    }
}

#[test]
fn without_fairness_all_count_alike() {
    let rule = QFedAvg { q: 0.0, learning_rate: 0.1 };
    let found = rule.coefficients(&[0.1, 0.0, 9.0, 1.0], &[1.0, 2.0, 3.0, 0.0]).unwrap();
    assert!(found.iter().all(|value| (value - 0.25).abs() < 1e-12), "{found:?}");
}

#[test]
fn a_high_loss_pulls_more() {
    let rule = QFedAvg { q: 2.0, learning_rate: 0.1 };
    let found = rule.coefficients(&[0.5, 2.0], &[0.1, 0.1]).unwrap();
    assert!((found[1] / found[0] - 16.0).abs() < 1e-6, "{found:?}");
}

#[test]
fn bad_input_is_refused() {
    let rule = QFedAvg { q: 1.0, learning_rate: 0.1 };
    let devices = QFedAvgError::Devices { losses: 1, norms: 2 };
    assert_eq!(rule.coefficients(&[1.0], &[1.0, 1.0]), Err(devices));
    assert_eq!(rule.coefficients(&[], &[]), Err(QFedAvgError::Weights { devices: 0 }));
    for (loss, norm) in [(-1.0, 1.0), (1.0, -1.0), (f64::INFINITY, 1.0)] {
        let refused = QFedAvgError::Device { device: 1, loss, norm };
        assert_eq!(rule.coefficients(&[1.0, loss], &[1.0, norm]), Err(refused));
    }
    assert!(rule.coefficients(&[1.0, f64::NAN], &[1.0, 1.0]).is_err());
    for (q, learning_rate) in [(-0.1, 0.1), (f64::NAN, 0.1), (1.0, 0.0), (1.0, f64::INFINITY)] {
        let refused = QFedAvg { q, learning_rate }.coefficients(&[1.0], &[1.0]);
        assert!(matches!(refused, Err(QFedAvgError::Setting { .. })), "{q} {learning_rate}");
    }
}
