//! The history of a training: one row for each round that ended, and what each device had to do
//! with it; pure.
//!
//! HTTP and the operator's commands show the same rows; [`RoundRecord::csv`] is one as CSV.

use std::collections::BTreeMap;

use jobs::id::{Bytes, DeviceId, Millis};
use jobs::privacy::Spent;
use jobs::report::{EvaluationReport, Failure, UpdateReport};
use jobs::round::{Judgement, Outcome, Verdict};
use serde::{Deserialize, Serialize};

/// A round that ended, as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Which.
    pub round: u32,
    /// When it began, since the Unix epoch.
    pub started_at: Millis,
    /// From its beginning to its end.
    pub seconds: f64,
    /// Of the new parameters if `judged`, as the broker says where it was asked, else as devices
    /// do; of their own training otherwise. The mean weighted by examples.
    pub loss: Option<f64>,
    /// As `loss`, 0 to 1.
    pub accuracy: Option<f64>,
    /// Whether loss and accuracy are of test examples.
    pub judged: bool,
    /// Examples behind loss and accuracy.
    pub examples: u64,
    /// The broker's judgement, where it was asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// Loss as devices judged beside the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_loss: Option<f64>,
    /// As `devices_loss`, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_accuracy: Option<f64>,
    /// Devices whose updates are in the new parameters.
    pub devices: usize,
    /// Devices that were invited, or at work since earlier rounds.
    pub invited: usize,
    /// Bytes of parameters that went to devices, and of updates that came back, with control variates
    /// and the stages of a secure aggregation.
    pub bytes: u64,
    /// What a private job has spent with this round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Spent>,
    /// Why there are no new parameters.
    pub failure: Option<Failure>,
    /// Everyone invited, and who was not because it was not there, is in quarantine, or the round had no
    /// room for it; ordered by device.
    pub members: Vec<MemberRecord>,
}

/// A device in a round that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Who.
    pub device: DeviceId,
    /// What became of its update.
    pub part: Part,
    /// Why it is `missing`, `reduced` or `refused`.
    pub reason: Option<String>,
    /// Why it is missing, as a code and in words.
    pub failure: Option<Failure>,
    /// What it said of its training.
    pub update: Option<UpdateReport>,
    /// Bytes that it sent of it: with its control variate, and with all that it said at the stages of
    /// a secure aggregation.
    #[serde(default)]
    pub sent: Bytes,
    /// Its judgement of the new parameters.
    pub evaluation: Option<EvaluationReport>,
}

/// What became of a device's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It counts as it is.
    Counted,
    /// It counts less than it would alone.
    Reduced,
    /// The strategy does not count it.
    Refused,
    /// There is none.
    Missing,
    /// It is at work still, and a later round takes its update.
    Straggler,
}

impl Part {
    /// The word in JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Counted => "counted",
            Part::Reduced => "reduced",
            Part::Refused => "refused",
            Part::Missing => "missing",
            Part::Straggler => "straggler",
        }
    }
}

impl RoundRecord {
    /// What CSV has above its rows.
    pub const CSV_HEADING: &str = "round,seconds,loss,accuracy,devices,invited,bytes,failure,\
        judged_by,devices_loss,devices_accuracy,epsilon\n";

    /// What CSV has above rows of devices.
    pub const DEVICES_CSV_HEADING: &str = "round,device,part,examples,loss,accuracy,seconds,\
        bytes,test_examples,test_loss,test_accuracy,reason\n";

    /// The record of a round.
    pub fn of(outcome: &Outcome) -> Self {
        let members = members(outcome);
        let figures = figures(outcome);
        let beside = outcome.judgement.as_ref();
        let counts = |member: &&MemberRecord| matches!(member.part, Part::Counted | Part::Reduced);
        let Millis(took) = outcome.ended_at.since(outcome.started_at);
        #[expect(clippy::cast_precision_loss, reason = "a round is far shorter than 2^53 ms")]
        let seconds = took as f64 / 1000.0;
        Self {
            round: outcome.round.0,
            started_at: outcome.started_at,
            seconds,
            loss: figures.as_ref().map(|figures| figures.loss),
            accuracy: figures.as_ref().map(|figures| figures.accuracy),
            judged: figures.as_ref().is_some_and(|figures| figures.judged),
            examples: figures.as_ref().map_or(0, |figures| figures.examples),
            judgement: outcome.judgement.clone(),
            devices_loss: beside.and_then(|_| outcome.devices_loss()),
            devices_accuracy: beside.and_then(|_| outcome.devices_accuracy()),
            devices: members.iter().filter(counts).count(),
            invited: outcome.invited(),
            bytes: moved(outcome),
            privacy: outcome.privacy,
            failure: outcome.failure.clone(),
            members,
        }
    }

    /// Everyone whose update is not in the new parameters.
    pub fn missing(&self) -> impl Iterator<Item = &MemberRecord> {
        let without = |member: &&MemberRecord| matches!(member.part, Part::Missing | Part::Refused);
        self.members.iter().filter(without)
    }

    /// Who was at work still when it ended.
    pub fn stragglers(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.iter().filter(|member| member.part == Part::Straggler)
    }

    /// Whose judgement loss and accuracy are; nobody's when they are of the devices' own training.
    pub fn judged_by(&self) -> Option<&'static str> {
        let by = if self.judgement.is_some() { "broker" } else { "devices" };
        self.judged.then_some(by)
    }

    /// The record as a row under [`RoundRecord::CSV_HEADING`] (RFC 4180); what is not known is
    /// empty.
    pub fn csv(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let failure = self.failure.as_ref().map_or_else(String::new, |failure| {
            csv_text(&format!("{}: {}", failure.code.as_str(), failure.message))
        });
        let Self { round, seconds, devices, invited, bytes, .. } = self;
        let (loss, accuracy) = (number(self.loss), number(self.accuracy));
        let (loss_there, accuracy_there) =
            (number(self.devices_loss), number(self.devices_accuracy));
        let judged_by = self.judged_by().unwrap_or_default();
        let epsilon = number(self.privacy.map(|spent| spent.epsilon));
        format!(
            "{round},{seconds},{loss},{accuracy},{devices},{invited},{bytes},{failure},\
             {judged_by},{loss_there},{accuracy_there},{epsilon}\n"
        )
    }

    /// A row for each device under [`RoundRecord::DEVICES_CSV_HEADING`].
    pub fn devices_csv(&self) -> String {
        self.members.iter().map(|member| member.csv(self.round)).collect()
    }
}

impl MemberRecord {
    /// A row of a round; what is not known is empty.
    fn csv(&self, round: u32) -> String {
        let Self { device, part, sent: Bytes(sent), .. } = self;
        let trained = self.update.as_ref().map_or_else(
            || ",,,,".to_owned(),
            |UpdateReport { examples, loss, accuracy, duration_ms: Millis(took), .. }| {
                #[expect(clippy::cast_precision_loss, reason = "far shorter than 2^53 ms")]
                let seconds = *took as f64 / 1000.0;
                format!("{examples},{loss},{accuracy},{seconds},{sent}")
            },
        );
        let judged = self.evaluation.as_ref().map_or_else(
            || ",,".to_owned(),
            |EvaluationReport { examples, loss, accuracy, .. }| {
                format!("{examples},{loss},{accuracy}")
            },
        );
        let why = self.why();
        let why = if why.is_empty() { why } else { csv_text(&why) };
        format!("{round},{device},{},{trained},{judged},{why}\n", part.as_str())
    }

    /// Why its update is not in the new parameters, or not in full: `code: words`.
    pub fn why(&self) -> String {
        match (&self.failure, &self.reason) {
            (Some(Failure { code, message }), _) if message.is_empty() => code.as_str().to_owned(),
            (Some(Failure { code, message }), _) => format!("{}: {message}", code.as_str()),
            (None, Some(reason)) => format!("{}: {reason}", self.part.as_str()),
            (None, None) if self.part == Part::Straggler => "straggler: at work still".to_owned(),
            (None, None) => String::new(),
        }
    }
}

/// Text as one field of CSV: in quotes, with quotes doubled.
fn csv_text(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn members(outcome: &Outcome) -> Vec<MemberRecord> {
    let member = |device: &DeviceId, part| MemberRecord {
        device: device.clone(),
        part,
        reason: None,
        failure: None,
        update: None,
        sent: Bytes(0),
        evaluation: None,
    };
    let mut members: BTreeMap<&DeviceId, MemberRecord> = BTreeMap::new();
    for (device, failure) in &outcome.missing {
        let missing =
            MemberRecord { failure: Some(failure.clone()), ..member(device, Part::Missing) };
        members.insert(device, missing);
    }
    for device in &outcome.stragglers {
        members.insert(device, member(device, Part::Straggler));
    }
    for (device, update) in &outcome.updates {
        let (update, sent) = (Some(update.clone()), outcome.sent(device));
        members.insert(device, MemberRecord { update, sent, ..member(device, Part::Counted) });
    }
    for (device, influence) in &outcome.influences {
        let Some(member) = members.get_mut(device) else { continue };
        member.part = match influence.verdict {
            Verdict::Kept => Part::Counted,
            Verdict::Reduced => Part::Reduced,
            Verdict::Refused => Part::Refused,
        };
        member.reason = Some(influence.reason.clone());
    }
    for (device, evaluation) in &outcome.evaluations {
        if let Some(member) = members.get_mut(device) {
            member.evaluation = Some(evaluation.clone());
        }
    }
    members.into_values().collect()
}

struct Figures {
    loss: f64,
    accuracy: f64,
    examples: u64,
    judged: bool,
}

#[expect(clippy::cast_precision_loss, reason = "example counts are far below 2^53")]
fn figures(outcome: &Outcome) -> Option<Figures> {
    if let (Some(loss), Some(accuracy)) = (outcome.loss(), outcome.accuracy()) {
        let of_devices = outcome.evaluations.iter().map(|(_, judged)| judged.examples).sum();
        let by_broker = outcome.judgement.as_ref().and_then(Judgement::report);
        let examples = by_broker.map_or(of_devices, |judged| judged.examples);
        return Some(Figures { loss, accuracy, examples, judged: true });
    }
    // Devices that add noise say nothing of their training.
    if outcome.privacy.is_some_and(|spent| spent.planned.is_none()) {
        return None;
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

fn moved(outcome: &Outcome) -> u64 {
    if let Some(moved) = outcome.moved {
        return moved.up.0.saturating_add(moved.down.0);
    }
    // A round of an older broker.
    let up: u64 = outcome.updates.iter().map(|(_, update)| update.parameters.size.0).sum();
    up + outcome.invited() as u64 * outcome.parameters.size.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobs::report::FailureCode;
    use serde_json::{Value, json};

    fn outcome(evaluations: &Value) -> Outcome {
        let blob = json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1000});
        let update = |examples: u64, loss: f64| {
            json!({"parameters": blob, "examples": examples, "loss": loss, "accuracy": 0.5,
                "steps": 1, "duration_ms": 1, "engine": "native"})
        };
        serde_json::from_value(json!({
            "round": 2, "parameters": blob, "failure": null,
            "updates": [["a", update(300, 1.0)], ["b", update(100, 2.0)]],
            "influences": [["a", {"verdict": "refused", "reason": "far off"}],
                ["b", {"verdict": "reduced", "reason": "long"}]],
            "evaluations": evaluations,
            "missing": [["c", {"code": "device_lost", "message": "silent for 6 s"}]],
            "started_at": 1000, "ended_at": 1250,
        }))
        .unwrap()
    }

    #[test]
    fn a_round_is_judged_by_test_examples_or_else_by_training() {
        let record = RoundRecord::of(&outcome(&json!([])));
        assert_eq!((record.loss, record.accuracy), (Some(1.25), Some(0.5)));
        assert_eq!((record.judged, record.examples), (false, 400));
        let judged = |accuracy: f64, examples: u64| json!({"examples": examples, "loss": 0.25, "accuracy": accuracy, "duration_ms": 1});
        let judged = outcome(&json!([["a", judged(0.9, 100)], ["b", judged(0.6, 50)]]));
        let record = RoundRecord::of(&judged);
        assert_eq!((record.loss, record.judged, record.examples), (Some(0.25), true, 150));
        assert!((record.accuracy.unwrap() - 0.8).abs() < 1e-12);
        let accuracy = record.accuracy.unwrap();
        assert_eq!(record.csv(), format!("2,0.25,0.25,{accuracy},1,3,5000,,devices,,,\n"));
        assert_eq!(record.members[0].evaluation, Some(judged.evaluations[0].1.clone()));
    }

    #[test]
    fn all_that_a_device_sent_of_its_update_is_told() {
        let mut outcome = outcome(&json!([]));
        outcome.exchanged = vec![("b".parse().unwrap(), Bytes(4000))];
        outcome.updates[0].1.control_change = Some(outcome.parameters.clone());
        let sent = |outcome: &Outcome| {
            let members = RoundRecord::of(outcome).members;
            members.iter().map(|member| member.sent.0).collect::<Vec<_>>()
        };
        assert_eq!(sent(&outcome), [2000, 5000, 0]);
    }

    #[test]
    fn the_brokers_judgement_stands_beside_that_of_devices() {
        let judged = |examples: u64, accuracy: f64| json!({"examples": examples, "loss": 0.25, "accuracy": accuracy, "duration_ms": 1});
        let mut both = outcome(&json!([["a", judged(100, 0.5)]]));
        both.judgement = serde_json::from_value(json!({"judged": judged(360, 0.75)})).unwrap();
        let record = RoundRecord::of(&both);
        assert_eq!((record.accuracy, record.examples, record.judged), (Some(0.75), 360, true));
        assert_eq!((record.devices_accuracy, record.judged_by()), (Some(0.5), Some("broker")));
        assert!(record.csv().ends_with(",broker,0.25,0.5,\n"), "{}", record.csv());
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(serde_json::from_value::<RoundRecord>(written).unwrap(), record);
        let why = json!({"code": "unknown_dataset", "message": "no data set"});
        both.judgement = serde_json::from_value(json!({"missing": why})).unwrap();
        let record = RoundRecord::of(&both);
        assert_eq!((record.accuracy, record.devices_accuracy), (Some(0.5), Some(0.5)));
        assert_eq!((record.judged, record.judged_by()), (false, None));
    }

    #[test]
    fn a_private_round_tells_what_it_cost() {
        let mut outcome = outcome(&json!([]));
        outcome.privacy = serde_json::from_value(json!({"rounds": 2, "epsilon": 1.5,
            "delta": 0.001, "noise_multiplier": 1.0, "sampling_rate": 1.0, "norm": 1.0}))
        .unwrap();
        let row = RoundRecord::of(&outcome).csv();
        let column = RoundRecord::CSV_HEADING.trim_end().split(',').position(|it| it == "epsilon");
        assert_eq!(row.trim_end().split(',').nth(column.unwrap()), Some("1.5"), "{row}");
    }

    #[test]
    fn everyone_invited_is_listed_with_what_became_of_the_update() {
        let record = RoundRecord::of(&outcome(&json!([])));
        let members = record.members.iter().map(|m| (m.device.as_str(), m.part, m.why()));
        let expected = [
            ("a", Part::Refused, "refused: far off".to_owned()),
            ("b", Part::Reduced, "reduced: long".to_owned()),
            ("c", Part::Missing, "device_lost: silent for 6 s".to_owned()),
        ];
        assert_eq!(members.collect::<Vec<_>>(), expected);
        assert_eq!((record.devices, record.invited), (1, 3));
        let missing: Vec<&str> = record.missing().map(|m| m.device.as_str()).collect();
        assert_eq!(missing, ["a", "c"]);
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(serde_json::from_value::<RoundRecord>(written).unwrap(), record);
    }

    #[test]
    fn who_is_at_work_still_was_invited_and_is_told() {
        let mut outcome = outcome(&json!([]));
        outcome.stragglers = vec!["d".parse().unwrap(), "e".parse().unwrap()];
        let record = RoundRecord::of(&outcome);
        assert_eq!((record.devices, record.invited, record.members.len()), (1, 5, 5));
        let stragglers: Vec<&str> = record.stragglers().map(|it| it.device.as_str()).collect();
        assert_eq!(stragglers, ["d", "e"]);
        let rows = record.devices_csv();
        assert!(rows.contains("2,e,straggler,,,,,,,,,\"straggler: at work still\"\n"), "{rows}");
    }

    #[test]
    fn devices_are_rows_of_csv() {
        let judged = json!([["b", {"examples": 9, "loss": 0.25, "accuracy": 0.75,
            "duration_ms": 1}]]);
        let rows = RoundRecord::of(&outcome(&judged)).devices_csv();
        let expected = "2,a,refused,300,1,0.5,0.001,1000,,,,\"refused: far off\"\n\
            2,b,reduced,100,2,0.5,0.001,1000,9,0.25,0.75,\"reduced: long\"\n\
            2,c,missing,,,,,,,,,\"device_lost: silent for 6 s\"\n";
        assert_eq!(rows, expected);
        let columns = RoundRecord::DEVICES_CSV_HEADING.matches(',').count();
        assert!(rows.lines().all(|row| row.matches(',').count() == columns), "{rows}");
    }

    #[test]
    fn who_was_kept_out_is_listed_and_was_not_invited() {
        let mut outcome = outcome(&json!([]));
        let failure = Failure::new(FailureCode::Quarantined, "not invited up to round 9");
        outcome.missing.push(("d".parse().unwrap(), failure));
        let record = RoundRecord::of(&outcome);
        assert_eq!((record.invited, record.members.len()), (3, 4));
        assert_eq!(record.members[3].why(), "quarantined: not invited up to round 9");
        outcome.missing.push(("e".parse().unwrap(), Failure::new(FailureCode::NoRoom, "1 of 2")));
        let record = RoundRecord::of(&outcome);
        assert_eq!((record.invited, record.members[4].why().as_str()), (3, "no_room: 1 of 2"));
        let offline = Failure::new(FailureCode::NotThere, "offline");
        outcome.missing.push(("f".parse().unwrap(), offline));
        let record = RoundRecord::of(&outcome);
        assert_eq!((record.invited, record.members[5].why().as_str()), (3, "not_there: offline"));
        assert_eq!(record.bytes, 5000);
    }

    #[test]
    fn a_failure_is_one_field_of_csv() {
        let mut outcome = outcome(&json!([]));
        (outcome.updates, outcome.influences) = (Vec::new(), Vec::new());
        let code = jobs::report::FailureCode::NoQuorum;
        outcome.failure = Some(Failure::new(code, "0 of \"1\",\nupdates"));
        let row = RoundRecord::of(&outcome).csv();
        assert_eq!(row, "2,0.25,,,0,1,1000,\"no_quorum: 0 of \"\"1\"\",\nupdates\",,,,\n");
        let columns = RoundRecord::CSV_HEADING.matches(',').count();
        let fields = row.replace(",\nupdates", "");
        assert_eq!(fields.matches(',').count(), columns);
    }
}
