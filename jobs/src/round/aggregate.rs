//! What the updates of a round come to.

use serde::{Deserialize, Serialize};

use super::{Phase, Round};
use crate::id::{BlobRef, Bytes, DeviceId};

/// What the updates of a round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aggregate {
    /// The new parameters.
    pub parameters: BlobRef,
    /// What the server optimizer keeps for the next round, if it keeps anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_state: Option<BlobRef>,
    /// The new parameters as they travel to devices, where they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
    /// What became of each update, ordered by device; nothing where all of them count as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub influences: Vec<(DeviceId, Influence)>,
    /// With an adaptive norm, the noised share of updates that were not longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<f64>,
}

impl Aggregate {
    /// New parameters, and nothing to say of them.
    pub fn of(parameters: BlobRef) -> Self {
        Self { parameters, server_state: None, encoded: None, influences: Vec::new(), within: None }
    }
}

impl Round {
    /// The new parameters, once they are there and while they are judged.
    pub fn made(&self) -> Option<&Aggregate> {
        match &self.phase {
            Phase::Evaluating { aggregate, .. } => Some(aggregate),
            Phase::Selecting { .. }
            | Phase::Collecting { .. }
            | Phase::Exchanging { .. }
            | Phase::Aggregating { .. }
            | Phase::Ended { .. } => None,
        }
    }
}

/// What a robust strategy made of a device's update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Influence {
    /// What became of it.
    pub verdict: Verdict,
    /// What it was judged by, for people.
    pub reason: String,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It counts as it is.
    Kept,
    /// It counts less than it would alone.
    Reduced,
    /// It does not count.
    Refused,
}

/// Bytes of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moved {
    /// Of the updates that arrived, with control variates and with all that devices sent at the stages
    /// of a secure aggregation.
    pub up: Bytes,
    /// Of the parameters that were offered, to train from and to judge, with control variates and what
    /// devices were asked at stages; a device that judged them in the round before fetches none.
    pub down: Bytes,
}
