//! Rules that bear some devices' updates being wrong, by fault or by intent.
//!
//! | rule | bears | needs of whole vectors | combines by |
//! |---|---|---|---|
//! | [`TrimmedMean`](trimmed_mean::TrimmedMean), also as median | `n > 2 f` | nothing | itself |
//! | [`MultiKrum`](krum::MultiKrum), also as Krum | `n >= 2 f + 3` | distances | `combine` |
//! | [`Bulyan`](bulyan::Bulyan) | `n >= 4 f + 3` | distances | itself |
//! | [`GeometricMedian`](geometric_median::GeometricMedian) | `n > 2 f` | distances | `combine` |
//! | [`CentredClipping`](centred_clipping::CentredClipping) | `n >= 10 f` proven | distances | `combine` |
//! | [`NormBound`](norm_bound::NormBound) | bounds each one's pull | norms | `combine` |
//!
//! Each says what it made of every device: [`Influence`]. All devices weigh the same: how many examples
//! a device has is what it says of itself, and one that says enough would be the result.

pub mod bulyan;
pub mod centred_clipping;
pub mod geometric_median;
pub mod krum;
pub mod norm_bound;
pub mod trimmed_mean;

mod columns;
mod network;

/// What became of one device's update, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Influence {
    /// What became of it.
    pub verdict: Verdict,
    /// What that was judged by.
    pub measure: Measure,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It counts as it is.
    Kept,
    /// It counts, but less than it would alone.
    Reduced,
    /// It does not count.
    Refused,
}

/// What an update was judged by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    /// Krum's score, a sum of squared distances, beside that of the device that was kept last.
    Score {
        /// This device's.
        score: f64,
        /// That of the one kept last: of those refused none is below it.
        limit: f64,
    },
    /// Distance from the result, and the share in it.
    Distance {
        /// Euclidean.
        distance: f64,
        /// 0 to 1.
        share: f64,
    },
    /// Distance from the centre, beside the largest one that is not shortened.
    Norm {
        /// Euclidean.
        norm: f64,
        /// The bound.
        limit: f64,
    },
    /// Coordinates whose value lies within the range that was kept there.
    Coordinates {
        /// Of this device.
        kept: u64,
        /// Of the vector.
        total: u64,
    },
}

/// A rule cannot bear so many byzantine devices among so few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rule}: {inequality} must hold, found n = {devices} devices, f = {byzantine} byzantine: \
     at least {needed} devices are needed"
)]
pub struct TooFewDevices {
    /// The rule.
    pub rule: &'static str,
    /// What must hold of `n` and `f`.
    pub inequality: &'static str,
    /// `n`
    pub devices: usize,
    /// `f`
    pub byzantine: usize,
    /// The fewest devices that would do.
    pub needed: usize,
}

impl TooFewDevices {
    /// Checks `n >= factor f + addend`, which the inequality says in words.
    fn check(
        (rule, inequality): (&'static str, &'static str),
        (factor, addend): (usize, usize),
        devices: usize,
        byzantine: usize,
    ) -> Result<(), Self> {
        let needed = byzantine.saturating_mul(factor).saturating_add(addend);
        if devices >= needed {
            return Ok(());
        }
        Err(Self { rule, inequality, devices, byzantine, needed })
    }
}
