//! Geometric median: the point with the least sum of distances to all updates, RFA (Pillutla et
//! al. 2022, "Robust Aggregation for Federated Learning", arXiv 1912.13445).
//!
//! The smoothed Weiszfeld algorithm moves within the updates' combinations, so that distances
//! between them say all that it needs: no further pass over vectors.

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
    /// Not a weight for each device, or no device.
    #[error("expected a weight for each of {devices} devices, at least one, found {weights}")]
    Devices {
        /// Points that there are distances of.
        devices: usize,
        /// Weights given.
        weights: usize,
    },
    /// A weight below 0, NaN or infinite, or no weight above 0.
    #[error("device {device}: weight {weight}, expected finite ones of at least 0, one above")]
    Weight {
        /// Counted from 0.
        device: usize,
        /// What was given.
        weight: f64,
    },
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
    /// Devices' shares of all weights.
    weights: Vec<f64>,
}

impl GeometricMedian {
    /// Finds the median of devices with these weights, `[n]`, such as examples.
    ///
    /// From the weighted mean on, each step takes
    /// `share_k = weight_k / max(nu, |w_k - z|)`, divided by their sum.
    ///
    /// # Errors
    /// [`GeometricMedianError`].
    pub fn locate(
        &self,
        points: &Distances,
        weights: &[f64],
    ) -> Result<Located, GeometricMedianError> {
        self.check(points, weights)?;
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let mut shares = weights.clone();
        let mut distances = points.to_combination(&shares);
        let mut sum = weighted(&weights, &distances);
        let mut iterations = 0;
        while iterations < self.iterations_max {
            let pairs = weights.iter().zip(&distances);
            shares = pairs.map(|(weight, d)| weight / d.max(self.smoothing)).collect();
            let total: f64 = shares.iter().sum();
            for share in &mut shares {
                *share /= total;
            }
            distances = points.to_combination(&shares);
            iterations += 1;
            let next = weighted(&weights, &distances);
            if sum - next <= self.tolerance * sum {
                break;
            }
            sum = next;
        }
        Ok(Located { shares, distances, iterations, weights })
    }

    fn check(&self, points: &Distances, weights: &[f64]) -> Result<(), GeometricMedianError> {
        let Self { smoothing, iterations_max, .. } = *self;
        if !(smoothing > 0.0 && smoothing.is_finite()) || iterations_max == 0 {
            return Err(GeometricMedianError::Settings { smoothing, iterations_max });
        }
        let devices = points.points();
        if devices == 0 || weights.len() != devices {
            return Err(GeometricMedianError::Devices { devices, weights: weights.len() });
        }
        let valid = |weight: f64| weight.is_finite() && weight >= 0.0;
        let total: f64 = weights.iter().sum();
        let spoiled = weights.iter().position(|weight| !valid(*weight));
        match spoiled.or(if total > 0.0 { None } else { Some(0) }) {
            Some(device) => Err(GeometricMedianError::Weight { device, weight: weights[device] }),
            None => Ok(()),
        }
    }
}

fn weighted(weights: &[f64], distances: &[f64]) -> f64 {
    weights.iter().zip(distances).map(|(weight, distance)| weight * distance).sum()
}

impl Located {
    /// How far each device is from the median and what its share came to, by device. Reduced are
    /// those whose share is below that of their weight.
    pub fn influences(&self) -> Vec<Influence> {
        let pairs = self.shares.iter().zip(&self.distances).zip(&self.weights);
        let influence = |((share, distance), weight): ((&f64, &f64), &f64)| Influence {
            verdict: if share < weight { Verdict::Reduced } else { Verdict::Kept },
            measure: Measure::Distance { distance: *distance, share: *share },
        };
        pairs.map(influence).collect()
    }
}

#[cfg(test)]
mod tests;
