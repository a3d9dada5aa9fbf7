//! Against the vectors `a_k` written out, and the rounds they stand for.

use proptest::prelude::*;

use super::*;
use crate::federated::tests::combined;

fn plain(steps: u32) -> LocalSteps {
    LocalSteps::Plain { steps }
}

proptest! {
    /// What each step's gradient weighs in the end, by making the steps.
    #[test]
    fn weights_are_those_of_the_steps(steps in 1..40_u32, share in 0.05..0.95_f64) {
        let (mut momentum, mut proximal) = (0.0, 0.0);
        let mut velocity = 0.0;
        for _ in 0..steps {
            velocity = share * velocity + 1.0;
            momentum += velocity;
            proximal = (1.0 - share) * proximal + 1.0;
        }
        let found = LocalSteps::Momentum { steps, momentum: share }.weight();
        prop_assert!((found - momentum).abs() < 1e-9 * momentum);
        let found = LocalSteps::Proximal { steps, pull: share }.weight();
        prop_assert!((found - proximal).abs() < 1e-9 * proximal);
    }

    #[test]
    fn equal_steps_are_fed_avg(weights in prop::collection::vec(1.0..1e4_f64, 1..8), n in 1..50_u32) {
        let found = coefficients(&weights, &vec![plain(n); weights.len()]).unwrap();
        let total: f64 = weights.iter().sum();
        for (found, weight) in found.iter().zip(&weights) {
            prop_assert!((found - weight / total).abs() < 1e-12);
        }
    }
}

/// Two devices whose gradients are 1 and -1 everywhere, of 1 and 9 steps: their mean gradient is
/// 0, and so is the move, where `FedAvg` would follow the second.
#[test]
fn more_steps_do_not_pull_more() {
    let rows = [vec![0.875], vec![2.125]];
    let found = coefficients(&[5.0, 5.0], &[plain(1), plain(9)]).unwrap();
    assert_eq!(combined(Some(&[1.0]), &rows, &found), [1.0]);
}

/// `tau_eff sum p_k d_k` by hand: shares 1/4 and 3/4, 2 and 6 steps, `tau_eff` 5.
#[test]
fn is_the_definition() {
    let found = coefficients(&[10.0, 30.0], &[plain(2), plain(6)]).unwrap();
    assert_eq!(found, [5.0 * 0.25 / 2.0, 5.0 * 0.75 / 6.0]);
}

#[test]
fn bad_input_is_refused() {
    let devices = FedNovaError::Devices { weights: 1, steps: 0 };
    assert_eq!(coefficients(&[1.0], &[]), Err(devices));
    assert!(coefficients(&[], &[]).is_err());
    for weights in [[1.0, -1.0], [1.0, f64::NAN], [0.0, 0.0], [f64::MAX, f64::MAX]] {
        let refused = coefficients(&weights, &[plain(1), plain(1)]);
        assert!(matches!(refused, Err(FedNovaError::Weight { .. })), "{weights:?}");
    }
    for steps in [
        plain(0),
        LocalSteps::Momentum { steps: 1, momentum: 1.0 },
        LocalSteps::Proximal { steps: 1, pull: 0.0 },
        LocalSteps::Proximal { steps: 1, pull: f64::NAN },
    ] {
        let refused = coefficients(&[1.0, 1.0], &[plain(1), steps]);
        assert!(matches!(refused, Err(FedNovaError::Steps { device: 1, .. })), "{steps:?}");
    }
}
