//! Bytes of a round that the round itself does not know.

use super::Training;
use crate::id::Bytes;
use crate::round::Outcome;

impl Training {
    /// The shell asked devices so many bytes at a stage of the round at work.
    pub fn asked(&mut self, bytes: Bytes) {
        if let Some(round) = &mut self.round {
            round.asked(bytes);
        }
    }

    /// Adds the server's control variate, which everyone invited gets with the parameters.
    pub(super) fn add_controls(&self, outcome: &mut Outcome) {
        let control = self.server_state.as_ref().filter(|_| self.keeps_controls());
        let bytes = control.map_or(0, |control| control.size.0);
        let all = bytes.saturating_mul(outcome.invited() as u64);
        if let Some(moved) = &mut outcome.moved {
            moved.down.0 = moved.down.0.saturating_add(all);
        }
    }

    /// Takes off the parameters of devices that judged them when they were made: they have them still.
    pub(super) fn subtract_held(&self, outcome: &mut Outcome) {
        let made = self.history.iter().rev().find(|before| before.failure.is_none());
        let Some(made) = made else { return };
        let holders = made.evaluations.iter().filter(|(device, _)| outcome.was_invited(device));
        let size = made.encoded.as_ref().unwrap_or(&made.parameters).size.0;
        let held = size.saturating_mul(holders.count() as u64);
        if let Some(moved) = &mut outcome.moved {
            moved.down.0 = moved.down.0.saturating_sub(held);
        }
    }
}
