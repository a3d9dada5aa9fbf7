//! Where Flower 1.41 and the papers differ: the papers' values.

use super::strategies::{by_examples, optimizer, step};
use super::*;
use crate::federated::robust::bulyan::Bulyan;
use crate::federated::robust::krum::MultiKrum;
use crate::federated::robust::norm_bound::NormBound;
use crate::federated::server::{Adaptive, ServerOptimizer};

fn case(strategy: &str) -> Case {
    flower().strategies.into_iter().find(|case| case.strategy == strategy).unwrap()
}

/// McMahan et al. 2018: all of an update is clipped. Flower 1.41 leaves arrays without dimensions
/// as they are, a single 2 stays 2 at a bound of 1.
#[test]
fn single_numbers_are_clipped_too() {
    let rows = [vec![2.0]];
    let clipped = NormBound::new(1.0).unwrap().clip(&norms(&[0.0], &rows), &[1.0]).unwrap();
    assert_eq!(combined(Some(&[0.0]), &rows, &clipped.coefficients), [1.0]);
    let case = case("DPServerFixed");
    let (round, initial) = (&case.rounds[0], narrow(&case.initial));
    let rows = super::rows(&round.clients);
    let clipped = NormBound::new(0.3).unwrap().clip(&norms(&initial, &rows), &[0.2; 5]).unwrap();
    let found = combined(Some(&initial), &rows, &clipped.coefficients);
    let moved = found.iter().zip(&initial).map(|(to, from)| f64::from(to - from).powi(2));
    assert!(moved.sum::<f64>().sqrt() <= 0.3, "a mean of such updates is not longer either");
    let last = found.len() - 1;
    assert!((f64::from(found[last]) - round.output.as_ref().unwrap()[last]).abs() > 0.1);
}

/// Parameters stay `f32` over rounds, 4 bytes a value. Flower 1.41 returns `f64` of `FedAdam` and
/// q-FedAvg, and sends the next round at twice the bytes.
#[test]
fn parameters_stay_as_wide_as_they_were() {
    let mut parameters: Vec<f32> = vec![0.5; 3];
    let optimizer = ServerOptimizer::FED_ADAM;
    let mut state = optimizer.state(3);
    step(optimizer, &mut state, &mut parameters, &[0.25, 0.5, 1.0]);
    assert_eq!(size_of_val(&parameters[..]), 12);
    assert_eq!(size_of_val(state.first()) + size_of_val(state.second()), 24);
}

/// Reddi et al. 2021, algorithm 2: no correction of the bias. Flower 1.41 corrects it, its steps
/// are others by `sqrt(1 - beta2^(t + 1)) / (1 - beta1^(t + 1))`.
#[test]
fn fed_adam_does_not_correct_its_bias() {
    let case = case("FedAdam");
    let paper = Adaptive { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3, initial: 0.0 };
    let paper = ServerOptimizer::FedAdam(paper);
    assert_eq!(paper, ServerOptimizer::FED_ADAM);
    assert_ne!(Some(paper), optimizer("FedAdam", &case.params, 0));
    let initial = narrow(&case.initial);
    let mean = mean(&case.rounds[0].clients);
    let (mut found, mut state) = (initial.clone(), paper.state(initial.len()));
    step(paper, &mut state, &mut found, &mean);
    // m = 0.1 D and v = 0.01 D^2 after the first round.
    let differences =
        mean.iter().zip(&initial).map(|(mean, x)| (f64::from(*x), f64::from(mean - x)));
    let expected = differences.map(|(x, d)| x + 0.1 * 0.1 * d / (0.1 * d.abs() + 1e-3));
    assert_close(&found, &expected.collect::<Vec<_>>(), "FedAdam");
}

/// Blanchard et al. 2017: Multi-Krum's result is the plain mean of the selected. Flower 1.41
/// weighs them by examples: `flower_strategies`.
#[test]
fn multi_krum_is_a_plain_mean() {
    let case = case("MultiKrum");
    let rows = rows(&case.rounds[0].clients);
    let rule = MultiKrum { byzantine: 2, selected: 4 };
    let selection = rule.select(&distances(&rows)).unwrap();
    let found = combined(None, &rows, &selection.coefficients());
    assert_ne!(selection.coefficients(), by_examples(&selection, &case.rounds[0].clients));
    let sum = |at: usize| selection.chosen().iter().map(|it| f64::from(rows[*it][at])).sum::<f64>();
    let expected: Vec<f64> = (0..found.len()).map(|at| sum(at) / 4.0).collect();
    assert_close(&found, &expected, "MultiKrum");
}

/// El Mhamdi et al. 2018: Bulyan chooses by Krum again and again. Flower 1.41 chooses once, by
/// Multi-Krum.
#[test]
fn bulyan_selects_one_by_one() {
    let values = [0.0, 0.1, 10.0, 10.5, 11.0, 11.6, 12.3];
    let rows: Vec<Vec<f32>> = values.iter().map(|value| vec![*value]).collect();
    let distances = distances(&rows);
    let once = MultiKrum { byzantine: 1, selected: 5 }.select(&distances).unwrap();
    assert_eq!(once.chosen(), [2, 3, 4, 5, 6]);
    let bulyan = Bulyan::new(&distances, 1).unwrap();
    let one_by_one: Vec<usize> = bulyan.coordinates().iter().map(|(device, _)| *device).collect();
    // By hand: 11, 11.6 and 10.5 by 4, 3 and 2 neighbours; by one neighbour 0 beside 0.1, then 10.
    assert_eq!(one_by_one, [0, 2, 3, 4, 5]);
}
