//! When a device whose updates cannot be used is not invited for some time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::text_or_table;
use super::{Participation, Strategy, settings};

/// A device of which so many updates were refused is not invited for some rounds.
///
/// An update is refused when a check finds that it cannot be used, such as one that is not finite,
/// has wrong shapes, or is differences from other parameters. Devices that are slow, lost or fail
/// are not meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Quarantine {
    /// Rounds in which an update of the device was refused.
    pub refused: u32,
    /// The newest rounds of the job in which they are counted.
    pub within: u32,
    /// Rounds to which it is not invited then, failed ones included. After them it begins anew.
    pub rounds: u32,
    /// Whether an update that a robust strategy left out counts as refused.
    pub left_out: bool,
}

text_or_table!(
    Quarantine,
    "text such as \"\" or \"refused=2,rounds=50\", or a table such as {} or {\"refused\": 2, \
     \"rounds\": 50}",
    Quarantine::deserialize
);

impl Default for Quarantine {
    fn default() -> Self {
        Self { refused: 3, within: 10, rounds: 20, left_out: false }
    }
}

/// Refused updates that can be asked for, at most: each is remembered by its round.
const REFUSED_MAX: u32 = 20;
const ROUNDS_MAX: u32 = 10_000;

impl Participation {
    /// What is out of range in [`Participation::quarantine`]: the field, its value, what is
    /// accepted.
    pub(super) fn quarantine_problems(
        &self,
        strategy: &Strategy,
    ) -> Vec<(&'static str, String, String)> {
        let Some(Quarantine { refused, within, rounds, left_out }) = self.quarantine else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        let mut whole = |name, found: u32, min: u32, max: u32| {
            if !(min..=max).contains(&found) {
                problems.push((name, found.to_string(), format!("{min} to {max}")));
            }
        };
        whole("refused", refused, 1, REFUSED_MAX);
        // A device has one update in a round.
        whole("within", within, refused.clamp(1, REFUSED_MAX), ROUNDS_MAX);
        whole("rounds", rounds, 1, ROUNDS_MAX);
        let some = matches!(
            strategy,
            Strategy::FedTrimmedAvg(_) | Strategy::MultiKrum(_) | Strategy::Bulyan(_)
        );
        if left_out && !some {
            let expected = "false, because only fedtrimmedavg, multikrum and bulyan leave out some and \
                            keep others";
            problems.push(("left_out", left_out.to_string(), expected.to_owned()));
        }
        problems
    }
}

/// Text that is no quarantine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}: {reason}; expected settings such as refused=3,within=10,rounds=20,left_out=true, \
     each may be left out"
)]
pub struct QuarantineError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl FromStr for Quarantine {
    type Err = QuarantineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| QuarantineError { text: text.to_owned(), reason };
        let fields = settings::fields(text).map_err(fail)?;
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            return Err(fmt::Error);
        };
        f.write_str(&settings::text(&fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_what_differs_from_the_defaults() {
        assert_eq!("".parse(), Ok(Quarantine::default()));
        let some: Quarantine = "refused=1,rounds=5,left_out=true".parse().unwrap();
        assert_eq!(some, Quarantine { refused: 1, within: 10, rounds: 5, left_out: true });
        assert_eq!(some.to_string().parse(), Ok(some));
        for (text, words) in [
            ("refused", "\"refused\" has no value"),
            ("rounds=1,rounds=2", "rounds is there twice"),
            ("left_out=maybe", "invalid type"),
            ("rounds=-1", "invalid type"),
            ("refusals=1", "unknown field `refusals`"),
        ] {
            let error = text.parse::<Quarantine>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_found() {
        let names = |text: &str, strategy: &str| {
            let quarantine = Some(text.parse().unwrap());
            let part = Participation { quarantine, ..Participation::default() };
            let found = part.quarantine_problems(&strategy.parse().unwrap());
            found.into_iter().map(|problem| problem.0).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("", "fedavg"), "");
        assert_eq!(names("refused=0,within=0,rounds=0", "fedavg"), "refused within rounds");
        assert_eq!(names("refused=5,within=4", "fedavg"), "within");
        assert_eq!(names("refused=21,within=30,rounds=10001", "fedavg"), "refused rounds");
        for strategy in ["fedavg", "krum:byzantine=1", "normbound:norm=1"] {
            assert_eq!(names("left_out=true", strategy), "left_out");
        }
        assert_eq!(names("left_out=true", "multikrum:byzantine=1,selected=4"), "");
        assert_eq!(names("left_out=true", "bulyan:byzantine=1"), "");
    }
}
