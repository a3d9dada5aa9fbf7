//! Differential privacy: what the releases of a job cost together, and when a budget is spent.
//!
//! A release is a sum over devices with Gaussian noise, whose deviation is `noise_multiplier` times
//! the most that one device can change the sum by. The unit that is protected is a device with all
//! its examples. Nothing here is about weights: this is the bookkeeping.
//!
//! - Without sampling the cost is exact: releases compose to one Gaussian mechanism, see
//!   [`gaussian`]. Neighbours are two jobs in one of which a device's update is 0 in every release
//!   (zero-out): who takes part is known here, since every eligible device does, so that a device is
//!   not hidden by its absence. One update, no longer than the norm, is all that differs; the divisor
//!   is the planned number in both.
//! - With Poisson sampling it is an upper bound by Rényi differential privacy, see
//!   [`sampled_gaussian`]. Neighbours are two jobs in one of which a device is not there.

use serde::{Deserialize, Serialize};

pub mod gaussian;
pub mod sampled_gaussian;
mod special;

/// Releases of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Releases {
    /// The chance of each device to be in a release, above 0; at 1 all of them are.
    pub sampling_rate: f64,
    /// Deviation of the noise by the most that one device changes, above 0.
    pub noise_multiplier: f64,
    /// How many.
    pub count: u32,
}

/// The `epsilon` of all these releases at this `delta` (above 0, below 1): whoever sees them all
/// is told apart with or without a device by a factor of `exp(epsilon)` at most, but for a chance
/// of `delta`. Later releases may depend on earlier ones.
///
/// Infinite when there is no bound.
pub fn epsilon(releases: &[Releases], delta: f64) -> f64 {
    let made = || releases.iter().filter(|releases| releases.count > 0);
    if made().all(|releases| releases.sampling_rate >= 1.0) {
        let square =
            |it: &Releases| f64::from(it.count) / (it.noise_multiplier * it.noise_multiplier);
        return gaussian::epsilon(made().map(square).sum::<f64>().sqrt(), delta);
    }
    sampled_gaussian::epsilon(releases, delta)
}

/// The smallest noise multiplier with which so many releases stay within `epsilon`, rounded up to
/// four significant digits or so; none where no noise would do.
pub fn noise_multiplier(count: u32, sampling_rate: f64, epsilon: f64, delta: f64) -> Option<f64> {
    const MAX: f64 = 1e6;
    let fits = |noise_multiplier: f64| {
        let releases = Releases { sampling_rate, noise_multiplier, count };
        self::epsilon(&[releases], delta) <= epsilon
    };
    let (mut low, mut high) = (0.0, 1.0);
    while !fits(high) {
        (low, high) = (high, 2.0 * high);
        if high > MAX {
            return None;
        }
    }
    while high - low > 1e-4 * high {
        let middle = f64::midpoint(low, high);
        if fits(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// The noise multiplier of updates beside a count whose noise has this deviation, so that both
/// together cost what one release with `noise_multiplier` costs (Andrew et al. 2021, arXiv
/// 1905.03871, theorem 1). One device changes the count by one half at most.
///
/// Not a number where the count alone costs more.
pub fn update_noise_multiplier(noise_multiplier: f64, count_deviation: f64) -> f64 {
    let count = 2.0 * count_deviation;
    (noise_multiplier.powi(-2) - count.powi(-2)).powf(-0.5)
}

/// What a training has spent, as it was when a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Rounds that were paid for, failed ones among them.
    pub rounds: u32,
    /// What they cost together.
    pub epsilon: f64,
    /// Chance with which the promise may fail.
    pub delta: f64,
    /// Deviation of a round's noise by the most that one device changes.
    pub noise_multiplier: f64,
    /// The chance of each device to be in a round.
    pub sampling_rate: f64,
    /// Devices that the sum of a round is divided by; absent where devices add the noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<u32>,
    /// The longest update that counted in this round.
    pub norm: f64,
}

#[cfg(test)]
mod tests;
