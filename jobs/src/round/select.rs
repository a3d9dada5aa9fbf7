//! Who is invited.

use serde::{Deserialize, Serialize};

use super::DEVICES_MAX;
use crate::id::DeviceId;

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

/// The devices, each once, in an order that the seed decides; bounded.
pub(super) fn ranked(seed: u64, devices: &[DeviceId]) -> Vec<DeviceId> {
    let mut ranked: Vec<(u64, &DeviceId)> =
        devices.iter().map(|device| (rank(seed, device), device)).collect();
    ranked.sort();
    ranked.dedup();
    ranked.truncate(DEVICES_MAX);
    ranked.into_iter().map(|(_, device)| device.clone()).collect()
}

/// FNV-1a over the name, mixed with the seed as `SplitMix64` does.
fn rank(seed: u64, device: &DeviceId) -> u64 {
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
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a float becomes the nearest integer, and the list is cut to a bound anyway"
    )]
    let surplus = (wanted as f64 * share.clamp(0.0, 1000.0) - 1e-9).ceil() as usize;
    wanted.saturating_add(surplus).min(DEVICES_MAX)
}
