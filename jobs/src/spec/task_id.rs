//! Names of tasks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Purpose;
use crate::id::{Attempt, IdError, JobId, RoundNumber};

/// Names a task: the same id means the same work, whatever is delivered twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job it belongs to.
    pub job: JobId,
    /// The federated round, 0 outside of rounds.
    #[serde(default)]
    pub round: RoundNumber,
    /// Why.
    pub purpose: Purpose,
    /// How often this work was placed.
    pub attempt: Attempt,
}

/// One NATS token, `<job>-<round>-<purpose>-<attempt>`, for `Nats-Msg-Id`, logs and file names.
impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, round, purpose, attempt } = self;
        write!(f, "{job}-{round}-{}-{attempt}", purpose.as_str())
    }
}

impl FromStr for TaskId {
    type Err = IdError;

    /// Parses what [`TaskId`]'s `Display` writes; the job's name may hold `-` itself.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let id = parse_task_id(text).filter(|id| id.to_string() == text);
        id.ok_or_else(|| IdError {
            kind: "task id",
            text: text.chars().take(80).collect(),
            expected: "<job>-<round>-<purpose>-<attempt>, such as '01job-3-train-1'",
        })
    }
}

fn parse_task_id(text: &str) -> Option<TaskId> {
    let mut parts = text.rsplitn(4, '-');
    let attempt = Attempt(parts.next()?.parse().ok()?);
    let purpose = parts.next()?;
    let purpose = Purpose::ALL.into_iter().find(|known| known.as_str() == purpose)?;
    let round = RoundNumber(parts.next()?.parse().ok()?);
    let job = JobId::parse(parts.next()?).ok()?;
    Some(TaskId { job, round, purpose, attempt })
}
