//! Asynchronous rounds: how much an update counts that was trained from an older version.
//!
//! `FedBuff` (Nguyen et al. 2022, arXiv 2106.06639) gathers `K` differences into
//! `u = 1 / K sum s(tau_k) D_k` and moves the parameters by `eta u`: see [`add_to_buffer`].
//! `FedAsync` (Xie et al. 2019, arXiv 1903.03934) mixes one set of parameters in at a time,
//! `x' = (1 - alpha s) x + alpha s w`: see [`mixing_share`].

use super::mean::WeightedMean;

/// The weight `s` of an update by its staleness `tau`, the versions made since the one that it was
/// trained from. 1 where it is fresh.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Staleness {
    /// `1`
    Constant,
    /// `(1 + tau)^-exponent`
    Polynomial {
        /// At least 0; 1/2 in `FedBuff`.
        exponent: f64,
    },
    /// `1` up to `grace`, then `1 / (1 + slope (tau - grace))`.
    Hinge {
        /// Above 0.
        slope: f64,
        /// Versions that cost nothing.
        grace: u64,
    },
}

/// Why an update has no weight.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum StalenessError {
    /// A setting out of range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Trained from a version that does not exist yet.
    #[error("trained from version {trained}, where the newest is {newest}")]
    Future {
        /// Version trained from.
        trained: u64,
        /// Newest version.
        newest: u64,
    },
}

impl Staleness {
    /// `FedBuff`'s `1 / sqrt(1 + tau)`.
    pub const FED_BUFF: Self = Self::Polynomial { exponent: 0.5 };

    /// The weight of an update trained from version `trained` when `newest` is the newest one:
    /// above 0, at most 1.
    ///
    /// # Errors
    /// [`StalenessError`].
    #[expect(clippy::cast_precision_loss, reason = "no fleet makes 2^53 versions")]
    pub fn weight(&self, trained: u64, newest: u64) -> Result<f64, StalenessError> {
        let Some(tau) = newest.checked_sub(trained) else {
            return Err(StalenessError::Future { trained, newest });
        };
        match *self {
            Self::Constant => Ok(1.0),
            Self::Polynomial { exponent } => {
                let holds = exponent >= 0.0 && exponent.is_finite();
                check_setting("exponent", exponent, "at least 0", holds)?;
                Ok((1.0 + tau as f64).powf(-exponent))
            }
            Self::Hinge { slope, grace } => {
                check_setting("slope", slope, "above 0", slope > 0.0 && slope.is_finite())?;
                Ok((1.0 + slope * tau.saturating_sub(grace) as f64).recip())
            }
        }
    }
}

/// Adds a difference of weight `s` to the mean of `FedBuff`'s buffer. Old updates make it shorter:
/// it is divided by their number, not by their weights. Of a difference in pieces, each is added
/// by [`WeightedMean::add_piece`] with weight `s`, and the whole counted as 1.
///
/// # Panics
/// When the difference is longer than the mean.
pub fn add_to_buffer(buffer: &mut WeightedMean, difference: &[f32], weight: f64) {
    buffer.add_piece(0, difference, weight);
    buffer.add_weight(1.0);
}

/// The learning rate of [`ServerOptimizer::FedAvg`](super::server::ServerOptimizer::FedAvg) that
/// mixes parameters of weight `s` in as `FedAsync` does: `alpha s`.
///
/// # Errors
/// [`StalenessError::Setting`] when `alpha` is not above 0 and at most 1.
pub fn mixing_share(alpha: f64, weight: f64) -> Result<f64, StalenessError> {
    check_setting("alpha", alpha, "above 0, at most 1", alpha > 0.0 && alpha <= 1.0)?;
    Ok(alpha * weight)
}

fn check_setting(
    name: &'static str,
    value: f64,
    expected: &'static str,
    holds: bool,
) -> Result<(), StalenessError> {
    if holds { Ok(()) } else { Err(StalenessError::Setting { name, value, expected }) }
}

#[cfg(test)]
mod tests;
