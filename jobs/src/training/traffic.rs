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
        outcome.moved.down.0 = outcome.moved.down.0.saturating_add(all);
    }
}
