//! Rounds on one line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jobs::id::Millis;
use jobs::report::{Failure, Progress, UpdateReport};
use jobs::round::{Outcome, Verdict};

use crate::cli::table;

/// Stands above the lines of [`line()`].
pub(in crate::cli) const HEADING: &str =
    "round      loss  accuracy  devices      moved      time  missing";

/// How far a device is, in words.
pub(in crate::cli) fn progress(progress: &Progress) -> String {
    let Progress { step, steps, loss, examples_per_second, .. } = progress;
    let mut text = format!("step {step} of {steps}");
    if let Some(epoch) = progress.epoch {
        let _ = write!(text, ", epoch {epoch}");
    }
    let _ = write!(text, ", loss {loss:.4}");
    if let Some(accuracy) = progress.accuracy {
        let _ = write!(text, ", accuracy {}", table::percent(accuracy));
    }
    let _ = write!(text, ", {examples_per_second:.0} examples/s");
    if let Some(Millis(remaining)) = progress.remaining_ms {
        let _ = write!(text, ", {}", left(remaining));
    }
    text
}

/// The share of its steps that a device has taken.
#[expect(clippy::cast_precision_loss, reason = "a share is shown")]
pub(in crate::cli) fn share(progress: Option<&Progress>) -> f64 {
    progress.map_or(0.0, |progress| progress.step as f64 / progress.steps.max(1) as f64)
}

/// How far devices are, on one line: of a single one all that is known, of several their shares
/// and the longest time left.
pub(in crate::cli) fn on_the_way(devices: &BTreeMap<String, Option<Progress>>) -> String {
    if let (1, Some((device, Some(only)))) = (devices.len(), devices.first_key_value()) {
        return format!("{device}: {}", progress(only));
    }
    let each = devices
        .iter()
        .map(|(device, progress)| format!("{device} {:.0} %", share(progress.as_ref()) * 100.0));
    let mut text = each.collect::<Vec<_>>().join(", ");
    let remaining = devices.values().flatten().filter_map(|progress| progress.remaining_ms).max();
    if let Some(Millis(longest)) = remaining {
        text = format!("{}; {text}", left(longest));
    }
    text
}

/// A time to wait: `12 s left`, `3:05 left`, `2:00:07 left`.
fn left(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s left"),
        (0, _) => format!("{minutes}:{rest:02} left"),
        _ => format!("{hours}:{minutes:02}:{rest:02} left"),
    }
}

/// Loss and accuracy of a round: the judgement of the new model when there is one, else what
/// devices said of their own training; both weighted by examples.
struct Figures {
    loss: f64,
    accuracy: f64,
    examples: u64,
    judged: bool,
}

#[expect(clippy::cast_precision_loss, reason = "example counts are far below 2^53")]
fn figures(outcome: &Outcome) -> Option<Figures> {
    if let (Some(loss), Some(accuracy)) = (outcome.loss(), outcome.accuracy()) {
        let examples = outcome.evaluations.iter().map(|(_, judged)| judged.examples).sum();
        return Some(Figures { loss, accuracy, examples, judged: true });
    }
    let examples: u64 = outcome.updates.iter().map(|(_, update)| update.examples).sum();
    let mean = |value: fn(&UpdateReport) -> f64| {
        let weighted = outcome.updates.iter().map(|(_, u)| u.examples as f64 * value(u));
        weighted.sum::<f64>() / examples as f64
    };
    (examples > 0).then(|| Figures {
        loss: mean(|update| update.loss),
        accuracy: mean(|update| update.accuracy),
        examples,
        judged: false,
    })
}

/// Parameters that went to the devices and came back.
fn moved(outcome: &Outcome) -> u64 {
    let up: u64 = outcome.updates.iter().map(|(_, update)| update.parameters.size.0).sum();
    let invited = (outcome.updates.len() + outcome.missing.len()) as u64;
    up + invited * outcome.parameters.size.0
}

/// Whose updates are not in the new parameters, and why.
fn missing(outcome: &Outcome) -> String {
    let refused = outcome.influences.iter().filter(|(_, it)| it.verdict == Verdict::Refused);
    let refused = refused.map(|(device, it)| format!("{device} (refused: {})", it.reason));
    let names = outcome.missing.iter().map(|(device, failure)| {
        let Failure { code, message } = failure;
        if message.is_empty() {
            format!("{device} ({})", code.as_str())
        } else {
            format!("{device} ({}: {message})", code.as_str())
        }
    });
    names.chain(refused).collect::<Vec<_>>().join(", ")
}

/// A round as a line of the table.
pub(in crate::cli) fn line(outcome: &Outcome) -> String {
    let figures = figures(outcome);
    let loss = figures.as_ref().map_or_else(|| "-".to_owned(), |f| format!("{:.4}", f.loss));
    let accuracy = figures.as_ref().map_or_else(|| "-".to_owned(), |f| table::percent(f.accuracy));
    let invited = outcome.updates.len() + outcome.missing.len();
    let devices = format!("{}/{invited}", outcome.updates.len());
    let time = table::duration(outcome.ended_at.since(outcome.started_at).0 * 1000);
    let mut line = format!(
        "{:>5}  {loss:>8}  {accuracy:>8}  {devices:>7}  {:>9}  {time:>8}  {}",
        outcome.round,
        table::bytes(moved(outcome)),
        missing(outcome),
    );
    if let Some(failure) = &outcome.failure {
        line = format!("{}  failed: {}", line.trim_end(), failure.message);
    }
    line.trim_end().to_owned()
}

/// A round as a sentence.
pub(in crate::cli) fn sentence(outcome: &Outcome) -> String {
    let mut parts = vec![match &outcome.failure {
        Some(failure) => format!("failed: {}: {}", failure.code.as_str(), failure.message),
        None => format!("{} updates", outcome.updates.len()),
    }];
    if let Some(figures) = figures(outcome) {
        parts.push(format!("loss {:.4}", figures.loss));
        parts.push(format!("accuracy {}", table::percent(figures.accuracy)));
    }
    let missing = missing(outcome);
    if !missing.is_empty() {
        parts.push(format!("missing: {missing}"));
    }
    format!("round {}: {}", outcome.round, parts.join(", "))
}

/// All rounds in a few words.
pub(in crate::cli) fn summary(rounds: &[Outcome]) -> String {
    let good: Vec<&Outcome> = rounds.iter().filter(|round| round.failure.is_none()).collect();
    let mut devices: Vec<_> =
        good.iter().flat_map(|round| round.updates.iter().map(|(device, _)| device)).collect();
    devices.sort();
    devices.dedup();
    let text = format!("{} rounds, {} devices", good.len(), devices.len());
    match good.last().and_then(|round| figures(round)).filter(|figures| figures.judged) {
        None => text,
        Some(Figures { accuracy, examples, .. }) => {
            format!("{text}, accuracy {} on {examples} test examples", table::percent(accuracy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn blob(size: u64) -> serde_json::Value {
        json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": size})
    }

    #[test]
    fn a_refused_update_is_missing() {
        let mut outcome = outcome(&json!([]));
        let reason = "far off".to_owned();
        let refused = jobs::round::Influence { verdict: Verdict::Refused, reason };
        outcome.influences = vec![("a".parse().unwrap(), refused)];
        assert!(line(&outcome).ends_with("a (refused: far off)"), "{}", line(&outcome));
        assert!(sentence(&outcome).contains("missing: ") && sentence(&outcome).contains("far off"));
    }

    fn outcome(evaluations: &serde_json::Value) -> Outcome {
        let update = |examples: u64, loss: f64| {
            json!({"parameters": blob(1000), "examples": examples, "loss": loss,
                "accuracy": 0.5, "steps": 1, "duration_ms": 1, "engine": "native"})
        };
        serde_json::from_value(json!({
            "round": 2, "parameters": blob(1000), "failure": null,
            "updates": [["a", update(300, 1.0)], ["b", update(100, 2.0)]],
            "evaluations": evaluations,
            "missing": [["c", {"code": "device_lost", "message": "silent for 6 s"}]],
            "started_at": 1000, "ended_at": 1250,
        }))
        .unwrap()
    }

    #[test]
    fn a_round_is_a_line_under_the_heading() {
        let judged = |accuracy: f64, examples: u64| json!({"examples": examples, "loss": 0.25, "accuracy": accuracy, "duration_ms": 1});
        let outcome = outcome(&json!([["a", judged(0.9, 100)], ["b", judged(0.6, 50)]]));
        let line = line(&outcome);
        let expected = "    2    0.2500    80.0 %      2/3     5.0 KB    250 ms  \
            c (device_lost: silent for 6 s)";
        assert_eq!(line, expected);
        for column in ["loss", "accuracy", "devices", "moved", "time"] {
            let end = HEADING.find(column).unwrap() + column.len();
            assert_eq!(line.as_bytes()[end], b' ', "{column}");
            assert_ne!(line.as_bytes()[end - 1], b' ', "{column}");
        }
        let text = "2 rounds, 2 devices, accuracy 80.0 % on 150 test examples";
        assert_eq!(summary(&[outcome.clone(), outcome]), text);
    }

    #[test]
    fn progress_is_told_as_far_as_it_is_known() {
        let old = json!({"step": 3, "steps": 9, "loss": 0.5, "examples_per_second": 80.4});
        let mut new = old.clone();
        let words = |value: &serde_json::Value| {
            progress(&serde_json::from_value::<Progress>(value.clone()).unwrap())
        };
        assert_eq!(words(&old), "step 3 of 9, loss 0.5000, 80 examples/s");
        new["epoch"] = json!(2);
        new["accuracy"] = json!(0.25);
        for (ms, left) in [(0, "0 s"), (59_001, "1:00"), (185_000, "3:05"), (7_207_000, "2:00:07")]
        {
            new["remaining_ms"] = json!(ms);
            let expected = format!(
                "step 3 of 9, epoch 2, loss 0.5000, accuracy 25.0 %, 80 examples/s, {left} left"
            );
            assert_eq!(words(&new), expected);
        }
    }

    #[test]
    fn devices_on_the_way_fit_on_a_line() {
        let at = |step, remaining| {
            Some(Progress { step, steps: 8, remaining_ms: remaining, ..Progress::default() })
        };
        let named = |all: &[Option<Progress>]| -> BTreeMap<String, Option<Progress>> {
            let names = ["a", "b", "c"].map(str::to_owned);
            names.into_iter().zip(all.iter().copied()).collect()
        };
        let one = named(&[at(2, Some(Millis(1500)))]);
        assert_eq!(on_the_way(&one), "a: step 2 of 8, loss 0.0000, 0 examples/s, 2 s left");
        let several = named(&[at(2, Some(Millis(1500))), None, at(4, Some(Millis(61_000)))]);
        assert_eq!(on_the_way(&several), "1:01 left; a 25 %, b 0 %, c 50 %");
        assert_eq!(on_the_way(&named(&[at(8, None), None])), "a 100 %, b 0 %");
        assert_eq!(on_the_way(&BTreeMap::new()), "");
    }

    #[test]
    fn without_a_judgement_training_speaks() {
        let mut outcome = outcome(&json!([]));
        assert!(sentence(&outcome).contains("loss 1.2500, accuracy 50.0 %"));
        assert_eq!(summary(&[outcome.clone()]), "1 rounds, 2 devices");
        outcome.updates.clear();
        let code = jobs::report::FailureCode::NoQuorum;
        outcome.failure = Some(Failure::new(code, "0 of 1 updates"));
        assert!(line(&outcome).ends_with("failed: 0 of 1 updates"), "{}", line(&outcome));
        assert!(line(&outcome).contains("         -         -      0/1"), "{}", line(&outcome));
    }
}
