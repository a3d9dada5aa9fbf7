//! Where a training begins.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::text_or_table;
use crate::id::{IdError, JobId, RoundNumber};

/// Rounds whose parameters a job keeps, at most: each is a model in the object store.
pub const KEEP_ROUNDS_MAX: u32 = 100;

/// A round of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct RoundOf {
    /// Which job.
    pub job: JobId,
    /// Which of its rounds; the newest one that gave new parameters when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<RoundNumber>,
}

text_or_table!(
    RoundOf,
    "a job or one of its rounds such as \"JOB\" or \"JOB:3\", or a table such as {\"job\": \"JOB\", \
     \"round\": 3}",
    RoundOf::deserialize
);

/// As the command line takes it.
impl fmt::Display for RoundOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.round {
            Some(round) => write!(f, "{}:{round}", self.job),
            None => write!(f, "{}", self.job),
        }
    }
}

impl FromStr for RoundOf {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (job, round) = match text.split_once(':') {
            Some((job, round)) => (job, Some(round)),
            None => (text, None),
        };
        let number = |round: &str| {
            let number = round.parse().ok().filter(|number| *number > 0).map(RoundNumber);
            number.ok_or_else(|| IdError {
                kind: "round",
                text: round.chars().take(80).collect(),
                expected: "the number of a round, from 1 on",
            })
        };
        Ok(Self { job: JobId::parse(job)?, round: round.map(number).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in
            [("01job", r#"{"job":"01job"}"#), ("a-1:12", r#"{"job":"a-1","round":12}"#)]
        {
            let from: RoundOf = text.parse().unwrap();
            assert_eq!(from.to_string(), text);
            assert_eq!(serde_json::to_string(&from).unwrap(), json);
            assert_eq!(serde_json::from_str::<RoundOf>(json).unwrap(), from);
        }
        for text in ["", "a:", "a:0", "a:x", "A:1", "a:1:2"] {
            assert!(text.parse::<RoundOf>().is_err(), "{text:?}");
        }
    }
}
