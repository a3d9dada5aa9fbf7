//! The step size over the steps of a job.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::text_or_table;

/// What a device multiplies the step size with, after the warm-up. Steps are the device's own,
/// counted over the whole job: those of the rounds that succeeded before, each with as many steps
/// as this round has, and those of this round.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub enum Schedule {
    /// Nothing.
    #[default]
    Constant,
    /// Another `factor` after every so many steps.
    Step {
        /// Steps between two falls.
        every: u32,
        /// Above 0, at most 1.
        factor: f64,
    },
    /// Half a cosine from 1 to `floor`, which then stays (Loshchilov & Hutter 2017).
    Cosine {
        /// The last factor, 0 to 1.
        #[serde(default)]
        floor: f64,
        /// Steps of the fall; the whole job's after the warm-up when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<u32>,
    },
}

text_or_table!(
    Schedule,
    "a schedule such as \"constant\" or \"step:500:0.5\", or a table such as {\"kind\": \"step\", \
     \"every\": 500, \"factor\": 0.5}",
    Schedule::deserialize
);

/// Text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no schedule: expected constant, step:EVERY:FACTOR such as step:500:0.5, or \
     cosine[:FLOOR[:STEPS]]"
)]
pub struct ScheduleError(String);

/// As the command line takes it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Step { every, factor } => write!(f, "step:{every}:{factor}"),
            Self::Cosine { floor, steps: None } => write!(f, "cosine:{floor}"),
            Self::Cosine { floor, steps: Some(steps) } => write!(f, "cosine:{floor}:{steps}"),
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(':').collect();
        let schedule = match parts[..] {
            ["constant"] => Some(Self::Constant),
            ["step", every, factor] => every
                .parse()
                .ok()
                .zip(factor.parse().ok())
                .map(|(every, factor)| Self::Step { every, factor }),
            ["cosine"] => Some(Self::Cosine { floor: 0.0, steps: None }),
            ["cosine", floor] => {
                floor.parse().ok().map(|floor| Self::Cosine { floor, steps: None })
            }
            ["cosine", floor, steps] => floor
                .parse()
                .ok()
                .zip(steps.parse().ok())
                .map(|(floor, steps)| Self::Cosine { floor, steps: Some(steps) }),
            _ => None,
        };
        schedule.ok_or_else(|| ScheduleError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("constant", r#"{"kind":"constant"}"#),
            ("step:500:0.5", r#"{"kind":"step","every":500,"factor":0.5}"#),
            ("cosine:0", r#"{"kind":"cosine","floor":0.0}"#),
            ("cosine:0.125:900", r#"{"kind":"cosine","floor":0.125,"steps":900}"#),
        ] {
            let schedule: Schedule = text.parse().unwrap();
            assert_eq!(schedule.to_string(), text);
            assert_eq!(serde_json::to_string(&schedule).unwrap(), json);
            assert_eq!(serde_json::from_str::<Schedule>(json).unwrap(), schedule);
        }
        let cosine = Schedule::Cosine { floor: 0.0, steps: None };
        assert_eq!("cosine".parse(), Ok(cosine));
        assert_eq!(serde_json::from_str::<Schedule>(r#"{"kind":"cosine"}"#).unwrap(), cosine);
    }

    #[test]
    fn what_is_no_schedule_says_what_is() {
        for text in ["", "linear", "step", "step:5", "step:-1:0.5", "cosine:x", "cosine:0:1:2"] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("step:EVERY:FACTOR"), "{error}");
        }
        let error = serde_json::from_str::<Schedule>(r#"{"kind":"step","evry":1,"factor":0.5}"#);
        assert!(error.unwrap_err().to_string().contains("evry"));
    }
}
