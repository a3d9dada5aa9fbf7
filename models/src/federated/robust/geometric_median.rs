//! Geometric median: the point with the least sum of distances to all updates, RFA (Pillutla et
//! al. 2022, "Robust Aggregation for Federated Learning", arXiv 1912.13445).
//!
//! The smoothed Weiszfeld algorithm moves within the updates' combinations, so that distances
//! between them say all that it needs: no further pass over vectors.
//!
//! The paper weighs devices, by `alpha_k`, and bears less than half of the *weight* being wrong.
//! Here all weigh the same: were it by the examples that devices say they have, one that says
//! enough would be the median.

use super::{Influence, Measure, Verdict};
use crate::federated::distances::Distances;

/// The rule with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeometricMedian {
    /// Distances below it count as this one, `nu`: above 0.
    pub smoothing: f64,
    /// Steps at most, at least 1.
    pub iterations_max: usize,
    /// Ends where the sum of distances shrinks by less than this part of it.
    pub tolerance: f64,
}

impl Default for GeometricMedian {
    /// The paper's smoothing; steps cost next to nothing here, so they go on until it converges.
    fn default() -> Self {
        Self { smoothing: 1e-6, iterations_max: 1000, tolerance: 1e-12 }
    }
}

/// Why there is no median.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum GeometricMedianError {
    /// No device.
    #[error("expected distances of at least one device")]
    Devices,
    /// Smoothing of nothing, or no step.
    #[error("smoothing {smoothing}, {iterations_max} steps: expected both above 0")]
    Settings {
        /// What was given.
        smoothing: f64,
        /// What was given.
        iterations_max: usize,
    },
}

/// Where the median lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// Each device's share in it, of the sum 1: coefficients for
    /// [`combine`](crate::federated::combination::combine).
    pub shares: Vec<f64>,
    /// Distances of devices from it.
    pub distances: Vec<f64>,
    /// Steps made.
    pub iterations: usize,
}

impl GeometricMedian {
    /// Finds the median of devices.
    ///
    /// From the mean on, each step takes `share_k = 1 / max(nu, |w_k - z|)`, divided by their sum.
    ///
    /// # Errors
    /// [`GeometricMedianError`].
    pub fn locate(&self, points: &Distances) -> Result<Located, GeometricMedianError> {
        self.check(points)?;
        let mut shares = vec![alike(points.points()); points.points()];
        let mut distances = points.to_combination(&shares);
        let mut sum = distances.iter().sum::<f64>();
        let mut iterations = 0;
        while iterations < self.iterations_max {
            shares = distances.iter().map(|d| d.max(self.smoothing).recip()).collect();
            let total: f64 = shares.iter().sum();
            for share in &mut shares {
                *share /= total;
            }
            distances = points.to_combination(&shares);
            iterations += 1;
            let next = distances.iter().sum();
            if sum - next <= self.tolerance * sum {
                break;
            }
            sum = next;
        }
        Ok(Located { shares, distances, iterations })
    }

    fn check(&self, points: &Distances) -> Result<(), GeometricMedianError> {
        let Self { smoothing, iterations_max, .. } = *self;
        if !(smoothing > 0.0 && smoothing.is_finite()) || iterations_max == 0 {
            return Err(GeometricMedianError::Settings { smoothing, iterations_max });
        }
        if points.points() == 0 { Err(GeometricMedianError::Devices) } else { Ok(()) }
    }
}

/// The share of one of so many devices that weigh the same.
#[expect(clippy::cast_precision_loss, reason = "a number of devices")]
fn alike(devices: usize) -> f64 {
    1.0 / devices as f64
}

impl Located {
    /// How far each device is from the median and what its share came to, by device. Reduced are
    /// those whose share is below that in a mean.
    pub fn influences(&self) -> Vec<Influence> {
        let mean = alike(self.shares.len());
        let pairs = self.shares.iter().zip(&self.distances);
        let influence = |(share, distance): (&f64, &f64)| Influence {
            verdict: if *share < mean { Verdict::Reduced } else { Verdict::Kept },
            measure: Measure::Distance { distance: *distance, share: *share },
        };
        pairs.map(influence).collect()
    }
}

#[cfg(test)]
mod tests;
