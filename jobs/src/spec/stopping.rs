//! When a training has learnt enough, and which of its rounds is the result.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::text_or_table;

/// Ends a job successfully when evaluation does not improve any more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct EarlyStopping {
    /// Judged rounds in a row without an improvement after which the job ends.
    pub patience: u32,
    /// An improvement is by more than this, 0 or above.
    #[serde(default)]
    pub min_delta: f64,
    /// What has to improve.
    #[serde(default)]
    pub metric: Metric,
}

text_or_table!(
    EarlyStopping,
    "text such as \"3\" or \"3:0.001:accuracy\", or a table such as {\"patience\": 3, \
     \"min_delta\": 0.001, \"metric\": \"accuracy\"}",
    EarlyStopping::deserialize
);

/// What rounds are compared by: the judgement of their parameters, weighted by test examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The less, the better.
    #[default]
    Loss,
    /// The more, the better.
    Accuracy,
}

impl Metric {
    const ALL: [Self; 2] = [Self::Loss, Self::Accuracy];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
        }
    }

    /// Whether a value is better than another by more than `delta`.
    pub fn is_better(self, value: f64, than: f64, delta: f64) -> bool {
        match self {
            Self::Loss => value < than - delta,
            Self::Accuracy => value > than + delta,
        }
    }
}

/// Which round's parameters are the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Those of the last one.
    #[default]
    Last,
    /// Those of the one that was judged best, by [`EarlyStopping::metric`], or by loss.
    Best,
}

impl Keep {
    const ALL: [Self; 2] = [Self::Last, Self::Best];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Best => "best",
        }
    }
}

/// Text that says neither when to stop nor what to keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoppingError {
    /// No [`EarlyStopping`].
    #[error(
        "{0:?} does not say when to stop: expected PATIENCE[:MIN_DELTA[:METRIC]] such as 3, \
         3:0.001 or 3:0.01:accuracy"
    )]
    EarlyStopping(String),
    /// No [`Metric`].
    #[error("{0:?} is no metric: expected loss or accuracy")]
    Metric(String),
    /// No [`Keep`].
    #[error("{0:?} is no round to keep: expected last or best")]
    Keep(String),
}

impl FromStr for Metric {
    type Err = StoppingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|metric| metric.as_str() == text);
        found.ok_or_else(|| StoppingError::Metric(text.to_owned()))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Keep {
    type Err = StoppingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|keep| keep.as_str() == text);
        found.ok_or_else(|| StoppingError::Keep(text.to_owned()))
    }
}

/// As the command line takes it.
impl fmt::Display for EarlyStopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.patience, self.min_delta, self.metric.as_str())
    }
}

impl FromStr for EarlyStopping {
    type Err = StoppingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || StoppingError::EarlyStopping(text.to_owned());
        let mut parts = text.split(':');
        let patience = parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong)?;
        let min_delta = parts.next().map_or(Ok(0.0), str::parse).map_err(|_| wrong())?;
        let metric = parts.next().map_or(Ok(Metric::default()), str::parse)?;
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { patience, min_delta, metric })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("3:0:loss", r#"{"patience":3,"min_delta":0.0,"metric":"loss"}"#),
            ("10:0.25:accuracy", r#"{"patience":10,"min_delta":0.25,"metric":"accuracy"}"#),
        ] {
            let stopping: EarlyStopping = text.parse().unwrap();
            assert_eq!(stopping.to_string(), text);
            assert_eq!(serde_json::to_string(&stopping).unwrap(), json);
        }
        let short: EarlyStopping = serde_json::from_str(r#"{"patience":3}"#).unwrap();
        assert_eq!("3".parse(), Ok(short));
        for keep in Keep::ALL {
            assert_eq!(keep.to_string().parse(), Ok(keep));
            assert_eq!(serde_json::to_value(keep).unwrap(), keep.as_str());
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        for (text, expected) in [
            ("", "PATIENCE"),
            ("-1", "PATIENCE"),
            ("3:x", "PATIENCE"),
            ("3:0:loss:1", "PATIENCE"),
            ("3:0:f1", "loss or accuracy"),
        ] {
            let error = text.parse::<EarlyStopping>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert!("worst".parse::<Keep>().unwrap_err().to_string().contains("last or best"));
    }
}
