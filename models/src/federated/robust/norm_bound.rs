//! Norm bounding: no update counts for more than one of this length (Sun et al. 2019, arXiv
//! 1911.07963; as the first half of differential privacy: McMahan et al. 2018, arXiv 1710.06963).

use super::{Influence, Measure, Verdict};

/// Shortens updates that are longer than the bound to it, `min(1, C / |D_k|)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormBound(f64);

/// Why updates cannot be bounded.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum NormBoundError {
    /// A bound that is not above 0.
    #[error("the bound is {0}, expected a finite one above 0")]
    Bound(f64),
    /// Not a share for each norm.
    #[error("expected a share for each of {norms} updates, found {shares}")]
    Shares {
        /// Norms given.
        norms: usize,
        /// Shares given.
        shares: usize,
    },
    /// A norm that is none.
    #[error("device {device}: norm {norm}, expected a finite one of at least 0")]
    Norm {
        /// Counted from 0.
        device: usize,
        /// What was given.
        norm: f64,
    },
}

/// Updates shortened to a bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Clipped {
    /// Of the differences from the centre, for
    /// [`combine`](crate::federated::combination::combine), by device.
    pub coefficients: Vec<f64>,
    /// Norms before, by device.
    pub norms: Vec<f64>,
    /// The bound.
    pub bound: f64,
}

impl NormBound {
    /// A bound of this Euclidean norm over the whole update.
    ///
    /// # Errors
    /// [`NormBoundError::Bound`].
    pub fn new(bound: f64) -> Result<Self, NormBoundError> {
        if bound > 0.0 && bound.is_finite() {
            Ok(Self(bound))
        } else {
            Err(NormBoundError::Bound(bound))
        }
    }

    /// The norm that is not exceeded.
    pub fn bound(self) -> f64 {
        self.0
    }

    /// What an update of this norm is multiplied by: 1 up to the bound.
    pub fn factor(self, norm: f64) -> f64 {
        if norm > self.0 { self.0 / norm } else { 1.0 }
    }

    /// Shortens values of one update of this norm, all of it or in pieces. The result as a whole is
    /// not longer than the bound, also as the `f32` that its values are rounded to.
    pub fn shorten(self, norm: f64, values: &mut [f32]) {
        // A value that is rounded grows by a part of 2^-24 at most.
        let factor = self.factor(norm) * (1.0 - f64::from(f32::EPSILON));
        if norm > self.0 {
            for value in values {
                #[expect(clippy::cast_possible_truncation, reason = "updates are f32")]
                let shortened = (f64::from(*value) * factor) as f32;
                *value = shortened;
            }
        }
    }

    /// Bounds updates of these norms, `[n]`, whose shares in the result are `shares [n]`: `1 / m`
    /// each for differential privacy with `m` planned devices, those of examples for a mean.
    ///
    /// # Errors
    /// [`NormBoundError`].
    pub fn clip(self, norms: &[f64], shares: &[f64]) -> Result<Clipped, NormBoundError> {
        if norms.len() != shares.len() {
            return Err(NormBoundError::Shares { norms: norms.len(), shares: shares.len() });
        }
        if let Some(device) = norms.iter().position(|norm| !(norm.is_finite() && *norm >= 0.0)) {
            return Err(NormBoundError::Norm { device, norm: norms[device] });
        }
        let pairs = norms.iter().zip(shares);
        let coefficients = pairs.map(|(norm, share)| share * self.factor(*norm)).collect();
        Ok(Clipped { coefficients, norms: norms.to_vec(), bound: self.0 })
    }
}

impl Clipped {
    /// Who was shortened, of which norm, by device.
    pub fn influences(&self) -> Vec<Influence> {
        let limit = self.bound;
        let influence = |norm: &f64| Influence {
            verdict: if *norm > limit { Verdict::Reduced } else { Verdict::Kept },
            measure: Measure::Norm { norm: *norm, limit },
        };
        self.norms.iter().map(influence).collect()
    }
}

#[cfg(test)]
mod tests;
