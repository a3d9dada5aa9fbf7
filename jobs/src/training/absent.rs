//! Who would take part in a round, and is not there.

use super::Training;
use crate::id::DeviceId;
use crate::report::Failure;
use crate::round::Round;

/// Devices that are named, at most: the stored state has to fit into one message.
const ABSENT_MAX: usize = 100;

impl Training {
    /// The shell looked up who is there, and these are not, for a reason each; before the devices that
    /// are found. Nothing is noted once the round has invited some.
    pub fn absent(&mut self, mut devices: Vec<(DeviceId, Failure)>) {
        if self.round.as_ref().is_some_and(Round::is_selecting) {
            devices.truncate(ABSENT_MAX);
            self.absent = devices;
        }
    }

    /// Whether those are missing from the round at work: where it could invite more than it did, or
    /// has as many as it wants, nobody is.
    pub(super) fn misses_absent(&self) -> bool {
        let Some(round) = &self.round else { return false };
        let (wanted, there) = (round.plan().participation.devices, round.there().unwrap_or(0));
        let lacks = wanted.is_none_or(|wanted| there < wanted as usize);
        round.is_selecting() || (lacks && round.invites_all())
    }
}
