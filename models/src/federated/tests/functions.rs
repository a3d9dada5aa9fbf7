//! Functions that Flower's strategies are made of.

use super::*;
use crate::federated::q_fed_avg::QFedAvg;
use crate::federated::robust::bulyan;
use crate::federated::robust::norm_bound::NormBound;
use crate::federated::robust::trimmed_mean::TrimmedMean;

fn numbers(function: &Value, name: &str) -> Vec<f64> {
    serde_json::from_value(function[name].clone()).unwrap()
}

fn table(function: &Value) -> Vec<Vec<f32>> {
    let rows: Vec<Vec<f64>> = serde_json::from_value(function["rows"].clone()).unwrap();
    rows.iter().map(|row| narrow(row)).collect()
}

/// Of each coordinate the mean of the values nearest to a reference.
pub(super) fn nearest_mean(rows: &[Vec<f32>], reference: &[f64], count: usize) -> Vec<f32> {
    let column = |(at, reference): (usize, &f64)| {
        let mut column: Vec<f32> = rows.iter().map(|row| row[at]).collect();
        column.sort_by(f32::total_cmp);
        bulyan::mean(bulyan::nearest_to(&column, *reference, count))
    };
    reference.iter().enumerate().map(column).collect()
}

fn clip(function: &Value) {
    let bound = NormBound::new(function["bound"].as_f64().unwrap()).unwrap();
    let rows = [narrow(&numbers(function, "input"))];
    let norms = norms(&vec![0.0; rows[0].len()], &rows);
    assert_close(&narrow(&norms), &[function["norm"].as_f64().unwrap()], "norm");
    let clipped = bound.clip(&norms, &[1.0]).unwrap();
    let found = combined(None, &rows, &clipped.coefficients);
    assert_close(&found, &numbers(function, "output"), "clipped");
}

/// `Delta / h` of one device: the whole step where it is alone.
fn q_fed_avg(function: &Value) {
    let number = |name: &str| function[name].as_f64().unwrap();
    let rule = QFedAvg { q: number("q"), learning_rate: 1.0 / number("lipschitz") };
    let (global, rows) =
        (narrow(&numbers(function, "global")), [narrow(&numbers(function, "trained"))]);
    let norms = norms(&global, &rows);
    let coefficients = rule.coefficients(&[number("loss")], &norms).unwrap();
    let steps = numbers(function, "delta").into_iter().zip(numbers(function, "global"));
    let expected: Vec<f64> = steps.map(|(delta, x)| x - delta / number("h")).collect();
    assert_close(&combined(Some(&global), &rows, &coefficients), &expected, "q-FedAvg");
}

#[test]
fn flower_functions() {
    for function in &flower().functions {
        let output = || numbers(function, "output");
        match function["fn"].as_str().unwrap() {
            "clip_inputs_inplace" => clip(function),
            "bulyan_n_closest" => {
                let count = usize::try_from(function["count"].as_u64().unwrap()).unwrap();
                let reference = numbers(function, "reference");
                let found = nearest_mean(&table(function), &reference, count);
                assert_close(&found, &output(), "nearest");
            }
            "krum_distance_matrix_squared" => {
                let distances = distances(&table(function));
                let points = distances.points();
                let all = (0..points).flat_map(|i| (0..points).map(move |j| (i, j)));
                let found = all.map(|(i, j)| distances.squared(i, j) as f32);
                assert_close(&found.collect::<Vec<_>>(), &output(), "distances");
            }
            "trim_mean" => {
                let rows = table(function);
                let fraction = function["fraction"].as_f64().unwrap();
                let mut mean = TrimmedMean::new(rows.len(), fraction).unwrap();
                let mut found = vec![0.0; rows[0].len()];
                mean.tile(&slices(&rows), &mut found).unwrap();
                assert_close(&found, &output(), "trimmed");
            }
            "qffl_delta_h" => q_fed_avg(function),
            other => panic!("no test of {other}"),
        }
    }
}
