//! Who is invited.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{DEVICES_MAX, MASKED_DEVICES_MAX, Round};
use crate::id::DeviceId;
use crate::report::{Failure, FailureCode};
use crate::spec::{Participation, Selection};

/// Devices that a round names, at most: those that it has room for, and some that it has none for.
/// Its outcome has to fit into one message.
pub(super) const NAMED_MAX: usize = DEVICES_MAX + 250;

/// Leaves to chance who is invited: each device on its own (Poisson sampling).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The chance of each device, 0 to 1.
    pub rate: f64,
    /// Draws them; a secret.
    pub seed: u64,
}

impl Sampling {
    /// Whether this device is invited.
    pub(super) fn draws(&self, device: &DeviceId) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let drawn = (rank(self.seed, device) >> 11) as f64;
        drawn < self.rate * 2_f64.powi(53)
    }
}

/// The devices, each once, in an order that the seed decides.
pub(super) fn shuffled(seed: u64, devices: &[DeviceId]) -> Vec<DeviceId> {
    let mut ranked: Vec<(u64, &DeviceId)> =
        devices.iter().map(|device| (rank(seed, device), device)).collect();
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().map(|(_, device)| device.clone()).collect()
}

/// The devices, each once, as they come.
pub(super) fn as_given(devices: &[DeviceId]) -> Vec<DeviceId> {
    let mut known = BTreeSet::new();
    devices.iter().filter(|device| known.insert(*device)).cloned().collect()
}

/// Updates that a round wants of so many eligible devices; all of them where it does not say.
pub(super) fn wanted(participation: &Participation, eligible: usize) -> Option<usize> {
    let quorum = (participation.quorum as usize).max(1);
    let wanted = match participation.selection {
        Selection::Fraction { fraction } => Some(whole_share(eligible, fraction)),
        Selection::Cyclic => Some(1),
        Selection::Random
        | Selection::RoundRobin
        | Selection::ByLoss { .. }
        | Selection::BySpeed { .. }
        | Selection::Windows { .. } => participation.devices.map(|devices| devices as usize),
    };
    wanted.map(|wanted| wanted.max(quorum).min(DEVICES_MAX))
}

/// Devices to invite of so many eligible ones.
pub(super) fn invited(participation: &Participation, eligible: usize) -> usize {
    let wanted = wanted(participation, eligible);
    wanted.map_or(eligible, |wanted| with_surplus(wanted, participation.over_selection))
}

impl Round {
    /// Devices of a round like this one, at most.
    pub(super) fn room(&self) -> usize {
        if self.plan.masked.is_some() { MASKED_DEVICES_MAX } else { DEVICES_MAX }
    }

    /// Why a device was not invited that would have been.
    pub(super) fn no_room(&self) -> Failure {
        let with = if self.plan.masked.is_some() { " with secure aggregation" } else { "" };
        let (room, there) = (self.room(), self.there);
        let message = format!("a round{with} has room for {room} devices, {there} were there");
        Failure::new(FailureCode::NoRoom, message)
    }
}

/// FNV-1a over the name, mixed with the seed as `SplitMix64` does.
pub(super) fn rank(seed: u64, device: &DeviceId) -> u64 {
    let hash = device.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mixed(hash ^ mixed(seed))
}

/// The output function of `SplitMix64` (Steele, Lea, Flood 2014).
pub(crate) fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Devices to invite so that so many updates come although some are slow.
pub(super) fn with_surplus(wanted: usize, share: f64) -> usize {
    wanted.saturating_add(share_of(wanted, share.clamp(0.0, 1000.0))).min(DEVICES_MAX)
}

/// A share of a number, rounded up.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a float becomes the nearest integer, and the list is cut to a bound anyway"
)]
pub(super) fn share_of(all: usize, share: f64) -> usize {
    (all as f64 * share - 1e-9).ceil() as usize
}

/// A share of a number, rounded down.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a float becomes the nearest integer, and the list is cut to a bound anyway"
)]
fn whole_share(all: usize, share: f64) -> usize {
    (all as f64 * share + 1e-9).floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_rounded_down_and_has_the_quorum_at_least() {
        let wanted = |fraction: f64, quorum: u32, eligible: usize| {
            let selection = Selection::Fraction { fraction };
            let over_selection = 0.5;
            let part = Participation { over_selection, quorum, selection, ..Default::default() };
            (wanted(&part, eligible).unwrap(), invited(&part, eligible))
        };
        // int(N * fraction), and what decimal fractions would be.
        assert_eq!(wanted(0.29, 1, 100), (29, 44));
        assert_eq!(wanted(0.5, 1, 7), (3, 5));
        assert_eq!(wanted(0.1, 4, 20), (4, 6));
        assert_eq!(wanted(0.1, 0, 3), (1, 2));
        assert_eq!(wanted(1.0, 1, 10_000), (DEVICES_MAX, DEVICES_MAX));
    }

    #[test]
    fn without_a_number_all_take_part() {
        let all = Participation::default();
        assert_eq!((wanted(&all, 7), invited(&all, 7)), (None, 7));
        let cyclic = Participation { selection: Selection::Cyclic, ..all.clone() };
        assert_eq!((wanted(&cyclic, 7), invited(&cyclic, 7)), (Some(1), 1));
        let some = Participation { devices: Some(4), over_selection: 0.25, ..all };
        assert_eq!((wanted(&some, 2), invited(&some, 2)), (Some(4), 5));
    }
}
