//! Which of the eligible devices take part in a round.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::text_or_table;
use crate::hours::Hours;
use crate::id::Millis;

/// How devices are chosen. What decides is what the job has seen of them, and its seed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub enum Selection {
    /// At random, each time anew.
    #[default]
    Random,
    /// At random, a share of those that are there, rounded down; the quorum at least.
    Fraction {
        /// Above 0, at most 1.
        fraction: f64,
    },
    /// Those whose turn is the longest ago.
    RoundRobin,
    /// One device after another in the order of their ids, each from the parameters of the one
    /// before; who is not there is skipped until its turn comes again (Flower's `FedCyclic`).
    Cyclic,
    /// Those that reported the highest loss last, of candidates drawn at random (power of choice
    /// with the losses that are known, Cho et al. 2020, `rpow-d`); devices that were never asked
    /// come first.
    ByLoss {
        /// How many candidates; all when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        candidates: Option<u32>,
    },
    /// Those that were the fastest last, but for a share at random of those that are not known
    /// yet (as Oort explores, Lai et al. 2021).
    BySpeed {
        /// The share, 0 to 1.
        #[serde(default = "default_exploration")]
        exploration: f64,
    },
    /// At random of those within the hours that a label of theirs says, such as
    /// `available=22-06` (UTC). Devices without the label are always available; those with one
    /// that cannot be read are not. The job waits while nobody is.
    Windows {
        /// The label's key.
        #[serde(default = "default_label")]
        label: String,
    },
}

text_or_table!(
    Selection,
    "a selection such as \"random\" or \"by_loss:20\", or a table such as {\"kind\": \"by_loss\", \
     \"candidates\": 20}",
    Selection::deserialize
);

fn default_exploration() -> f64 {
    0.1
}

fn default_label() -> String {
    "available".to_owned()
}

impl Selection {
    /// Whether a device with these labels may take part now, since the Unix epoch.
    pub fn admits(&self, labels: &BTreeMap<String, String>, now: Millis) -> bool {
        let Self::Windows { label } = self else { return true };
        let hours = labels.get(label).map(|text| text.parse::<Hours>());
        hours.is_none_or(|hours| hours.is_ok_and(|hours| hours.contain(now)))
    }

    /// Whether rounds are told of what was seen of devices before.
    pub fn remembers(&self) -> bool {
        match self {
            Self::RoundRobin | Self::Cyclic | Self::ByLoss { .. } | Self::BySpeed { .. } => true,
            Self::Random | Self::Fraction { .. } | Self::Windows { .. } => false,
        }
    }
}

/// Text that is no selection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no selection: expected random, fraction:SHARE, round_robin, cyclic, \
     by_loss[:CANDIDATES], by_speed[:EXPLORATION] or windows[:LABEL]"
)]
pub struct SelectionError(String);

/// As the command line takes it.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Fraction { fraction } => write!(f, "fraction:{fraction}"),
            Self::RoundRobin => f.write_str("round_robin"),
            Self::Cyclic => f.write_str("cyclic"),
            Self::ByLoss { candidates: None } => f.write_str("by_loss"),
            Self::ByLoss { candidates: Some(candidates) } => write!(f, "by_loss:{candidates}"),
            Self::BySpeed { exploration } => write!(f, "by_speed:{exploration}"),
            Self::Windows { label } => write!(f, "windows:{label}"),
        }
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) => (word, Some(rest)),
            None => (text, None),
        };
        let selection = match (word, rest) {
            ("random", None) => Some(Self::Random),
            ("fraction", Some(share)) => {
                share.parse().ok().map(|fraction| Self::Fraction { fraction })
            }
            ("round_robin", None) => Some(Self::RoundRobin),
            ("cyclic", None) => Some(Self::Cyclic),
            ("by_loss", None) => Some(Self::ByLoss { candidates: None }),
            ("by_loss", Some(count)) => {
                count.parse().ok().map(|count| Self::ByLoss { candidates: Some(count) })
            }
            ("by_speed", None) => Some(Self::BySpeed { exploration: default_exploration() }),
            ("by_speed", Some(share)) => {
                share.parse().ok().map(|exploration| Self::BySpeed { exploration })
            }
            ("windows", None) => Some(Self::Windows { label: default_label() }),
            ("windows", Some(label)) => Some(Self::Windows { label: label.to_owned() }),
            _ => None,
        };
        selection.ok_or_else(|| SelectionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("random", r#"{"kind":"random"}"#),
            ("fraction:0.25", r#"{"kind":"fraction","fraction":0.25}"#),
            ("round_robin", r#"{"kind":"round_robin"}"#),
            ("cyclic", r#"{"kind":"cyclic"}"#),
            ("by_loss", r#"{"kind":"by_loss"}"#),
            ("by_loss:20", r#"{"kind":"by_loss","candidates":20}"#),
            ("by_speed:0.5", r#"{"kind":"by_speed","exploration":0.5}"#),
            ("windows:night", r#"{"kind":"windows","label":"night"}"#),
        ] {
            let selection: Selection = text.parse().unwrap();
            assert_eq!(selection.to_string(), text);
            assert_eq!(serde_json::to_string(&selection).unwrap(), json);
            assert_eq!(serde_json::from_str::<Selection>(json).unwrap(), selection);
        }
        for (text, json) in
            [("by_speed", r#"{"kind":"by_speed"}"#), ("windows", r#"{"kind":"windows"}"#)]
        {
            assert_eq!(serde_json::from_str::<Selection>(json).unwrap(), text.parse().unwrap());
        }
        for text in ["", "fraction", "fraction:x", "by_loss:-1", "random:1", "fastest"] {
            let error = text.parse::<Selection>().unwrap_err().to_string();
            assert!(error.contains("fraction:SHARE"), "{error}");
        }
    }

    #[test]
    fn windows_admit_who_is_within_its_hours() {
        let windows: Selection = "windows".parse().unwrap();
        let labelled = |text: &str| BTreeMap::from([("available".to_owned(), text.to_owned())]);
        let at = |hour: u64| Millis(20_000 * 24 * 3_600_000 + hour * 3_600_000);
        let night = labelled("22-06");
        let open: Vec<u64> = (0..24).filter(|hour| windows.admits(&night, at(*hour))).collect();
        assert_eq!(open, [0, 1, 2, 3, 4, 5, 22, 23]);
        assert!(windows.admits(&BTreeMap::new(), at(12)), "without the label");
        assert!(!windows.admits(&labelled("nights"), at(23)), "what cannot be read is closed");
        assert!(Selection::Random.admits(&night, at(12)), "nobody asked");
    }
}
