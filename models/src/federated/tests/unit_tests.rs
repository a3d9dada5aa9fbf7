//! The figures of Flower's own unit tests.

use super::functions::nearest_mean;
use super::strategies::{by_examples, step};
use super::*;
use crate::federated::robust::bulyan::Bulyan;
use crate::federated::robust::krum::{KrumError, MultiKrum};
use crate::federated::robust::norm_bound::NormBound;
use crate::federated::robust::trimmed_mean::TrimmedMean;
use crate::federated::server::{Adaptive, Aggregate, ServerError, ServerOptimizer};

fn number(test: &UnitTest, name: &str) -> f64 {
    test.params.get(name).map_or(0.0, |value| value.as_f64().unwrap())
}

fn run_optimizer(test: &UnitTest, optimizer: ServerOptimizer) -> Vec<f32> {
    let mut parameters = narrow(&test.initial);
    let mut state = optimizer.state(parameters.len());
    for _ in 0..test.rounds.unwrap_or(1) {
        step(optimizer, &mut state, &mut parameters, &mean(&test.clients));
    }
    parameters
}

/// Flower scores `f = 1` of 3 devices by the nearest neighbour. Here this is refused; without a
/// byzantine device 3 have the same scores.
fn run_krum(test: &UnitTest) -> Vec<f32> {
    let rows = rows(&test.clients);
    let distances = distances(&rows);
    let selected = test.params["keep"].as_u64().map_or(1, |keep| usize::try_from(keep).unwrap());
    let refused = MultiKrum { byzantine: 1, selected }.select(&distances).unwrap_err();
    assert!(matches!(refused, KrumError::Devices(few) if few.needed == 5), "{refused}");
    let selection = MultiKrum { byzantine: 0, selected }.select(&distances).unwrap();
    combined(None, &rows, &by_examples(&selection, &test.clients))
}

fn run_columns(clients: &[Client], mut tile: impl FnMut(&[&[f32]], &mut [f32])) -> Vec<f32> {
    let rows = rows(clients);
    let mut combined = vec![0.0; rows[0].len()];
    tile(&slices(&rows), &mut combined);
    combined
}

fn run(test: &UnitTest) -> Vec<f32> {
    let devices = test.clients.len();
    match test.algo.as_str() {
        "fedavg" => mean(&test.clients),
        "fedavgm" => {
            let (learning_rate, momentum) = (number(test, "server_lr"), number(test, "momentum"));
            run_optimizer(test, ServerOptimizer::FedAvgM { learning_rate, momentum })
        }
        "fedadagrad" => {
            let (learning_rate, tau) = (number(test, "eta"), number(test, "tau"));
            let adaptive = Adaptive { learning_rate, beta1: 0.0, beta2: 0.0, tau, initial: 0.0 };
            run_optimizer(test, ServerOptimizer::FedAdagrad(adaptive))
        }
        "median" => {
            let mut median = TrimmedMean::median(devices).unwrap();
            run_columns(&test.clients, |rows, combined| median.tile(rows, combined).unwrap())
        }
        "trimmed_mean" => {
            let mut mean = TrimmedMean::new(devices, number(test, "beta")).unwrap();
            run_columns(&test.clients, |rows, combined| mean.tile(rows, combined).unwrap())
        }
        "krum" | "multikrum" => run_krum(test),
        "bulyan" => {
            let mut bulyan = Bulyan::new(&distances(&rows(&test.clients)), 0).unwrap();
            run_columns(&test.clients, |rows, combined| bulyan.tile(rows, combined).unwrap())
        }
        "bulyan_n_closest" => {
            let rows: Vec<_> = test.rows.iter().map(|row| narrow(row)).collect();
            nearest_mean(&rows, &test.reference, test.count)
        }
        other => panic!("no test of {other}"),
    }
}

#[test]
fn flower_unit_tests() {
    for test in &flower().unit_tests {
        assert_close(&run(test), &test.expected, &test.test);
    }
}

/// `aggregate_test.py::test_weighted_loss_avg_*`.
#[test]
fn losses_are_averaged_by_examples() {
    let client = |examples, loss| Client { examples, values: vec![loss], loss: None };
    assert_close(&mean(&[client(5, 0.5)]), &[0.5], "one");
    assert_close(&mean(&[client(1, 2.0), client(2, 1.0), client(1, 2.0)]), &[1.5], "three");
}

/// `strategy_utils_test.py::arrayrecords`: weights need not be whole numbers.
#[test]
fn shares_are_weights() {
    let mut mean = WeightedMean::new(2);
    for (row, weight) in [([1.0, -3.0], 0.25), ([2.0, 5.0], 0.4), ([4.0, 7.0], 0.35)] {
        mean.add_piece(0, &row, weight);
        mean.add_weight(weight);
    }
    assert_close(&mean.piece(0, 2).unwrap(), &[2.45, 3.7], "shares");
}

/// `fedopt_test.py::compute_deltat` and `scalar_arrays`.
#[test]
fn optimizers_check_lengths_and_take_single_numbers() {
    for optimizer in
        [ServerOptimizer::FED_ADAGRAD, ServerOptimizer::FED_ADAM, ServerOptimizer::FED_YOGI]
    {
        let mut parameters = vec![0.0; 84];
        for length in [105, 140] {
            let longer = vec![1.0; length];
            let mut state = optimizer.state(84);
            let moments = state.piece(0, 84);
            let step = optimizer.step(moments, &mut parameters, Aggregate::Parameters(&longer));
            let (what, expected) = ("aggregate", 84);
            assert_eq!(step, Err(ServerError::Length { what, expected, found: length }));
        }
        let client = |examples, value| Client { examples, values: vec![value], loss: None };
        let mean = mean(&[client(1, 1.0), client(2, 3.0)]);
        let (mut state, mut single) = (optimizer.state(1), [0.0]);
        step(optimizer, &mut state, &mut single, &mean);
        assert!(single[0].is_finite() && single[0] > 0.0);
    }
}

/// `differential_privacy_test.py::get_norm`, `clip_inputs_inplace`, `compute_clip_model_update`.
#[test]
fn norms_and_clipping() {
    let rows = [(1..=8_u8).map(f32::from).collect::<Vec<_>>()];
    assert_close(&narrow(&norms(&[0.0; 8], &rows)), &[14.282_856_857_085_7], "norm");

    let input = [1.5, -0.5, 2.0, -1.0, 0.5, -0.5, -0.5, 1.5, -1.0, 2.0, -0.5, 0.5];
    let rows = [narrow(&input)];
    let clipped = NormBound::new(1.5).unwrap().clip(&norms(&[0.0; 12], &rows), &[1.0]).unwrap();
    assert_close(&narrow(&clipped.norms), &[4.0], "norm");
    let expected: Vec<f64> = input.iter().map(|value| value * 1.5 / 4.0).collect();
    assert_close(&combined(None, &rows, &clipped.coefficients), &expected, "clipped");

    let server: Vec<f32> = (1..=9_u8).map(f32::from).collect();
    let rows = [server.iter().map(|value| value - 0.5).collect::<Vec<_>>()];
    let clipped = NormBound::new(4.0).unwrap().clip(&norms(&server, &rows), &[1.0]).unwrap();
    assert_close(&narrow(&clipped.norms), &[1.5], "norm");
    assert_eq!(combined(Some(&server), &rows, &clipped.coefficients), rows[0]);
}
