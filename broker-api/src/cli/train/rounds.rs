//! Rounds on one line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jobs::id::{Millis, RoundNumber};
use jobs::report::{FailureCode, Progress};
use jobs::round::{Judgement, Outcome};
use jobs::training::Enough;

use crate::cli::table;
use crate::history::{MemberRecord, RoundRecord};
use crate::record::Waiting;

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
    let _ = write!(text, ", loss {}", table::loss(*loss));
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

/// Devices of a kind that a line names, at most.
const NAMED_MAX: usize = 5;

/// Whose updates are not in the new parameters, and why. Those for whom there was no room, or who were
/// not there, may be many; all are named by `dunlin rounds show`.
fn missing(round: &RoundRecord) -> String {
    let is = |member: &&MemberRecord, code| {
        member.failure.as_ref().is_some_and(|failure| failure.code == code)
    };
    let (crowd, others): (Vec<&MemberRecord>, Vec<&MemberRecord>) =
        round.missing().partition(|member| is(member, FailureCode::NoRoom));
    let (away, others): (Vec<&MemberRecord>, Vec<&MemberRecord>) =
        others.into_iter().partition(|member| is(member, FailureCode::NotThere));
    let name = |member: &&MemberRecord| format!("{} ({})", member.device, member.why());
    let mut texts: Vec<String> = others.iter().map(name).collect();
    texts.extend(away.iter().take(NAMED_MAX).map(name));
    match away.len().saturating_sub(NAMED_MAX) {
        0 => {}
        more => texts.push(format!("{more} more ({})", FailureCode::NotThere.as_str())),
    }
    match &crowd[..] {
        [] => {}
        [one] => texts.push(name(one)),
        [first, ..] => texts.push(format!("{} devices ({})", crowd.len(), first.why())),
    }
    texts.join(", ")
}

/// Who is at work still, if anyone is.
pub(in crate::cli) fn at_work_still(round: &RoundRecord) -> Option<String> {
    let devices: Vec<&str> = round.stragglers().map(|member| member.device.as_str()).collect();
    let named = devices.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    match devices.len() {
        0 => None,
        count if count > NAMED_MAX => {
            Some(format!("at work still: {named} and {} more", count - NAMED_MAX))
        }
        _ => Some(format!("at work still: {named}")),
    }
}

/// What is waited for, and for how long at most.
pub(in crate::cli) fn waiting(waiting: &Waiting, now: Millis) -> String {
    let Waiting { round, reason, until, .. } = waiting;
    let left = table::duration(until.since(now).0.saturating_mul(1000));
    format!("round {round}: {reason}, {left} at most")
}

/// The columns of the table but the last one.
pub(in crate::cli) fn row(round: &RoundRecord) -> String {
    let loss = round.loss.map_or_else(|| "-".to_owned(), table::loss);
    let accuracy = round.accuracy.map_or_else(|| "-".to_owned(), table::percent);
    let devices = format!("{}/{}", round.devices, round.invited);
    columns(round.round, &loss, &accuracy, &devices, &table::bytes(round.bytes))
        + &format!("  {:>8}", table::seconds(round.seconds))
}

/// The columns up to the time.
pub(in crate::cli) fn columns(
    round: u32,
    loss: &str,
    accuracy: &str,
    devices: &str,
    moved: &str,
) -> String {
    format!("{round:>5}  {loss:>8}  {accuracy:>8}  {devices:>7}  {moved:>9}")
}

/// What stands in the last column.
pub(in crate::cli) fn remarks(round: &RoundRecord) -> String {
    let missing = Some(missing(round)).filter(|missing| !missing.is_empty());
    let spent = round.privacy.map(|spent| format!("epsilon {:.4}", spent.epsilon));
    let failed = round.failure.as_ref().map(|failure| format!("failed: {}", failure.message));
    let judged = beside(round);
    missing
        .into_iter()
        .chain(at_work_still(round))
        .chain(spent)
        .chain(judged)
        .chain(failed)
        .collect::<Vec<_>>()
        .join("  ")
}

/// What is to be said where the broker was asked to judge: what devices said beside it, or why it
/// did not judge.
pub(in crate::cli) fn beside(round: &RoundRecord) -> Option<String> {
    let devices = round.devices_accuracy.map(table::percent);
    match (round.judgement.as_ref()?, devices) {
        (Judgement::Judged(_), devices) => devices.map(|share| format!("devices: {share}")),
        (Judgement::Missing(why), None) => Some(format!("not judged: {}", why.message)),
        (Judgement::Missing(why), Some(share)) => {
            Some(format!("devices: {share}, the broker has not judged: {}", why.message))
        }
    }
}

/// A round as a line of the table.
pub(in crate::cli) fn line(round: &RoundRecord) -> String {
    format!("{}  {}", row(round), remarks(round)).trim_end().to_owned()
}

/// A round as a sentence.
pub(in crate::cli) fn sentence(round: &RoundRecord) -> String {
    let mut parts = vec![match &round.failure {
        Some(failure) => format!("failed: {}: {}", failure.code.as_str(), failure.message),
        None => format!("{} updates", round.devices),
    }];
    if let (Some(loss), Some(accuracy)) = (round.loss, round.accuracy) {
        parts.push(format!("loss {}", table::loss(loss)));
        parts.push(format!("accuracy {}", table::percent(accuracy)));
    }
    if let Some(spent) = &round.privacy {
        parts.push(format!("epsilon {:.4} at delta {}", spent.epsilon, spent.delta));
    }
    parts.extend(beside(round));
    let missing = missing(round);
    if !missing.is_empty() {
        parts.push(format!("missing: {missing}"));
    }
    parts.extend(at_work_still(round));
    format!("round {}: {}", round.round, parts.join(", "))
}

/// Why a job needed fewer rounds than were asked for, or has another round's parameters than the
/// last one's: sentences that end their line, or nothing.
pub(in crate::cli) fn ended_early(
    rounds: &[Outcome],
    result: Option<RoundNumber>,
    enough: Option<Enough>,
) -> String {
    let Some(last) = rounds.iter().rfind(|round| round.failure.is_none()) else {
        return String::new();
    };
    let mut text = match (enough, last.best) {
        (Some(Enough::TargetAccuracy), _) => "the target accuracy is reached\n".to_owned(),
        (Some(Enough::PrivacyBudget), _) => "the privacy budget is spent\n".to_owned(),
        (Some(Enough::EarlyStopping), Some(best)) => {
            format!("no better {} in {} rounds\n", best.metric.as_str(), best.stale)
        }
        _ => String::new(),
    };
    if let (Some(result), Some(best)) = (result, last.best)
        && result != last.round
    {
        let (metric, value) = (best.metric.as_str(), table::loss(best.value));
        let _ = writeln!(text, "round {result} was the best: {metric} {value}");
    }
    text
}

/// Rounds up to the one that is the result, in a few words.
pub(in crate::cli) fn summary(rounds: &[Outcome], result: Option<RoundNumber>) -> String {
    let good = rounds.iter().filter(|round| round.failure.is_none());
    let good = good.filter(|round| result.is_none_or(|result| round.round <= result));
    let good: Vec<&Outcome> = good.collect();
    let mut devices: Vec<_> =
        good.iter().flat_map(|round| round.updates.iter().map(|(device, _)| device)).collect();
    devices.sort();
    devices.dedup();
    let mut text = format!("{} rounds, {} devices", good.len(), devices.len());
    if let Some(spent) = rounds.last().and_then(|round| round.privacy) {
        let _ = write!(text, ", epsilon {:.4} at delta {}", spent.epsilon, spent.delta);
    }
    let last = good.last().map(|round| RoundRecord::of(round)).filter(|round| round.judged);
    match last {
        Some(RoundRecord { accuracy: Some(accuracy), examples, .. }) => {
            format!("{text}, accuracy {} on {examples} test examples", table::percent(accuracy))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobs::report::Failure;
    use jobs::round::Verdict;
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
        let round = RoundRecord::of(&outcome);
        assert!(line(&round).contains("  a (refused: far off), c ("), "{}", line(&round));
        assert!(sentence(&round).contains("1 updates") && sentence(&round).contains("far off"));
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
        let line = line(&RoundRecord::of(&outcome));
        let expected = "    2    0.2500    80.0 %      2/3     5.0 KB    250 ms  \
            c (device_lost: silent for 6 s)";
        assert_eq!(line, expected);
        for column in ["loss", "accuracy", "devices", "moved", "time"] {
            let end = HEADING.find(column).unwrap() + column.len();
            assert_eq!(line.as_bytes()[end], b' ', "{column}");
            assert_ne!(line.as_bytes()[end - 1], b' ', "{column}");
        }
        let text = "2 rounds, 2 devices, accuracy 80.0 % on 150 test examples";
        assert_eq!(summary(&[outcome.clone(), outcome], None), text);
    }

    #[test]
    fn a_job_that_ends_early_says_why() {
        let mut rounds = vec![outcome(&json!([])), outcome(&json!([]))];
        rounds[0].round = RoundNumber(1);
        let (first, last) = (Some(RoundNumber(1)), Some(RoundNumber(2)));
        assert_eq!(ended_early(&rounds, last, Some(Enough::Rounds)), "");
        let target = ended_early(&rounds, last, Some(Enough::TargetAccuracy));
        assert_eq!(target, "the target accuracy is reached\n");
        let best = json!({"round": 1, "metric": "loss", "value": 0.25, "stale": 3});
        rounds[1].best = serde_json::from_value(best).unwrap();
        let text = ended_early(&rounds, first, Some(Enough::EarlyStopping));
        assert_eq!(text, "no better loss in 3 rounds\nround 1 was the best: loss 0.2500\n");
        assert!(summary(&rounds, first).starts_with("1 rounds, "));
    }

    #[test]
    fn those_for_whom_there_was_no_room_are_counted() {
        let mut outcome = outcome(&json!([]));
        outcome.missing.clear();
        for (device, code) in
            [("x", FailureCode::DeviceLost), ("y", FailureCode::NoRoom), ("z", FailureCode::NoRoom)]
        {
            outcome.missing.push((device.parse().unwrap(), Failure::new(code, "why")));
        }
        let said = missing(&RoundRecord::of(&outcome));
        assert!(said.ends_with("x (device_lost: why), 2 devices (no_room: why)"), "{said}");
        outcome.missing.pop();
        let said = missing(&RoundRecord::of(&outcome));
        assert!(said.ends_with("y (no_room: why)"), "{said}");
    }

    #[test]
    fn who_was_not_there_and_who_is_at_work_still_are_told() {
        let mut outcome = outcome(&json!([]));
        outcome.missing.clear();
        let offline = || Failure::new(FailureCode::NotThere, "offline");
        outcome.missing.push(("x".parse().unwrap(), offline()));
        outcome.stragglers = vec!["d".parse().unwrap(), "e".parse().unwrap()];
        let record = RoundRecord::of(&outcome);
        let line = line(&record);
        assert!(line.contains("  2/4  "), "{line}");
        assert!(line.ends_with("  x (not_there: offline)  at work still: d, e"), "{line}");
        assert!(sentence(&record).ends_with("x (not_there: offline), at work still: d, e"));
        let more = (0..9).map(|number| (format!("z{number}").parse().unwrap(), offline()));
        outcome.missing.extend(more);
        let said = missing(&RoundRecord::of(&outcome));
        assert!(said.ends_with("z3 (not_there: offline), 5 more (not_there)"), "{said}");
    }

    #[test]
    fn what_a_private_job_has_spent_is_told() {
        let mut outcome = outcome(&json!([]));
        outcome.privacy = serde_json::from_value(json!({"rounds": 2, "epsilon": 1.5,
            "delta": 0.001, "noise_multiplier": 1.0, "sampling_rate": 1.0, "norm": 1.0}))
        .unwrap();
        let record = RoundRecord::of(&outcome);
        assert!(line(&record).ends_with("  epsilon 1.5000"), "{}", line(&record));
        assert!(sentence(&record).contains("epsilon 1.5000 at delta 0.001"));
        assert!(summary(&[outcome], None).contains("epsilon 1.5000 at delta 0.001"));
    }

    #[test]
    fn what_devices_say_stands_beside_the_brokers_judgement() {
        let judged = |accuracy: f64| json!({"examples": 10, "loss": 0.25, "accuracy": accuracy, "duration_ms": 1});
        let mut outcome = outcome(&json!([["a", judged(0.5)]]));
        outcome.missing.clear();
        let mut told = |judgement: serde_json::Value| {
            outcome.judgement = serde_json::from_value(judgement).unwrap();
            let record = RoundRecord::of(&outcome);
            assert!(sentence(&record).ends_with(&remarks(&record)), "{}", sentence(&record));
            line(&record)
        };
        let line = told(json!({"judged": judged(0.75)}));
        assert!(line.contains("    75.0 %") && line.ends_with("  devices: 50.0 %"), "{line}");
        let line = told(json!({"missing": {"code": "unknown_dataset", "message": "no data"}}));
        assert!(line.ends_with("devices: 50.0 %, the broker has not judged: no data"), "{line}");
        outcome.evaluations.clear();
        let record = RoundRecord::of(&outcome);
        assert_eq!(beside(&record).unwrap(), "not judged: no data");
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
        let said = sentence(&RoundRecord::of(&outcome));
        assert!(said.contains("loss 1.2500, accuracy 50.0 %"), "{said}");
        assert_eq!(summary(&[outcome.clone()], None), "1 rounds, 2 devices");
        outcome.updates.clear();
        let code = jobs::report::FailureCode::NoQuorum;
        outcome.failure = Some(Failure::new(code, "0 of 1 updates"));
        let line = line(&RoundRecord::of(&outcome));
        assert!(line.ends_with("failed: 0 of 1 updates"), "{line}");
        assert!(line.contains("         -         -      0/1"), "{line}");
    }
}
