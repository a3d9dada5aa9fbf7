//! Coordinate-wise trimmed mean and median (Yin et al. 2018, arXiv 1803.01498): examples do not
//! count, one device is one voice.

use super::columns::{Columns, Combined, Values};
use super::network::WIDTH;
use super::{Influence, Measure, TooFewDevices, Verdict};
use crate::federated::tile::TileError;

/// Mean of each coordinate's values without the lowest and the highest ones.
#[derive(Debug, Clone)]
pub struct TrimmedMean {
    /// Wanted are the places that are averaged.
    columns: Columns,
}

/// Why there is no such mean.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum TrimmedMeanError {
    /// The part cut off at each end leaves nothing, or is below nothing.
    #[error("fraction {0} is cut off at each end, expected 0 to below 0.5")]
    Fraction(f64),
    /// Too few devices.
    #[error(transparent)]
    Devices(#[from] TooFewDevices),
}

impl TrimmedMean {
    /// Cuts off `fraction` of the devices, rounded down, at each end.
    ///
    /// # Errors
    /// [`TrimmedMeanError`]
    #[expect(clippy::cast_possible_truncation, reason = "rounding down is the rule")]
    #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a small count")]
    pub fn new(devices: usize, fraction: f64) -> Result<Self, TrimmedMeanError> {
        if !(0.0..0.5).contains(&fraction) {
            return Err(TrimmedMeanError::Fraction(fraction));
        }
        Ok(Self::tolerating(devices, (fraction * devices as f64) as usize)?)
    }

    /// Cuts off as many values at each end as there may be byzantine devices.
    ///
    /// # Errors
    /// [`TooFewDevices`] when `n > 2 f` does not hold.
    pub fn tolerating(devices: usize, byzantine: usize) -> Result<Self, TooFewDevices> {
        TooFewDevices::check(("trimmed mean", "n > 2 f"), (2, 1), devices, byzantine)?;
        Ok(Self { columns: Columns::new(devices, byzantine..devices - byzantine) })
    }

    /// The median: cuts off all but the middle value, or the middle two.
    ///
    /// # Errors
    /// [`TooFewDevices`] when there is none.
    pub fn median(devices: usize) -> Result<Self, TooFewDevices> {
        Self::tolerating(devices, devices.saturating_sub(1) / 2)
    }

    /// A tile of the result; tiles may come in any order.
    ///
    /// Shapes: `rows [n][length]` -> `combined [length]`.
    ///
    /// # Errors
    /// [`TileError`]; `combined` is then without meaning.
    pub fn tile(&mut self, rows: &[&[f32]], combined: &mut [f32]) -> Result<(), TileError> {
        self.columns.combine(rows, combined, average)
    }

    /// How much of each device's update lies within what was averaged so far, by device. A device
    /// that is refused lies outside everywhere.
    pub fn influences(&self) -> Vec<Influence> {
        let total = self.columns.total;
        let influence = |kept: &u64| Influence {
            verdict: match *kept {
                0 => Verdict::Refused,
                kept if kept == total => Verdict::Kept,
                _ => Verdict::Reduced,
            },
            measure: Measure::Coordinates { kept: *kept, total },
        };
        self.columns.kept.iter().map(influence).collect()
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
#[expect(clippy::cast_possible_truncation, reason = "the mean of f32 values fits f32")]
#[expect(clippy::cast_precision_loss, reason = "a number of devices")]
fn average(sorted: &[Values]) -> Combined {
    let mut sums = [0.0_f64; WIDTH];
    for values in sorted {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value);
        }
    }
    let count = sorted.len() as f64;
    let mut values = [0.0; WIDTH];
    for (value, sum) in values.iter_mut().zip(&sums) {
        *value = (sum / count) as f32;
    }
    Combined { values, lowest: sorted[0], highest: sorted[sorted.len() - 1] }
}

#[cfg(test)]
mod tests;
