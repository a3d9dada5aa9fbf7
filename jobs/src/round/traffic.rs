//! Bytes that travel in a round.

use serde::{Deserialize, Serialize};

use super::member::Member;
use super::{Aggregate, Moved, Round};
use crate::id::{BlobRef, Bytes, DeviceId};

/// What travelled at the stages of a round with masks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Exchanged {
    /// To devices: what they were asked.
    asked: Bytes,
    /// From each of them: what it said; ordered by device.
    said: Vec<(DeviceId, Bytes)>,
}

impl Exchanged {
    /// Whether nothing travelled.
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// A device said this.
    pub(super) fn note(&mut self, device: &DeviceId, message: &BlobRef) {
        let bytes = match self.said.binary_search_by(|(known, _)| known.cmp(device)) {
            Ok(place) => &mut self.said[place].1,
            Err(place) => {
                self.said.insert(place, (device.clone(), Bytes(0)));
                &mut self.said[place].1
            }
        };
        bytes.0 = bytes.0.saturating_add(message.size.0);
    }
}

impl Round {
    /// Devices were asked so many bytes at a stage: what neighbours said, which only the shell knows.
    pub(crate) fn asked(&mut self, bytes: Bytes) {
        let asked = &mut self.exchanged.asked.0;
        *asked = asked.saturating_add(bytes.0);
    }

    /// Bytes that each device sent at stages; the round forgets them.
    pub(super) fn take_said(&mut self) -> Vec<(DeviceId, Bytes)> {
        std::mem::take(&mut self.exchanged).said
    }

    /// Bytes of updates that arrived, and of parameters that were offered.
    pub(super) fn moved(&self, aggregate: &Aggregate) -> Moved {
        let answers = self.members.iter().filter_map(Member::answer);
        let own: u64 = match &self.exchange {
            // Who drops out later has sent its keys all the same.
            Some(exchange) => total(exchange.keys.iter().map(|(_, keys)| keys.size.0)),
            None => total(answers.map(|update| update.report.sent().0)),
        };
        let late = total(self.stragglers.counted().map(|(_, update, _)| update.sent().0));
        let said = total(self.exchanged.said.iter().map(|(_, bytes)| bytes.0));
        let up = total([own, late, said].into_iter());
        let offered = |blob: &BlobRef, devices: usize| blob.size.0.saturating_mul(devices as u64);
        let invited = self.members.len() + self.stragglers.left_by(self.plan.round);
        let begun = self.plan.encoded.as_ref().unwrap_or(&self.plan.parameters);
        let made = aggregate.encoded.as_ref().unwrap_or(&aggregate.parameters);
        let down =
            [offered(begun, invited), offered(made, self.judges.len()), self.exchanged.asked.0];
        Moved { up: Bytes(up), down: Bytes(total(down.into_iter())) }
    }
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}
