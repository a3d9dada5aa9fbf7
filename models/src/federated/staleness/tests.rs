//! The papers' functions, value by value.

use super::*;
use crate::federated::server::{Aggregate, ServerOptimizer};

fn weights(staleness: Staleness) -> Vec<f64> {
    (0..=8).map(|tau| staleness.weight(100 - tau, 100).unwrap()).collect()
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(near, "{found:?}, expected {expected:?}");
}

#[test]
fn weights_are_the_definitions() {
    let taus = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0_f64];
    assert_near(&weights(Staleness::Constant), &[1.0; 9]);
    assert_near(&weights(Staleness::FED_BUFF), &taus.map(|tau| 1.0 / (1.0 + tau).sqrt()));
    let polynomial = Staleness::Polynomial { exponent: 2.0 };
    assert_near(&weights(polynomial), &taus.map(|tau| 1.0 / (1.0 + tau).powi(2)));
    let hinge = Staleness::Hinge { slope: 10.0, grace: 4 };
    let expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0 / 11.0, 1.0 / 21.0, 1.0 / 31.0, 1.0 / 41.0];
    assert_near(&weights(hinge), &expected);
}

/// `x + eta / K sum s D`, two of three updates stale.
#[test]
fn a_buffer_is_divided_by_its_number() {
    let mut buffer = WeightedMean::new(2);
    for (difference, trained) in [([1.0, 2.0], 7), ([4.0, -2.0], 4), ([0.0, 8.0], 4)] {
        let weight = Staleness::FED_BUFF.weight(trained, 7).unwrap();
        add_to_buffer(&mut buffer, &difference, weight);
    }
    let mean = buffer.piece(0, 2).unwrap();
    // (1 + 4 / 2 + 0) / 3 and (2 - 2 / 2 + 8 / 2) / 3.
    assert!((mean[0] - 1.0).abs() < 1e-6 && (mean[1] - 5.0 / 3.0).abs() < 1e-6, "{mean:?}");
    let optimizer = ServerOptimizer::FedAvg { learning_rate: 0.5 };
    let mut parameters = [10.0, 10.0];
    let mut state = optimizer.state(2);
    optimizer.step(state.piece(0, 2), &mut parameters, Aggregate::Difference(&mean)).unwrap();
    assert!((parameters[0] - 10.5).abs() < 1e-6 && (parameters[1] - 10.833_333).abs() < 1e-5);
}

/// `(1 - alpha s) x + alpha s w`: a stale one counts half.
#[test]
fn fed_async_mixes_one_in() {
    let weight = Staleness::FED_BUFF.weight(2, 5).unwrap();
    let optimizer = ServerOptimizer::FedAvg { learning_rate: mixing_share(0.5, weight).unwrap() };
    let mut parameters = vec![8.0];
    let mut state = optimizer.state(1);
    optimizer.step(state.piece(0, 1), &mut parameters, Aggregate::Parameters(&[4.0])).unwrap();
    assert_eq!(parameters, [7.0]);
}

#[test]
fn bad_input_is_refused() {
    let future = StalenessError::Future { trained: 5, newest: 4 };
    assert_eq!(Staleness::Constant.weight(5, 4), Err(future));
    let bad = [
        Staleness::Polynomial { exponent: -1.0 },
        Staleness::Polynomial { exponent: f64::NAN },
        Staleness::Hinge { slope: 0.0, grace: 4 },
    ];
    for staleness in bad {
        assert!(matches!(staleness.weight(1, 2), Err(StalenessError::Setting { .. })));
    }
    for alpha in [0.0, 1.1, f64::NAN] {
        assert!(matches!(mixing_share(alpha, 1.0), Err(StalenessError::Setting { .. })));
    }
}
