//! Where a round is, for people.

use serde::{Deserialize, Serialize};

use super::member::Member;
use super::{Phase, Plan, Round, Stragglers};
use crate::id::{DeviceId, Millis, RoundNumber};
use crate::spec::{Purpose, is_default};

/// Where a round is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which round.
    pub round: RoundNumber,
    /// `selecting`, `collecting`, `sharing`, `masking`, `unmasking`, `aggregating`, `evaluating` or
    /// `ended`.
    pub phase: String,
    /// Devices that were offered the training.
    pub invited: usize,
    /// Devices that train from an earlier round's parameters.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stragglers: usize,
    /// Those of the invited that are offline.
    pub lost: usize,
    /// Updates that arrived and are usable.
    pub updates: usize,
    /// Updates at which collecting closes; 0 while selecting.
    pub target: usize,
    /// Updates without which the round fails.
    pub quorum: usize,
    /// Judgements that arrived.
    pub judgements: usize,
    /// When it began.
    pub started_at: Millis,
    /// When this phase ends at the latest.
    pub deadline: Option<Millis>,
}

impl Round {
    /// Whether a device was invited.
    pub fn is_invited(&self, device: &DeviceId) -> bool {
        self.members.binary_search_by(|member| member.device.cmp(device)).is_ok()
    }

    /// Whether an update of a device may still come.
    pub(crate) fn awaits(&self, device: &DeviceId) -> bool {
        let found = self.members.binary_search_by(|member| member.device.cmp(device));
        let member = found.ok().and_then(|index| self.members.get(index));
        matches!(self.phase, Phase::Collecting { .. }) && member.is_some_and(Member::is_open)
    }

    /// Where the round is, for people.
    pub fn status(&self) -> Status {
        let phase = match self.phase {
            Phase::Selecting { .. } => "selecting",
            Phase::Collecting { .. } => "collecting",
            Phase::Exchanging { purpose: Purpose::Share, .. } => "sharing",
            Phase::Exchanging { purpose: Purpose::Mask, .. } => "masking",
            Phase::Exchanging { .. } => "unmasking",
            Phase::Aggregating { .. } => "aggregating",
            Phase::Evaluating { .. } => "evaluating",
            Phase::Ended { .. } => "ended",
        };
        Status {
            round: self.plan.round,
            phase: phase.to_owned(),
            invited: self.members.len(),
            stragglers: self.stragglers.len(),
            lost: self.members.iter().filter(|member| member.lost).count(),
            updates: self.count(|update| update.checked) + self.stragglers.ready(),
            target: self.target,
            quorum: self.quorum(),
            judgements: self.judges.iter().filter(|judge| judge.answer().is_some()).count(),
            started_at: self.started_at,
            deadline: self.deadline(),
        }
    }

    /// Whether it waits for devices.
    pub(crate) fn is_selecting(&self) -> bool {
        matches!(self.phase, Phase::Selecting { .. })
    }

    /// Devices that train from an earlier round's parameters.
    pub fn stragglers(&self) -> &Stragglers {
        &self.stragglers
    }

    /// What the round was told at its beginning.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether every device that could be invited was, and will be again if it is there.
    pub fn invites_all(&self) -> bool {
        self.spares.is_empty() && self.passed_over.is_empty() && self.plan.sampling.is_none()
    }

    /// Devices that could have been invited, and those that were.
    pub fn eligible(&self) -> impl Iterator<Item = &DeviceId> {
        self.members.iter().map(|member| &member.device).chain(&self.spares)
    }

    /// Devices that were there when it invited some; none before.
    pub fn there(&self) -> Option<usize> {
        Some(self.there).filter(|there| *there > 0)
    }
}
