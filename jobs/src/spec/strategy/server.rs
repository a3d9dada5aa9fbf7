//! Server optimizers: momentum (Hsu et al. 2019, arXiv 1909.06335), and the adaptive ones (Reddi et al.
//! 2021, arXiv 2003.00295), by whose papers the settings are. `g` is the round's parameters less the mean
//! of the updates.

use serde::{Deserialize, Serialize};

use crate::spec::is_default;

/// The largest value that a second moment begins with: it is kept as a 32-bit float.
pub(super) const V0_MAX: f64 = 1e30;

/// `v = momentum v + g`, `x -= learning_rate v`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAvgM {
    /// Step size, above 0.
    pub learning_rate: f64,
    /// 0 to below 1.
    pub momentum: f64,
}

impl Default for FedAvgM {
    fn default() -> Self {
        Self { learning_rate: 1.0, momentum: 0.9 }
    }
}

/// `v += g^2`, `x -= learning_rate g / (sqrt v + tau)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAdagrad {
    /// Step size, above 0.
    pub learning_rate: f64,
    /// How far the step adapts, above 0.
    pub tau: f64,
    /// Every value of `v` before the first round, 0 to 1e30. The paper proves for `tau^2` and
    /// more.
    #[serde(skip_serializing_if = "is_default")]
    pub v0: f64,
}

impl Default for FedAdagrad {
    fn default() -> Self {
        Self { learning_rate: 0.1, tau: 1e-3, v0: 0.0 }
    }
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `x -= learning_rate m / (sqrt v + tau)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAdam {
    /// Step size, above 0.
    pub learning_rate: f64,
    /// 0 to below 1.
    pub beta1: f64,
    /// 0 to below 1.
    pub beta2: f64,
    /// How far the step adapts, above 0.
    pub tau: f64,
    /// Every value of `v` before the first round, 0 to 1e30. The paper proves for `tau^2` and
    /// more.
    #[serde(skip_serializing_if = "is_default")]
    pub v0: f64,
}

impl Default for FedAdam {
    fn default() -> Self {
        Self { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3, v0: 0.0 }
    }
}

/// As [`FedAdam`] with `v -= (1 - beta2) g^2 sign(v - g^2)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedYogi {
    /// Step size, above 0.
    pub learning_rate: f64,
    /// 0 to below 1.
    pub beta1: f64,
    /// 0 to below 1.
    pub beta2: f64,
    /// How far the step adapts, above 0.
    pub tau: f64,
    /// Every value of `v` before the first round, 0 to 1e30. The paper proves for `tau^2` and
    /// more.
    #[serde(skip_serializing_if = "is_default")]
    pub v0: f64,
}

impl Default for FedYogi {
    fn default() -> Self {
        Self { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3, v0: 0.0 }
    }
}
