//! Secure aggregation: brokers learn the sum of a round's updates and no update.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::text_or_table;
use super::{TrainTask, is_default, settings};
use crate::id::Millis;

/// How updates are masked (`SecAgg+`, Bell et al. 2020; Bonawitz et al. 2017).
///
/// What is added up is each value's difference from the round's parameters, clipped and rounded to
/// levels, of which there are as many as 32 bits have room for in the sum of all devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct SecureAggregation {
    /// Largest difference of a parameter that counts; larger ones count as this.
    pub clip: f32,
    /// Most examples that count of a device; 1 gives every device the same weight.
    pub weight_max: u32,
    /// Which of the two nearest levels a value takes.
    pub rounding: Rounding,
    /// Share of devices that may drop out between their first and their last word.
    pub drop_out: f64,
    /// Share of devices that may tell the broker all they know.
    pub colluding: f64,
    /// From the offers of a stage to its close.
    pub stage_deadline_ms: Millis,
}

text_or_table!(
    SecureAggregation,
    "text such as \"\" or \"clip=0.5,drop_out=0.3\", or a table such as {} or {\"clip\": 0.5, \
     \"drop_out\": 0.3}",
    SecureAggregation::deserialize
);

impl Default for SecureAggregation {
    fn default() -> Self {
        Self {
            clip: 1.0,
            weight_max: 1,
            rounding: Rounding::Nearest,
            drop_out: 0.3,
            colluding: 0.1,
            stage_deadline_ms: Millis(60_000),
        }
    }
}

/// How values become levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// The nearest level.
    #[default]
    Nearest,
    /// Either, so that the mean of many roundings is the value.
    Stochastic,
}

/// What a device needs to turn its update into levels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// See [`SecureAggregation::clip`].
    pub clip: f32,
    /// See [`SecureAggregation::weight_max`].
    pub weight_max: u32,
    /// See [`SecureAggregation::rounding`].
    pub rounding: Rounding,
    /// Devices whose sum has room in 32 bits.
    pub devices: u32,
    /// Whether one more value, 1 or 0, says if the update was not longer than
    /// [`LocalTraining::update_norm_max`].
    ///
    /// [`LocalTraining::update_norm_max`]: super::LocalTraining::update_norm_max
    #[serde(default, skip_serializing_if = "is_default")]
    pub within: bool,
}

/// Local training whose result is sent masked only. Agents that do not know masks do not
/// understand it, and so send nothing unmasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskedTrainTask {
    /// What to train.
    pub train: TrainTask,
    /// What becomes of the result.
    pub levels: Levels,
}

impl SecureAggregation {
    /// What is out of range: the field, its value, what is accepted.
    pub(super) fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut problems = Vec::new();
        let mut check = |valid: bool, name, found: String, expected| {
            if !valid {
                problems.push((name, found, expected));
            }
        };
        let clip = self.clip > 0.0 && self.clip.is_finite();
        check(clip, "clip", self.clip.to_string(), "above 0, finite");
        let weight = (1..=WEIGHT_MAX).contains(&self.weight_max);
        check(weight, "weight_max", self.weight_max.to_string(), "1 to 10000");
        let drop_out = (0.0..=0.4).contains(&self.drop_out);
        check(drop_out, "drop_out", self.drop_out.to_string(), "0 to 0.4");
        let colluding = (0.0..=0.4).contains(&self.colluding);
        check(colluding, "colluding", self.colluding.to_string(), "0 to 0.4");
        let time = self.stage_deadline_ms.0;
        let short = (100..=3_600_000).contains(&time);
        check(short, "stage_deadline_ms", time.to_string(), "100 to 3600000");
        problems
    }
}

/// With 250 devices there are more than 1,700 levels then.
const WEIGHT_MAX: u32 = 10_000;

/// Text that says nothing of secure aggregation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}: {reason}; expected settings such as clip=0.5,weight_max=100,rounding=stochastic,\
     drop_out=0.3,colluding=0.1,stage_deadline_ms=60000, each may be left out"
)]
pub struct SecureAggregationError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl FromStr for SecureAggregation {
    type Err = SecureAggregationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| SecureAggregationError { text: text.to_owned(), reason };
        let fields = settings::fields(text).map_err(fail)?;
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

impl fmt::Display for SecureAggregation {
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
        assert_eq!("".parse(), Ok(SecureAggregation::default()));
        let some: SecureAggregation =
            "clip=0.5,weight_max=100,rounding=stochastic,drop_out=0.1".parse().unwrap();
        let expected = SecureAggregation {
            clip: 0.5,
            weight_max: 100,
            rounding: Rounding::Stochastic,
            drop_out: 0.1,
            ..SecureAggregation::default()
        };
        assert_eq!(some, expected);
        assert_eq!(some.to_string().parse(), Ok(some));
        for (text, words) in [
            ("clip", "\"clip\" has no value"),
            ("clip=1,clip=2", "clip is there twice"),
            ("clip=much", "invalid type"),
            ("rounding=up", "unknown variant `up`"),
            ("clips=1", "unknown field `clips`"),
        ] {
            let error = text.parse::<SecureAggregation>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_found() {
        let names = |text: &str| {
            let found = text.parse::<SecureAggregation>().unwrap().problems();
            found.iter().map(|problem| problem.0).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(""), "");
        assert_eq!(
            names("clip=0,weight_max=0,drop_out=0.5,colluding=-1,stage_deadline_ms=1"),
            "clip weight_max drop_out colluding stage_deadline_ms"
        );
        assert_eq!(names("clip=1e30,weight_max=10001"), "weight_max");
    }

    fn problems_of(train: &str) -> Vec<String> {
        let text = format!(
            r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
            "rounds":1,{train}}}}}"#
        );
        let problems = crate::spec::validate(&serde_json::from_str(&text).unwrap());
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_job_needs_a_sum_of_some_updates_and_no_more_than_that() {
        let good = r#""participation":{"quorum":3},"strategy":{"name":"fedadam"},
            "secure_aggregation":{}"#;
        assert_eq!(problems_of(good), [""; 0]);
        let bad = r#""participation":{"quorum":2,"devices":251},"strategy":{"name":"normbound","norm":1},
            "secure_aggregation":{"drop_out":0.9}"#;
        let problems = problems_of(bad);
        let fields = problems.iter().map(|problem| problem.split(' ').next().unwrap());
        assert_eq!(
            fields.collect::<Vec<_>>().join(" ").replace("work.", ""),
            "secure_aggregation.drop_out strategy participation.quorum participation.devices"
        );
        assert_eq!(problems[0], "work.secure_aggregation.drop_out is 0.9: expected 0 to 0.4");
        let sum = r#""participation":{"quorum":3},"secure_aggregation":{}"#;
        assert_eq!(problems_of(&format!(r#"{sum},"download":"float32""#)), [""; 0]);
        let problems = problems_of(&format!(r#"{sum},"download":"int8""#));
        assert!(problems[0].contains("because masked updates are parameters"), "{problems:?}");
    }
}
