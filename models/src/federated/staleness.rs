//! Asynchronous rounds: how much an update counts that was trained from an older version.
//!
//! `FedBuff` (Nguyen et al. 2022, arXiv 2106.06639) gathers `K` differences into
//! `u = 1 / K sum s(tau_k) D_k` and moves the parameters by `eta u`.

/// The weight `s = (1 + tau)^-exponent` of an update by its staleness `tau`, the versions made since
/// the one that it was trained from. 1 where it is fresh.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Staleness {
    /// At least 0; 1/2 in `FedBuff`.
    pub exponent: f64,
}

/// An exponent below 0, NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("exponent is {0}, expected a finite number of at least 0")]
pub struct StalenessError(pub f64);

impl Staleness {
    /// The weight of an update that is so many versions old: above 0, at most 1.
    ///
    /// # Errors
    /// [`StalenessError`].
    pub fn weight(&self, versions: u32) -> Result<f64, StalenessError> {
        let Self { exponent } = *self;
        if !(exponent >= 0.0 && exponent.is_finite()) {
            return Err(StalenessError(exponent));
        }
        Ok((1.0 + f64::from(versions)).powf(-exponent))
    }
}

#[cfg(test)]
mod tests;
