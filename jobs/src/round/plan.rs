//! What a round is told at its beginning.

use serde::{Deserialize, Serialize};

use super::{Sampling, Versions};
use crate::id::{BlobRef, Millis, RoundNumber};
use crate::spec::{Evaluate, Participation};

/// What a round is told at its beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Which round.
    pub round: RoundNumber,
    /// The global parameters.
    pub parameters: BlobRef,
    /// The same as they travel to devices, where they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
    /// Who takes part.
    pub participation: Participation,
    /// Who judges the result.
    #[serde(default)]
    pub evaluate: Evaluate,
    /// Seeds the selection.
    pub seed: u64,
    /// Invites each eligible device by chance; absent where `participation` says how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// So many devices are enough if the plan wants more: there were no more in the round before,
    /// though they were hoped for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hoped: Option<usize>,
    /// Updates are masked; what a device says at a stage is waited for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<Millis>,
    /// Which versions updates may come from; absent where late updates do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
}
