//! Centred clipping: bounds what each update adds to a guess of the result (Karimireddy et al.
//! 2021, "Learning from History for Byzantine Robust Optimization", arXiv 2012.10333).
//!
//! The paper clips workers' momenta around `v0`, the aggregate of the round before. Here devices send
//! where they came to after many local steps, and keep no momentum for the server; the guess begins
//! at the centre, the round's parameters, which is `v0 = 0` for their differences. So nothing has to
//! be kept between rounds, and an aggregate that an attack has moved moves no later one; what the
//! paper gains from history against shifts that are small in each round (time-coupled attacks) is
//! not claimed. Where honest differences are longer than the radius, more steps reach them.
//!
//! The guess moves within the combinations of centre and updates, so that distances between them
//! say all that it needs: no further pass over vectors.

use super::norm_bound::{Clipped, NormBound, NormBoundError};
use crate::federated::distances::Distances;

/// The rule with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CentredClipping {
    /// The longest that counts, `tau`.
    pub radius: f64,
    /// Steps, at least 1: one is enough where honest updates are not longer than the radius.
    pub iterations: usize,
}

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum CentredClippingError {
    /// A radius that is none.
    #[error("radius")]
    Radius(#[source] NormBoundError),
    /// No step.
    #[error("no step is to be made, expected at least one")]
    Iterations,
    /// No device beside the centre.
    #[error("expected distances of the centre and at least one device, found {points} points")]
    Devices {
        /// Points that there are distances of.
        points: usize,
    },
}

impl CentredClipping {
    /// Moves from the centre, point 0, towards the devices, points 1 to `n`, by
    /// `v' = v + 1 / n sum min(1, tau / |w_k - v|) (w_k - v)`. Gives coefficients of the
    /// differences `w_k - centre`, and the distances of devices that the last step found.
    ///
    /// # Errors
    /// [`CentredClippingError`].
    #[expect(clippy::cast_precision_loss, reason = "a number of devices")]
    pub fn coefficients(&self, points: &Distances) -> Result<Clipped, CentredClippingError> {
        let radius = NormBound::new(self.radius).map_err(CentredClippingError::Radius)?;
        if self.iterations == 0 {
            return Err(CentredClippingError::Iterations);
        }
        if points.points() < 2 {
            return Err(CentredClippingError::Devices { points: points.points() });
        }
        let devices = points.points() - 1;
        let mut shares = vec![0.0; points.points()];
        shares[0] = 1.0;
        let mut norms = Vec::new();
        for _ in 0..self.iterations {
            norms = points.to_combination(&shares).split_off(1);
            let moves: Vec<f64> =
                norms.iter().map(|norm| radius.factor(*norm) / devices as f64).collect();
            let left = 1.0 - moves.iter().sum::<f64>();
            shares[0] *= left;
            for (share, add) in shares[1..].iter_mut().zip(moves) {
                *share = *share * left + add;
            }
        }
        Ok(Clipped { coefficients: shares.split_off(1), norms, bound: self.radius })
    }
}

#[cfg(test)]
mod tests;
