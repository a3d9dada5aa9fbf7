//! Where a round is.

use serde::{Deserialize, Serialize};

use super::{Aggregate, Outcome};
use crate::id::Millis;
use crate::spec::Purpose;

/// Where the round is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Phase {
    /// Waiting for enough devices; `found` were there last time.
    Selecting { ask_again_at: Millis, found: usize },
    /// Waiting for updates, or only for checks of those that came before the deadline.
    Collecting { since: Millis, closed: bool },
    /// Waiting for what devices say at a stage, or only for checks.
    Exchanging { purpose: Purpose, closed_at: Millis, since: Millis, closed: bool },
    /// Waiting for the new parameters.
    Aggregating { closed_at: Millis },
    /// Waiting for judgements of the new parameters.
    Evaluating {
        closed_at: Millis,
        since: Millis,
        #[serde(flatten)]
        aggregate: Box<Aggregate>,
    },
    /// Over.
    Ended { outcome: Box<Outcome> },
}
