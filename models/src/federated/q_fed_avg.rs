//! q-FedAvg: devices whose loss is high pull more (Li et al. 2020, "Fair Resource Allocation in
//! Federated Learning", arXiv 1905.10497, algorithm 2).

/// The rule with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QFedAvg {
    /// How much fairness counts: 0 weighs all devices alike, infinity only the worst one.
    pub q: f64,
    /// The devices' learning rate, `1 / L`: above 0.
    pub learning_rate: f64,
}

/// Why there are no coefficients.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum QFedAvgError {
    /// A setting out of range.
    #[error("{name} is {value}, expected a finite number {expected}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Not one loss and one norm for each device.
    #[error("expected losses and norms of equally many devices, found {losses} and {norms}")]
    Devices {
        /// Losses given.
        losses: usize,
        /// Norms given.
        norms: usize,
    },
    /// A loss or norm below 0, NaN or infinite.
    #[error("device {device}: loss {loss} and norm {norm}, expected finite ones of at least 0")]
    Device {
        /// Counted from 0.
        device: usize,
        /// What was given.
        loss: f64,
        /// What was given.
        norm: f64,
    },
    /// Nothing to divide by: no device, or weights beyond the range of numbers.
    #[error("the weights of {devices} devices have no finite sum above 0")]
    Weights {
        /// Devices given.
        devices: usize,
    },
}

/// Added to losses, so that a loss of 0 has every power.
const LOSS_MIN: f64 = 1e-10;

impl QFedAvg {
    /// Coefficients of the differences `w_k - x` for [`combine`](super::combination::combine), by
    /// device.
    ///
    /// `x' = x - sum Delta_k / sum h_k` with `d_k = L (x - w_k)`, `Delta_k = F_k^q d_k` and
    /// `h_k = q F_k^(q-1) |d_k|^2 + L F_k^q`. `losses [n]` are `F_k`, the loss of the global
    /// parameters on the device's data; `norms [n]` are `|w_k - x|`, as
    /// [`UpdateNorms`](super::distances::UpdateNorms) gives them.
    ///
    /// # Errors
    /// [`QFedAvgError`].
    pub fn coefficients(&self, losses: &[f64], norms: &[f64]) -> Result<Vec<f64>, QFedAvgError> {
        self.check()?;
        if losses.len() != norms.len() {
            return Err(QFedAvgError::Devices { losses: losses.len(), norms: norms.len() });
        }
        let fits = |value: f64| value.is_finite() && value >= 0.0;
        let lipschitz = self.learning_rate.recip();
        let mut coefficients = Vec::with_capacity(losses.len());
        let mut total = 0.0;
        for (device, (loss, norm)) in losses.iter().copied().zip(norms.iter().copied()).enumerate()
        {
            if !(fits(loss) && fits(norm)) {
                return Err(QFedAvgError::Device { device, loss, norm });
            }
            let loss = loss + LOSS_MIN;
            let gradient = lipschitz * norm;
            let weight = lipschitz * loss.powf(self.q);
            total += self.q * loss.powf(self.q - 1.0) * gradient * gradient + weight;
            coefficients.push(weight);
        }
        if !(total > 0.0 && total.is_finite()) {
            return Err(QFedAvgError::Weights { devices: losses.len() });
        }
        for coefficient in &mut coefficients {
            *coefficient /= total;
        }
        Ok(coefficients)
    }

    fn check(&self) -> Result<(), QFedAvgError> {
        let Self { q, learning_rate } = *self;
        if !(q.is_finite() && q >= 0.0) {
            return Err(QFedAvgError::Setting { name: "q", value: q, expected: "of at least 0" });
        }
        if !(learning_rate.is_finite() && learning_rate > 0.0) {
            let (name, value) = ("learning rate", learning_rate);
            return Err(QFedAvgError::Setting { name, value, expected: "above 0" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
