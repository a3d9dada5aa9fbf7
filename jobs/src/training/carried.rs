//! What a strategy keeps beside the parameters, and whether it goes along into a training that goes
//! on from another.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::counted::{COUNTED_MAX, remember};
use crate::id::{BlobRef, DeviceId, JobId, RoundNumber};
use crate::round::Outcome;
use crate::spec::Strategy;

/// Control variates that devices keep of another job, and of jobs that it went on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Which job.
    pub job: JobId,
    /// Its last round in which a device's update counted; bounded.
    pub counted: BTreeMap<DeviceId, RoundNumber>,
    /// The same of the jobs before, the newest first, for devices that no later one names; with those
    /// as bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<(JobId, BTreeMap<DeviceId, RoundNumber>)>,
}

impl Controls {
    /// Of a job of which no round is known yet.
    pub fn of(job: JobId) -> Self {
        Self { job, counted: BTreeMap::new(), earlier: Vec::new() }
    }

    /// The job's next round.
    pub fn count(&mut self, outcome: &Outcome) {
        if outcome.failure.is_none() {
            remember(&mut self.counted, outcome);
        }
    }

    /// Adds those that devices kept of the job before all of these, as far as there is room.
    pub fn add_earlier(&mut self, Self { job, mut counted, .. }: Self) {
        let known: BTreeSet<&DeviceId> = self.devices().collect();
        counted.retain(|device, _| !known.contains(device));
        let left = COUNTED_MAX.saturating_sub(known.len());
        while counted.len() > left {
            counted.pop_last();
        }
        if !counted.is_empty() {
            self.earlier.push((job, counted));
        }
    }

    /// The job, and its round, of which a device has its own.
    pub fn of_device(&self, device: &DeviceId) -> Option<(RoundNumber, &JobId)> {
        let earlier = self.earlier.iter().map(|(job, counted)| (job, counted));
        let mut all = std::iter::once((&self.job, &self.counted)).chain(earlier);
        all.find_map(|(job, counted)| Some((*counted.get(device)?, job)))
    }

    /// Who has any.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        let earlier = self.earlier.iter().flat_map(|(_, counted)| counted.keys());
        self.counted.keys().chain(earlier)
    }
}

/// The round of another job that a training goes on from.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The job's strategy.
    pub strategy: &'a Strategy,
    /// How the round ended.
    pub outcome: &'a Outcome,
    /// Whether devices have their own of it, and are to keep them.
    pub is_kept: bool,
}

/// Why what a strategy keeps begins at zero.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Anew {
    /// Another one kept something else, or nothing.
    #[error("that was trained by {strategy}")]
    Strategy {
        /// Its name.
        strategy: String,
    },
    /// It kept nothing with these parameters.
    #[error("nothing was kept with these parameters")]
    Nothing,
    /// Devices may have let go of their own.
    #[error(
        "devices keep their own of its last round and of those that it keeps, and while it runs of \
         none that is sure"
    )]
    NotKept,
}

/// What a training of this strategy begins with of what the round before it kept; none where the
/// strategy keeps nothing.
///
/// # Errors
/// [`Anew`]
pub fn carried<'a>(now: &Strategy, before: Before<'a>) -> Result<Option<&'a BlobRef>, Anew> {
    if now.keeps().is_none() {
        return Ok(None);
    }
    if std::mem::discriminant(now) != std::mem::discriminant(before.strategy) {
        let text = before.strategy.to_string();
        let strategy = text.split(':').next().unwrap_or_default().to_owned();
        return Err(Anew::Strategy { strategy });
    }
    if matches!(now, Strategy::Scaffold(_)) && !before.is_kept {
        return Err(Anew::NotKept);
    }
    before.outcome.server_state.as_ref().map(Some).ok_or(Anew::Nothing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(round: u32, devices: &[&str], is_kept: bool) -> Outcome {
        let blob = json!({"digest": format!("sha256:{round:064}"), "size": 1});
        let update = json!({"parameters": blob, "examples": 1, "loss": 0.5, "accuracy": 0.5,
            "steps": 1, "duration_ms": 1, "engine": "native"});
        let updates: Vec<_> = devices.iter().map(|device| json!([device, update])).collect();
        let state = if is_kept { blob.clone() } else { json!(null) };
        serde_json::from_value(json!({"round": round, "parameters": blob, "server_state": state,
            "failure": null, "updates": updates, "evaluations": [], "missing": [],
            "started_at": 0, "ended_at": 1}))
        .unwrap()
    }

    #[test]
    fn the_same_strategy_goes_on_with_what_it_kept() {
        let (kept, bare) = (outcome(7, &[], true), outcome(7, &[], false));
        let anew = |strategy: &str| Err(Anew::Strategy { strategy: strategy.to_owned() });
        let state = Ok(kept.server_state.as_ref());
        for (now, before, outcome, is_kept, expected) in [
            ("fedadam", "fedadam:learning_rate=0.5", &kept, false, state.clone()),
            ("fedavgm", "fedavgm", &kept, true, state.clone()),
            ("scaffold", "scaffold:learning_rate=0.5", &kept, true, state),
            ("scaffold", "scaffold", &kept, false, Err(Anew::NotKept)),
            ("fedadam", "fedyogi", &kept, true, anew("fedyogi")),
            ("scaffold", "fedavg", &bare, true, anew("fedavg")),
            ("fedavgm", "fedavgm:momentum=0", &bare, true, Err(Anew::Nothing)),
            // Nothing begins anew where nothing is kept.
            ("fedavg", "fedadam", &kept, true, Ok(None)),
            ("fedavgm:momentum=0", "fedadam", &kept, true, Ok(None)),
            ("krum", "scaffold", &kept, false, Ok(None)),
        ] {
            let strategy = before.parse().unwrap();
            let before = Before { strategy: &strategy, outcome, is_kept };
            let found = carried(&now.parse().unwrap(), before);
            assert_eq!(found, expected, "{now} after {before:?}");
        }
    }

    #[test]
    fn devices_go_on_with_the_last_round_that_counted() {
        let mut controls = Controls::of("before".parse().unwrap());
        controls.count(&outcome(1, &["a", "b"], true));
        controls.count(&outcome(2, &["b"], true));
        let mut failed = outcome(3, &["a"], false);
        failed.failure = serde_json::from_value(json!({"code": "internal", "message": ""})).ok();
        controls.count(&failed);
        let counted = controls.counted.iter().map(|(device, round)| (device.as_str(), round.0));
        assert_eq!(counted.collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
    }

    #[test]
    fn a_device_goes_on_with_what_the_newest_job_left_that_it_was_in() {
        let before = |job: &str, devices: &[&str]| {
            let mut controls = Controls::of(job.parse().unwrap());
            controls.count(&outcome(3, devices, true));
            controls
        };
        let mut controls = before("third", &["c"]);
        controls.add_earlier(before("second", &["b", "c"]));
        controls.add_earlier(before("none", &["c"]));
        controls.add_earlier(before("first", &["a", "b"]));
        let of = |device: &str| controls.of_device(&device.parse().unwrap());
        let jobs = ["a", "b", "c", "d"].map(|device| of(device).map(|(_, job)| job.as_str()));
        assert_eq!(jobs, [Some("first"), Some("second"), Some("third"), None]);
        assert_eq!((controls.earlier.len(), controls.devices().count()), (2, 3));
        let many: Vec<String> = (0..=COUNTED_MAX).map(|number| format!("d{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        controls.add_earlier(before("many", &many));
        assert_eq!(controls.devices().count(), COUNTED_MAX);
    }
}
