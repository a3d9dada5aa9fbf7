//! How a round ended, and how its result was judged.

use serde::{Deserialize, Serialize};

use super::{Influence, Moved};
use crate::id::{BlobRef, Bytes, DeviceId, Millis, RoundNumber};
use crate::privacy::Spent;
use crate::report::{EvaluationReport, Failure, FailureCode, UpdateReport};
use crate::training::Best;

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which round.
    pub round: RoundNumber,
    /// The parameters after this round: new ones, or the old ones when it failed.
    pub parameters: BlobRef,
    /// What the server optimizer keeps with new parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_state: Option<BlobRef>,
    /// New parameters as they travel to devices, where they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
    /// What became of each update that is counted, ordered by device; nothing where the strategy
    /// takes them all as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub influences: Vec<(DeviceId, Influence)>,
    /// With an adaptive norm, the noised share of updates that were not longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<f64>,
    /// What a private job has spent with this round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Spent>,
    /// Why there are no new parameters.
    pub failure: Option<Failure>,
    /// Whose updates are in the mean, with what they said of them; ordered by device.
    pub updates: Vec<(DeviceId, UpdateReport)>,
    /// Judgements, ordered by device.
    pub evaluations: Vec<(DeviceId, EvaluationReport)>,
    /// The broker's own, where it was asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// Everyone invited whose update is not in the mean, and exactly why, and who was not invited
    /// because it was not there, is in quarantine, or the round had no room for it; ordered by device.
    pub missing: Vec<(DeviceId, Failure)>,
    /// Devices that are at work on this round or an earlier one still, and whose updates the next
    /// round takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stragglers: Vec<DeviceId>,
    /// The best round of the job so far, where it looks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Bytes that travelled; absent in a round of an older broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// Bytes that each device sent at the stages of a secure aggregation, behind its keys; ordered by
    /// device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exchanged: Vec<(DeviceId, Bytes)>,
    /// When it began.
    pub started_at: Millis,
    /// When it ended.
    pub ended_at: Millis,
}

/// What a broker says of new parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// How they do on its own data.
    Judged(EvaluationReport),
    /// Why it does not say.
    Missing(Failure),
}

impl Judgement {
    /// The judgement, if there is one.
    pub fn report(&self) -> Option<&EvaluationReport> {
        match self {
            Judgement::Judged(report) => Some(report),
            Judgement::Missing(_) => None,
        }
    }
}

impl Outcome {
    /// Accuracy as the round is compared by: the broker's where it was asked, else the devices';
    /// `None` when whoever decides did not judge.
    pub fn accuracy(&self) -> Option<f64> {
        self.judged(|evaluation| evaluation.accuracy)
    }

    /// Loss in the same way.
    pub fn loss(&self) -> Option<f64> {
        self.judged(|evaluation| evaluation.loss)
    }

    /// Accuracy over the devices' judgements, weighted by test examples; `None` without any.
    pub fn devices_accuracy(&self) -> Option<f64> {
        self.devices_judged(|evaluation| evaluation.accuracy)
    }

    /// Loss in the same way.
    pub fn devices_loss(&self) -> Option<f64> {
        self.devices_judged(|evaluation| evaluation.loss)
    }

    /// Devices that were at work for the round: all that are missing but those that were not invited,
    /// all whose updates are counted, and all that are at work still.
    pub fn invited(&self) -> usize {
        let missing = self.missing.iter().filter(|(_, failure)| says_invited(failure));
        self.updates.len() + missing.count() + self.stragglers.len()
    }

    /// Whether a device is one of them.
    pub(crate) fn was_invited(&self, device: &DeviceId) -> bool {
        let counts = self.updates.binary_search_by(|(other, _)| other.cmp(device)).is_ok();
        let place = self.missing.binary_search_by(|(other, _)| other.cmp(device)).ok();
        let missing = place.is_some_and(|place| says_invited(&self.missing[place].1));
        counts || missing || self.stragglers.contains(device)
    }

    /// Names those who were not there as missing, unless they are named already.
    pub(crate) fn name_absent(&mut self, absent: Vec<(DeviceId, Failure)>) {
        for (device, failure) in absent {
            let at_work = self.stragglers.contains(&device);
            let counts = self.updates.binary_search_by(|(other, _)| other.cmp(&device)).is_ok();
            let place = self.missing.binary_search_by(|(other, _)| other.cmp(&device));
            if let (false, false, Err(place)) = (at_work, counts, place) {
                self.missing.insert(place, (device, failure));
            }
        }
    }

    /// Whether a device was in the round, or kept out of it.
    pub fn names(&self, device: &DeviceId) -> bool {
        let missing = self.missing.iter().map(|(missing, _)| missing);
        missing.chain(self.updates.iter().map(|(device, _)| device)).any(|known| known == device)
    }

    /// Bytes that a device sent of the update that is counted.
    pub fn sent(&self, device: &DeviceId) -> Bytes {
        let of = |(known, _): &&(DeviceId, Bytes)| known == device;
        let exchanged = self.exchanged.iter().find(of).map_or(0, |(_, bytes)| bytes.0);
        let update = self.updates.iter().find(|(known, _)| known == device);
        let update = update.map_or(0, |(_, update)| update.sent().0);
        Bytes(update.saturating_add(exchanged))
    }

    fn judged(&self, value: impl Fn(&EvaluationReport) -> f64) -> Option<f64> {
        match &self.judgement {
            Some(judgement) => judgement.report().map(value),
            None => self.devices_judged(value),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a weight need not be exact")]
    fn devices_judged(&self, value: impl Fn(&EvaluationReport) -> f64) -> Option<f64> {
        let (weight, sum) =
            self.evaluations.iter().fold((0.0, 0.0), |(weight, sum), (_, judged)| {
                let examples = judged.examples as f64;
                (weight + examples, sum + examples * value(judged))
            });
        (weight > 0.0).then(|| sum / weight)
    }
}

/// Whether a device that is missing for this was invited.
fn says_invited(failure: &Failure) -> bool {
    !matches!(failure.code, FailureCode::NotThere | FailureCode::Quarantined | FailureCode::NoRoom)
}
