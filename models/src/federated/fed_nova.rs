//! `FedNova`: devices that make more local steps do not pull the more for it (Wang et al. 2020,
//! "Tackling the Objective Inconsistency Problem", arXiv 2007.07481).

/// How a device came from the global parameters to its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LocalSteps {
    /// Plain gradient descent.
    Plain {
        /// Steps made, at least 1.
        steps: u32,
    },
    /// With momentum, `v = momentum v + g`.
    Momentum {
        /// Steps made, at least 1.
        steps: u32,
        /// 0 to below 1.
        momentum: f64,
    },
    /// With a proximal term, `mu / 2 |w - x|^2` in the loss.
    Proximal {
        /// Steps made, at least 1.
        steps: u32,
        /// Learning rate times `mu`: above 0, below 1.
        pull: f64,
    },
}

/// Why there are no coefficients.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum FedNovaError {
    /// Not one weight and one account of steps for each device, or no device.
    #[error("expected weights and steps of equally many devices, found {weights} and {steps}")]
    Devices {
        /// Weights given.
        weights: usize,
        /// Accounts of steps given.
        steps: usize,
    },
    /// A weight below 0, NaN or infinite, or no weight above 0.
    #[error("device {device}: weight {weight}, expected finite ones of at least 0, one above")]
    Weight {
        /// Counted from 0.
        device: usize,
        /// What was given.
        weight: f64,
    },
    /// Steps that do not add up to anything.
    #[error("device {device}: expected at least one step and settings in range, found {steps:?}")]
    Steps {
        /// Counted from 0.
        device: usize,
        /// What was given.
        steps: LocalSteps,
    },
}

impl LocalSteps {
    /// `|a_k|_1`: what the gradients of all steps weigh together in the device's difference, in
    /// units of the learning rate. For plain steps their number.
    pub fn weight(&self) -> f64 {
        match *self {
            Self::Plain { steps } => f64::from(steps),
            Self::Momentum { steps, momentum } => {
                let (steps, rest) = (f64::from(steps), 1.0 - momentum);
                (steps - momentum * (1.0 - momentum.powf(steps)) / rest) / rest
            }
            Self::Proximal { steps, pull } => (1.0 - (1.0 - pull).powf(f64::from(steps))) / pull,
        }
    }

    fn is_valid(&self) -> bool {
        match *self {
            Self::Plain { steps } => steps > 0,
            Self::Momentum { steps, momentum } => steps > 0 && (0.0..1.0).contains(&momentum),
            Self::Proximal { steps, pull } => steps > 0 && pull > 0.0 && pull < 1.0,
        }
    }
}

/// Coefficients of the differences `w_k - x` for [`combine`](super::combination::combine), by
/// device: `tau_eff p_k / |a_k|_1` with `tau_eff = sum p_k |a_k|_1`.
///
/// `weights [n]` are examples of devices, `p_k` their shares.
///
/// # Errors
/// [`FedNovaError`].
pub fn coefficients(weights: &[f64], steps: &[LocalSteps]) -> Result<Vec<f64>, FedNovaError> {
    if weights.len() != steps.len() || weights.is_empty() {
        return Err(FedNovaError::Devices { weights: weights.len(), steps: steps.len() });
    }
    for (device, (weight, steps)) in weights.iter().zip(steps).enumerate() {
        if !(weight.is_finite() && *weight >= 0.0) {
            return Err(FedNovaError::Weight { device, weight: *weight });
        }
        if !steps.is_valid() {
            return Err(FedNovaError::Steps { device, steps: *steps });
        }
    }
    let total: f64 = weights.iter().sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err(FedNovaError::Weight { device: 0, weight: weights[0] });
    }
    let pairs = || weights.iter().map(|weight| weight / total).zip(steps);
    let effective: f64 = pairs().map(|(share, steps)| share * steps.weight()).sum();
    Ok(pairs().map(|(share, steps)| effective * share / steps.weight()).collect())
}

#[cfg(test)]
mod tests;
