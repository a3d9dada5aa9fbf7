//! What becomes of updates that come when their round is over.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::text_or_table;
use super::{Selection, Strategy, TrainSpec, settings};
use crate::id::Millis;

/// A device trains no longer where late updates count, unless a round is longer.
const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// What becomes of updates that come when their round is over.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub enum LateUpdates {
    /// Devices that are still at work are told to stop.
    #[default]
    Refuse,
    /// Devices that are still at work go on, and the next round takes their updates.
    Staleness(Staleness),
}

text_or_table!(
    LateUpdates,
    "\"refuse\", \"staleness\" or \"staleness:exponent=0.5,staleness_max=10\", or a table such as \
     {\"policy\": \"staleness\", \"exponent\": 0.5, \"staleness_max\": 10}",
    LateUpdates::deserialize
);

/// How much an update counts that was trained from an earlier version of the parameters:
/// `(1 + versions)^-exponent` by the versions that were made since (`FedAsync`, Xie et al. 2019).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Staleness {
    /// 0 or above; 0 lets all of them count alike.
    pub exponent: f64,
    /// Versions after which an update does not count any more.
    pub staleness_max: u32,
}

impl Default for Staleness {
    fn default() -> Self {
        Self { exponent: 0.5, staleness_max: 10 }
    }
}

impl Staleness {
    /// Settings that are out of range: the name, the value, what is accepted.
    pub(super) fn problems(self) -> Vec<(&'static str, f64, &'static str)> {
        let mut problems = Vec::new();
        if !(0.0..=10.0).contains(&self.exponent) {
            problems.push(("exponent", self.exponent, "0 to 10"));
        }
        if !(1..=1000).contains(&self.staleness_max) {
            problems.push(("staleness_max", self.staleness_max.into(), "1 to 1000"));
        }
        problems
    }
}

impl TrainSpec {
    /// How long a device may train: where late updates count, as long as its update may.
    pub fn training_timeout_ms(&self) -> Millis {
        let rounds = self.staleness().map_or(0, |staleness| staleness.staleness_max.into());
        let Millis(deadline) = self.participation.deadline_ms;
        Millis(deadline.saturating_mul(rounds + 1_u64).min(TIMEOUT_MS_MAX.max(deadline)))
    }

    /// How updates count that come when their round is over; `None` where they do not.
    pub fn staleness(&self) -> Option<Staleness> {
        match (&self.strategy, self.participation.late_updates) {
            (Strategy::FedBuff(buffered), _) => Some(Staleness {
                exponent: buffered.exponent,
                staleness_max: buffered.staleness_max,
            }),
            (_, LateUpdates::Staleness(staleness)) => Some(staleness),
            (_, LateUpdates::Refuse) => None,
        }
    }
}

/// What cannot be combined with late updates: the field, its value, what is accepted.
pub(super) fn problems(spec: &TrainSpec) -> Vec<(String, String, &'static str)> {
    let mut problems = Vec::new();
    let late = spec.participation.late_updates;
    let mut check = |right: bool, field: &str, found: &dyn fmt::Display, expected| {
        if !right {
            problems.push((field.to_owned(), found.to_string(), expected));
        }
    };
    if let LateUpdates::Staleness(staleness) = late {
        for (name, value, expected) in staleness.problems() {
            let field = format!("participation.late_updates.{name}");
            check(false, &field, &value, expected);
        }
        let expected = "fedavg, fedavgm, fedadagrad, fedadam or fedyogi, because others compare \
                        updates of one version (fedbuff says itself how late updates count)";
        check(spec.strategy.needs_only_the_sum(), "strategy", &spec.strategy, expected);
        if let Some(rule) = &spec.rule {
            let expected = "absent, because a rule compares updates of one version";
            check(false, "rule", rule, expected);
        }
    }
    if matches!(spec.strategy, Strategy::FedBuff(_)) {
        let expected = "a number, the updates of fedbuff's buffer";
        let devices = spec.participation.devices;
        check(devices.is_some(), "participation.devices", &"absent", expected);
    }
    if spec.staleness().is_some() {
        let expected = "absent, because late updates belong to no single round";
        if let Some(privacy) = &spec.privacy {
            check(false, "privacy", privacy, expected);
        }
        check(spec.secure_aggregation.is_none(), "secure_aggregation", &"given", expected);
        let selection = &spec.participation.selection;
        let expected = "another one, because in cyclic each device goes on from the one before";
        check(*selection != Selection::Cyclic, "participation.selection", selection, expected);
    }
    problems
}

/// Text that says nothing of late updates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} says nothing of late updates: {reason}; expected refuse or staleness, with settings \
     such as staleness:exponent=0.5,staleness_max=10"
)]
pub struct LateUpdatesError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl fmt::Display for LateUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse => f.write_str("refuse"),
            Self::Staleness(Staleness { exponent, staleness_max }) => {
                write!(f, "staleness:exponent={exponent},staleness_max={staleness_max}")
            }
        }
    }
}

impl FromStr for LateUpdates {
    type Err = LateUpdatesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| LateUpdatesError { text: text.to_owned(), reason };
        let (name, mut fields) = settings::parse(text).map_err(fail)?;
        fields.insert("policy".to_owned(), name.into());
        serde_json::from_value(Value::Object(fields)).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("refuse", r#"{"policy":"refuse"}"#),
            (
                "staleness:exponent=0.25,staleness_max=3",
                r#"{"policy":"staleness","exponent":0.25,"staleness_max":3}"#,
            ),
        ] {
            let late: LateUpdates = text.parse().unwrap();
            assert_eq!(late.to_string(), text);
            assert_eq!(serde_json::to_string(&late).unwrap(), json);
            assert_eq!(serde_json::from_str::<LateUpdates>(json).unwrap(), late);
        }
        let late: LateUpdates = "staleness".parse().unwrap();
        assert_eq!(late, LateUpdates::Staleness(Staleness::default()));
        for text in ["", "keep", "staleness:exponent", "staleness:age=3"] {
            let error = text.parse::<LateUpdates>().unwrap_err().to_string();
            assert!(error.contains("refuse"), "{error}");
        }
    }
}
