//! Strategies, several rounds each. State is exported and imported between rounds, and parameters
//! move in pieces of uneven length.

use super::*;
use crate::federated::q_fed_avg::QFedAvg;
use crate::federated::robust::bulyan::Bulyan;
use crate::federated::robust::krum::{MultiKrum, Selection};
use crate::federated::robust::norm_bound::NormBound;
use crate::federated::robust::trimmed_mean::TrimmedMean;
use crate::federated::server::{Adaptive, Aggregate, ServerOptimizer, ServerState};

/// Flower keeps the last of three arrays, a single number, out of clipping: [`differences`].
const CLIPPED: usize = 17;

fn number(params: &Value, name: &str) -> f64 {
    params[name].as_f64().unwrap_or_else(|| panic!("{name} in {params}"))
}

fn count(params: &Value, name: &str) -> usize {
    usize::try_from(params[name].as_u64().unwrap()).unwrap()
}

fn adaptive(params: &Value) -> Adaptive {
    let decay = |name| params.get(name).map_or(0.0, |value| value.as_f64().unwrap());
    Adaptive {
        learning_rate: number(params, "eta"),
        beta1: decay("beta_1"),
        beta2: decay("beta_2"),
        tau: number(params, "tau"),
        initial: 0.0,
    }
}

/// The optimizer of a round counted from 0, if the strategy is one.
pub(super) fn optimizer(strategy: &str, params: &Value, round: i32) -> Option<ServerOptimizer> {
    Some(match strategy {
        "FedAvg" => ServerOptimizer::FED_AVG,
        "FedAvgM" => ServerOptimizer::FedAvgM {
            learning_rate: number(params, "server_learning_rate"),
            momentum: number(params, "server_momentum"),
        },
        "FedAdagrad" => ServerOptimizer::FedAdagrad(adaptive(params)),
        "FedAdam" => {
            let mut adam = adaptive(params);
            // Flower corrects the bias, a round ahead: the same as another learning rate.
            let power = |beta: f64| 1.0 - beta.powi(round + 2);
            adam.learning_rate *= power(adam.beta2).sqrt() / power(adam.beta1);
            ServerOptimizer::FedAdam(adam)
        }
        "FedYogi" => ServerOptimizer::FedYogi(adaptive(params)),
        _ => return None,
    })
}

pub(super) fn step(
    optimizer: ServerOptimizer,
    state: &mut ServerState,
    parameters: &mut [f32],
    mean: &[f32],
) {
    let kept = (state.first().to_vec(), state.second().to_vec());
    *state = optimizer.state_from(parameters.len(), kept.0, kept.1).unwrap();
    for start in (0..parameters.len()).step_by(5) {
        let end = parameters.len().min(start + 5);
        let moments = state.piece(start, end - start);
        let aggregate = Aggregate::Parameters(&mean[start..end]);
        optimizer.step(moments, &mut parameters[start..end], aggregate).unwrap();
    }
}

fn run_optimizer(case: &Case) {
    let mut parameters = narrow(&case.initial);
    let first = optimizer(&case.strategy, &case.params, 0).unwrap();
    let mut state = first.state(parameters.len());
    for (index, round) in (0..).zip(&case.rounds) {
        let optimizer = optimizer(&case.strategy, &case.params, index).unwrap();
        step(optimizer, &mut state, &mut parameters, &mean(&round.clients));
        let name = format!("{}, round {index}", case.strategy);
        assert_close(&parameters, round.output.as_ref().unwrap(), &name);
    }
}

/// Flower weighs the selected by examples: [`differences`].
pub(super) fn by_examples(selection: &Selection, clients: &[Client]) -> Vec<f64> {
    let mut coefficients = vec![0.0; clients.len()];
    let examples = examples(clients);
    let total: f64 = selection.chosen().iter().map(|device| examples[*device]).sum();
    for device in selection.chosen() {
        coefficients[*device] = examples[*device] / total;
    }
    coefficients
}

fn run_selection(strategy: &str, params: &Value, round: &Round) -> Option<Vec<f32>> {
    let rows = rows(&round.clients);
    let byzantine = count(params, "num_malicious_nodes");
    let devices = rows.len();
    let selected = match strategy {
        "Krum" => 1,
        "MultiKrum" => count(params, "num_nodes_to_select"),
        _ => devices.saturating_sub(2 * byzantine),
    };
    let selection = MultiKrum { byzantine, selected }.select(&distances(&rows)).unwrap();
    if strategy == "Bulyan" {
        // Flower's Bulyan selects by Multi-Krum.
        let mut bulyan = Bulyan::of(selection, devices, byzantine).ok()?;
        let mut combined = vec![0.0; rows[0].len()];
        bulyan.tile(&slices(&rows), &mut combined).unwrap();
        return Some(combined);
    }
    Some(combined(None, &rows, &by_examples(&selection, &round.clients)))
}

fn run_trimmed(mut mean: TrimmedMean, round: &Round) -> Vec<f32> {
    let rows = rows(&round.clients);
    let mut combined = vec![0.0; rows[0].len()];
    mean.tile(&slices(&rows), &mut combined).unwrap();
    combined
}

fn run_q_fed_avg(case: &Case) {
    let params = &case.params;
    let learning_rate = number(params, "client_learning_rate");
    let rule = QFedAvg { q: number(params, "q"), learning_rate };
    let mut parameters = narrow(&case.initial);
    for round in &case.rounds {
        let rows = rows(&round.clients);
        let losses: Vec<f64> = round.clients.iter().map(|it| it.loss.unwrap()).collect();
        let coefficients = rule.coefficients(&losses, &norms(&parameters, &rows)).unwrap();
        parameters = combined(Some(&parameters), &rows, &coefficients);
        assert_close(&parameters, round.output.as_ref().unwrap(), "QFedAvg");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of devices")]
fn run_clipping(case: &Case) {
    let initial = case.params.get("clipping_norm").or(case.params.get("initial_clipping_norm"));
    let mut bound = initial.unwrap().as_f64().unwrap();
    let mut parameters = narrow(&case.initial);
    for round in &case.rounds {
        let rows = rows(&round.clients);
        let shares = vec![1.0 / rows.len() as f64; rows.len()];
        let norms = norms(&parameters, &rows);
        let clipped = NormBound::new(bound).unwrap().clip(&norms, &shares).unwrap();
        parameters = combined(Some(&parameters), &rows, &clipped.coefficients);
        let output = round.output.as_ref().unwrap();
        assert_close(&parameters[..CLIPPED], &output[..CLIPPED], &case.strategy);
        // The next round begins from what Flower came to.
        parameters = narrow(output);
        bound = round.bound_after.unwrap();
    }
}

#[test]
fn flower_strategies() {
    for case in flower().strategies {
        let round = &case.rounds[0];
        match case.strategy.as_str() {
            "FedAvg" | "FedAvgM" | "FedAdagrad" | "FedAdam" | "FedYogi" => run_optimizer(&case),
            "FedMedian" => {
                let median = TrimmedMean::median(round.clients.len()).unwrap();
                assert_close(&run_trimmed(median, round), round.output.as_ref().unwrap(), "median");
            }
            "FedTrimmedAvg" => {
                let beta = number(&case.params, "beta");
                let mean = TrimmedMean::new(round.clients.len(), beta).unwrap();
                assert_close(&run_trimmed(mean, round), round.output.as_ref().unwrap(), "trimmed");
            }
            strategy @ ("Krum" | "MultiKrum" | "Bulyan") => {
                match (run_selection(strategy, &case.params, round), &round.output) {
                    (Some(found), Some(expected)) => assert_close(&found, expected, strategy),
                    (found, expected) => assert!(found.is_none() && expected.is_none()),
                }
            }
            "QFedAvg" => run_q_fed_avg(&case),
            "DPServerFixed" | "DPServerAdaptive" => run_clipping(&case),
            other => panic!("no test of {other}"),
        }
    }
}
