//! What Flower's own unit tests say of rounds, reports and promises; `tests/flower/main.rs` lists
//! where each of them is met.

#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
#![expect(clippy::cast_precision_loss, reason = "numbers of devices")]

use serde_json::{Value, json};

use super::*;
use crate::privacy::update_noise_multiplier;
use crate::spec::{AdaptiveClip, JobSpec, validate};

fn facts(algo: &str) -> Vec<Value> {
    let all: Value =
        serde_json::from_str(include_str!("../../../../tests/flower/unit_tests.json")).unwrap();
    let mut facts = all["tests"].as_array().unwrap().clone();
    facts.retain(|fact| fact["algo"] == algo);
    assert!(!facts.is_empty(), "{algo}");
    facts
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found}, {expected}");
}

/// A round that has been told of so many devices, and whom it invited.
fn begun(participation: Participation, there: usize) -> (Round, Vec<DeviceId>) {
    let (mut round, _) = Round::begin(Millis(0), plan(participation));
    let effects = round.step(Millis(0), &Event::DevicesFound { devices: devices(there) });
    (round, offered(&effects, Purpose::Train))
}

fn offered(effects: &[Effect], to_do: Purpose) -> Vec<DeviceId> {
    let device = |effect: &Effect| {
        let Effect::Offer { device, purpose, .. } = effect else { return None };
        (*purpose == to_do).then(|| device.clone())
    };
    effects.iter().filter_map(device).collect()
}

fn fail(round: &mut Round, device: &DeviceId, purpose: Purpose) -> Vec<Effect> {
    round.step(Millis(1), &failed(device, purpose, 1, FailureCode::Diverged))
}

/// How a round ends whose devices give these judgements, or none.
fn judged(judgements: &[Option<EvaluationReport>]) -> Outcome {
    let participation = Participation { deadline_ms: Millis(60_000), ..Participation::default() };
    let (mut round, invited) = begun(participation, judgements.len());
    for device in &invited {
        give(&mut round, 1, device, 1, 1);
    }
    let mut effects = round.step(Millis(2), &Event::Aggregated(Aggregate::of(blob(9))));
    for (device, judgement) in devices(judgements.len()).into_iter().zip(judgements) {
        effects = match judgement.clone() {
            Some(evaluation) => {
                let attempt = Attempt(1);
                round.step(Millis(3), &Event::EvaluationReceived { device, attempt, evaluation })
            }
            None => fail(&mut round, &device, Purpose::Evaluate),
        };
    }
    if judgements.is_empty() {
        effects = round.step(Millis(60_000), &Event::Tick);
    }
    outcome(&effects).clone()
}

fn weighing(examples: u64, loss: f64, accuracy: f64) -> EvaluationReport {
    EvaluationReport { examples, loss, ..judgement(accuracy) }
}

/// `max(int(available * fraction), min)`: so many train, and the same judge what they made.
#[test]
fn a_fraction_is_invited() {
    for fact in facts("client_selection_count") {
        let (params, expected) = (&fact["params"], count(&fact["expected"]));
        let participation = Participation {
            selection: Selection::Fraction { fraction: number(&params["fraction"]) },
            quorum: count(&params["min_clients"]) as u32,
            ..Participation::default()
        };
        let (mut round, invited) = begun(participation, count(&fact["available"]));
        assert_eq!(invited.len(), expected, "{fact}");
        for device in &invited {
            give(&mut round, 1, device, 1, 1);
        }
        let effects = round.step(Millis(2), &Event::Aggregated(Aggregate::of(blob(9))));
        assert_eq!(offered(&effects, Purpose::Evaluate).len(), expected, "{fact}");
    }
}

/// Flower's rate is of those that answered; here a job says how many updates are needed.
#[test]
fn a_quorum_decides() {
    for fact in facts("quorum") {
        let (results, failures) = (count(&fact["results"]), count(&fact["failures"]));
        let all = results + failures;
        let quorum = (number(&fact["min_completion_rate"]) * all as f64).ceil() as u32;
        let deadline_ms = Millis(60_000);
        let participation =
            Participation { quorum: quorum.max(1), deadline_ms, ..Participation::default() };
        let (mut round, invited) = begun(participation, all);
        assert_eq!(invited.len(), all);
        let mut effects = Vec::new();
        for (index, device) in invited.iter().enumerate() {
            effects.extend(if index < results {
                give(&mut round, 1, device, 1, 1)
            } else {
                fail(&mut round, device, Purpose::Train)
            });
        }
        if all == 0 {
            effects = round.step(deadline_ms, &Event::Tick);
        }
        if fact["expected"] == "aggregated" {
            let Some(Effect::Aggregate { updates, .. }) = effects.last() else {
                panic!("{fact}: {effects:?}")
            };
            assert_eq!(updates.len(), results);
        } else {
            let failure = outcome(&effects).failure.as_ref().unwrap();
            assert_eq!(failure.code, FailureCode::NoQuorum, "{fact}");
        }
    }
}

/// A judgement has no quorum: it is that of the devices which gave one, and which these are is told.
#[test]
fn judgements_that_came_count() {
    for fact in facts("quorum_evaluate") {
        let (results, failures) = (count(&fact["results"]), count(&fact["failures"]));
        let loss = number(&fact["loss"]);
        let mut judgements = vec![Some(weighing(5, loss, 0.5)); results];
        judgements.resize(results + failures, None);
        let outcome = judged(&judgements);
        let expected = (results > 0).then_some(loss);
        assert_eq!((outcome.loss(), outcome.evaluations.len()), (expected, results), "{fact}");
        let differs = fact["test"].as_str().unwrap().ends_with("evaluate_not_enough_results");
        assert_eq!(expected != fact["expected"].as_f64(), differs, "{fact}");
    }
}

#[test]
fn losses_are_averaged_by_examples() {
    for fact in facts("weighted_loss_avg") {
        let input = fact["input"].as_array().unwrap().iter();
        let judgements: Vec<_> =
            input.map(|it| Some(weighing(count(&it[0]) as u64, number(&it[1]), 0.0))).collect();
        assert_near(judged(&judgements).loss().unwrap(), number(&fact["expected"]));
    }
}

/// Loss and accuracy are all the metrics that there are; examples weigh them and are none.
#[test]
fn metrics_are_averaged_by_examples() {
    let fact = &facts("metric average")[0];
    let weights: Vec<f64> = fact["weights"].as_array().unwrap().iter().map(number).collect();
    let metrics = [(0.5, 0.25), (2.0, 0.75), (3.5, 1.0)];
    let judgements = weights.iter().zip(metrics);
    let judgements: Vec<_> = judgements
        .map(|(weight, (loss, accuracy))| Some(weighing((100.0 * weight) as u64, loss, accuracy)))
        .collect();
    let outcome = judged(&judgements);
    let mean = |metric: fn((f64, f64)) -> f64| {
        weights.iter().zip(metrics).map(|(weight, it)| weight * metric(it)).sum::<f64>()
    };
    assert_near(outcome.loss().unwrap(), mean(|(loss, _)| loss));
    assert_near(outcome.accuracy().unwrap(), mean(|(_, accuracy)| accuracy));
}

/// A report without what is needed of it, or with it twice, is none. The names of arrays are those
/// of the model: `models` compares them.
#[test]
fn reports_are_whole() {
    let whole = serde_json::to_value(update(1)).unwrap();
    let read = |text: &str| serde_json::from_str::<UpdateReport>(text).is_ok();
    let without = |name: &str| {
        let mut report = whole.clone();
        report.as_object_mut().unwrap().remove(name);
        report
    };
    let renamed = |name: &str, other: &str| {
        let mut report = without(name);
        report[other] = whole[name].clone();
        report
    };
    let twice = |name: &str| {
        let text = whole.to_string();
        let again = format!("{{\"{name}\":{},", whole[name]);
        text.replacen('{', &again, 1)
    };
    assert!(read(&whole.to_string()));
    let fact = &facts("reply_validation")[0];
    for wrong in fact["reject"].as_array().unwrap() {
        let report = match wrong.as_str().unwrap() {
            "weight is a list" => {
                let mut report = without("examples");
                report["examples"] = json!([10]);
                report.to_string()
            }
            "no weight key" => without("examples").to_string(),
            "no metrics" => without("loss").to_string(),
            "two array records" => twice("parameters"),
            "two metric records" => twice("loss"),
            "different record names" => renamed("parameters", "weights").to_string(),
            "different metric keys" => renamed("accuracy", "top_5").to_string(),
            "different array names" => continue,
            other => panic!("no test of {other}"),
        };
        assert!(!read(&report), "{wrong}: {report}");
    }
}

/// Where Flower makes no noise at all, or cannot, a job is refused.
#[test]
fn an_adaptive_norm_takes_a_part_of_the_noise() {
    for fact in facts("adaptive_noise") {
        let noise = number(&fact["noise_multiplier"]);
        let planned = number(&fact["num_sampled_clients"]) as u32;
        let count_deviation = fact["clipped_count_stddev"].as_f64();
        let clip = AdaptiveClip { count_deviation, ..AdaptiveClip::default() };
        let deviation = clip.count_deviation(planned);
        let found = update_noise_multiplier(noise, deviation);
        let spec: JobSpec = serde_json::from_value(json!({
            "deadline_ms": 1,
            "work": {
                "kind": "train", "model": "mlp", "dataset": "digits", "rounds": 1,
                "participation": { "devices": planned },
                "privacy": {
                    "clip": { "adaptive": clip }, "noise_multiplier": noise, "delta": 1e-5,
                    "epsilon_budget": 1e6,
                },
            },
        }))
        .unwrap();
        let problems: Vec<_> = validate(&spec).into_iter().map(|problem| problem.field).collect();
        let expected = fact["expected"].as_array();
        if let Some(expected) = expected.filter(|_| noise > 0.0) {
            assert_near(deviation, number(&expected[0]));
            assert_near(found, number(&expected[1]));
            assert_eq!(problems, [""; 0], "{fact}");
        } else {
            assert_eq!(problems, ["work.privacy.noise_multiplier"], "{fact}");
            let is_none = expected.is_none_or(|expected| number(&expected[1]) <= 0.0);
            assert!(is_none && (!found.is_finite() || found <= 0.0), "{fact}: {found}");
        }
    }
}
