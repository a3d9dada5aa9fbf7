//! Against the papers' formulas, one value after the other.

use proptest::prelude::*;

use super::*;
use crate::federated::tests::{long, on_threads};

const ALL: [ServerOptimizer; 5] = [
    ServerOptimizer::FED_AVG,
    ServerOptimizer::FED_AVG_M,
    ServerOptimizer::FED_ADAGRAD,
    ServerOptimizer::FED_ADAM,
    ServerOptimizer::FED_YOGI,
];

/// One value over rounds of differences, in `f64` throughout.
fn naive(optimizer: ServerOptimizer, mut x: f64, differences: &[f32]) -> f64 {
    let (mut m, mut v) = (0.0, 0.0);
    for d in differences.iter().map(|d| f64::from(*d)) {
        let adaptive = |m: f64, v: f64, it: Adaptive| it.learning_rate * m / (v.sqrt() + it.tau);
        x += match optimizer {
            ServerOptimizer::FedAvg { learning_rate } => learning_rate * d,
            ServerOptimizer::FedAvgM { learning_rate, momentum } => {
                m = momentum * m + d;
                learning_rate * m
            }
            ServerOptimizer::FedAdagrad(it) => {
                v += d * d;
                adaptive(d, v, it)
            }
            ServerOptimizer::FedAdam(it) => {
                m = it.beta1 * m + (1.0 - it.beta1) * d;
                v = it.beta2 * v + (1.0 - it.beta2) * d * d;
                adaptive(m, v, it)
            }
            ServerOptimizer::FedYogi(it) => {
                m = it.beta1 * m + (1.0 - it.beta1) * d;
                let step = (1.0 - it.beta2) * d * d;
                v = if v > d * d { v - step } else { v + step };
                adaptive(m, v, it)
            }
        };
    }
    x
}

fn rounds(optimizer: ServerOptimizer, cut: usize) -> (Vec<f32>, ServerState) {
    let mut parameters = long(0, 20_000);
    let mut state = optimizer.state(20_000);
    for round in 1..4 {
        let mean = long(round, 20_000);
        for start in (0..20_000).step_by(cut) {
            let end = 20_000.min(start + cut);
            let moments = state.piece(start, end - start);
            let aggregate = Aggregate::Parameters(&mean[start..end]);
            optimizer.step(moments, &mut parameters[start..end], aggregate).unwrap();
        }
    }
    (parameters, state)
}

proptest! {
    #[test]
    fn are_the_definition(x in -1.0_f32..1.0, ds in prop::collection::vec(-1.0_f32..1.0, 1..8)) {
        for optimizer in ALL {
            let (mut state, mut found) = (optimizer.state(1), [x]);
            for d in &ds {
                let difference = Aggregate::Difference(std::slice::from_ref(d));
                optimizer.step(state.piece(0, 1), &mut found, difference).unwrap();
            }
            let expected = naive(optimizer, f64::from(x), &ds);
            prop_assert!((f64::from(found[0]) - expected).abs() < 1e-4, "{:?}", optimizer);
        }
    }

    /// The mean of parameters itself, to the last bit, and as differences up to rounding.
    #[test]
    fn fed_avg_goes_to_the_mean(x in -1e6_f32..1e6, mean in -1.0_f32..1.0) {
        let optimizer = ServerOptimizer::FED_AVG;
        let mut found = vec![x];
        let mut state = optimizer.state(1);
        optimizer.step(state.piece(0, 1), &mut found, Aggregate::Parameters(&[mean])).unwrap();
        prop_assert_eq!(found, [mean]);
    }
}

#[test]
fn have_the_same_bits_however_they_are_cut_and_on_threads() {
    for optimizer in ALL {
        let whole = on_threads(1, || rounds(optimizer, 20_000));
        for cut in [777, 4096, 20_000] {
            assert!(on_threads(3, || rounds(optimizer, cut)) == whole, "{optimizer:?}, cut {cut}");
        }
    }
}

#[test]
fn state_can_be_kept_elsewhere() {
    for optimizer in ALL {
        let (parameters, state) = rounds(optimizer, 20_000);
        let (first, second) = (state.first().to_vec(), state.second().to_vec());
        assert_eq!((!first.is_empty(), !second.is_empty()), optimizer.has_moments());
        let again = optimizer.state_from(parameters.len(), first, second).unwrap();
        assert_eq!(again, state);
    }
    let adam = ServerOptimizer::FED_ADAM;
    let (what, expected) = ("first moment", 2);
    let missing = ServerError::Length { what, expected, found: 0 };
    assert_eq!(adam.state_from(2, vec![], vec![0.0; 2]), Err(missing));
    let spoiled = adam.state_from(2, vec![0.0; 2], vec![0.0, f32::NAN]);
    assert_eq!(spoiled, Err(ServerError::NotFinite { index: 1 }));
    let needless = ServerOptimizer::FED_AVG.state_from(2, vec![0.0; 2], vec![]);
    assert!(matches!(needless, Err(ServerError::Length { expected: 0, found: 2, .. })));
}

#[test]
fn the_second_moment_begins_where_it_is_told_to() {
    let optimizer = ServerOptimizer::FedAdagrad(Adaptive { initial: 0.25, ..ADAM });
    assert_eq!(optimizer.state(2).second(), [0.25; 2]);
}

#[test]
fn what_is_not_finite_moves_nothing() {
    for optimizer in ALL {
        for spoiled in [f32::NAN, f32::NEG_INFINITY, f32::MAX] {
            let mut mean = vec![0.5; 10_000];
            mean[9000] = spoiled;
            let mut parameters = vec![0.25; 10_000];
            parameters[9000] = -f32::MAX;
            let before = parameters.clone();
            let mut state = optimizer.state(10_000);
            let moments = state.piece(0, 10_000);
            let step = optimizer.step(moments, &mut parameters, Aggregate::Parameters(&mean));
            if step.is_ok() {
                assert_eq!((optimizer, spoiled), (ServerOptimizer::FED_AVG, f32::MAX));
                continue;
            }
            assert_eq!(step, Err(ServerError::NotFinite { index: 9000 }));
            assert_eq!((parameters, state), (before, optimizer.state(10_000)));
        }
    }
}

#[test]
fn settings_are_checked() {
    let bad = [
        ServerOptimizer::FedAvg { learning_rate: 0.0 },
        ServerOptimizer::FedAvg { learning_rate: f64::NAN },
        ServerOptimizer::FedAvgM { learning_rate: 1.0, momentum: 1.0 },
        ServerOptimizer::FedAdam(Adaptive { beta1: -0.1, ..ADAM }),
        ServerOptimizer::FedAdam(Adaptive { beta2: 1.0, ..ADAM }),
        ServerOptimizer::FedYogi(Adaptive { tau: 0.0, ..ADAM }),
        ServerOptimizer::FedAdagrad(Adaptive { initial: -1.0, ..ADAM }),
        ServerOptimizer::FedAdagrad(Adaptive { learning_rate: f64::INFINITY, ..ADAM }),
    ];
    for optimizer in bad {
        assert!(matches!(optimizer.check(), Err(ServerError::Setting { .. })), "{optimizer:?}");
    }
    for optimizer in ALL {
        assert_eq!(optimizer.check(), Ok(()));
    }
}
