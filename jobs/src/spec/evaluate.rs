//! Who judges the parameters of a round.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Who judges new parameters on a test split after each round. Older specifications say `true` for
/// devices and `false` for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evaluate {
    /// Nobody.
    None,
    /// Devices whose updates count, each on its own.
    #[default]
    Devices,
    /// The broker, on data of its own.
    Broker,
    /// Both; what is compared is the broker's judgement.
    Both,
}

/// A word that does not say who judges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not say who judges: expected devices, broker, both or none")]
pub struct EvaluateError(String);

impl Evaluate {
    const ALL: [Self; 4] = [Self::None, Self::Devices, Self::Broker, Self::Both];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Devices => "devices",
            Self::Broker => "broker",
            Self::Both => "both",
        }
    }

    /// Whether devices judge.
    pub fn by_devices(self) -> bool {
        matches!(self, Self::Devices | Self::Both)
    }

    /// Whether the broker judges.
    pub fn by_broker(self) -> bool {
        matches!(self, Self::Broker | Self::Both)
    }
}

impl fmt::Display for Evaluate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Evaluate {
    type Err = EvaluateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|evaluate| evaluate.as_str() == text);
        found.ok_or_else(|| EvaluateError(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Evaluate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrSwitch)
    }
}

struct WordOrSwitch;

impl de::Visitor<'_> for WordOrSwitch {
    type Value = Evaluate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("devices, broker, both or none")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<Evaluate, E> {
        Ok(if on { Evaluate::Devices } else { Evaluate::None })
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Evaluate, E> {
        word.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_json_and_switches_of_older_jobs_are_read() {
        for evaluate in Evaluate::ALL {
            let written = serde_json::to_string(&evaluate).unwrap();
            assert_eq!(written, format!("\"{evaluate}\""));
            assert_eq!(serde_json::from_str::<Evaluate>(&written).unwrap(), evaluate);
        }
        for (text, expected) in [("true", Evaluate::Devices), ("false", Evaluate::None)] {
            assert_eq!(serde_json::from_str::<Evaluate>(text).unwrap(), expected);
        }
        for wrong in ["\"server\"", "1"] {
            let error = serde_json::from_str::<Evaluate>(wrong).unwrap_err().to_string();
            assert!(error.contains("devices, broker, both or none"), "{error}");
        }
    }
}
