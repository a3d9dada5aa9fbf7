//! How weights move against their gradients.
//!
//! The update rules, their order of operations and their defaults are PyTorch's.

use rayon::prelude::*;

use crate::kernels::simd::vectorised;

/// An optimizer with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Stochastic gradient descent that looks ahead (Nesterov 1983, as in Sutskever et al. 2013):
    /// `w -= learning_rate * (g + momentum * v)`.
    Nesterov(Sgd),
    /// Adam (Kingma & Ba 2015), weight decay added to the gradient.
    Adam(Adam),
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019):
    /// `w *= 1 - learning_rate * weight_decay` before the step.
    AdamW(Adam),
}

/// Stochastic gradient descent as PyTorch does it: `g += weight_decay * w`,
/// `v = momentum * v + g`, `w -= learning_rate * v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f32,
    /// 0 to below 1.
    pub momentum: f32,
    /// L2 penalty added to the gradient.
    pub weight_decay: f32,
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w -= learning_rate * m' / (sqrt(v') + epsilon)` with `m'` and `v'` freed of their bias
/// towards 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Step size.
    pub learning_rate: f32,
    /// Share of the old mean of gradients in the new one, 0 to below 1.
    pub beta1: f64,
    /// Share of the old mean of squared gradients in the new one, 0 to below 1.
    pub beta2: f64,
    /// Added to the root, so that nothing is divided by 0.
    pub epsilon: f32,
    /// What it means, [`Optimizer`] says.
    pub weight_decay: f32,
}

impl Adam {
    /// The usual decays 0.9 and 0.999 and epsilon 1e-8, without weight decay.
    pub fn new(learning_rate: f32) -> Self {
        Self { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl From<Sgd> for Optimizer {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}

/// Weights that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Optimizer {
    /// The step size, before any schedule.
    pub fn learning_rate(&self) -> f32 {
        match self {
            Self::Sgd(sgd) | Self::Nesterov(sgd) => sgd.learning_rate,
            Self::Adam(adam) | Self::AdamW(adam) => adam.learning_rate,
        }
    }

    /// Values of the state of so many weights.
    pub(super) fn state_len(&self, weights: usize) -> usize {
        match self {
            Self::Sgd(sgd) | Self::Nesterov(sgd) if sgd.momentum <= 0.0 => 0,
            Self::Sgd(_) | Self::Nesterov(_) => weights,
            Self::Adam(_) | Self::AdamW(_) => 2 * weights,
        }
    }

    /// One step of some weights. `state` is empty before the first step and belongs to the
    /// weights; `step` is counted from 1 since it was empty; `rate` is the step size.
    pub(super) fn update(
        &self,
        step: u64,
        rate: f32,
        weights: &mut [f32],
        gradient: &[f32],
        state: &mut Vec<f32>,
    ) {
        match self {
            Self::Sgd(sgd) => sgd.update(false, rate, weights, gradient, state),
            Self::Nesterov(sgd) => sgd.update(true, rate, weights, gradient, state),
            Self::Adam(adam) => {
                adam.update(step, rate, adam.weight_decay, weights, gradient, state);
            }
            Self::AdamW(adam) => {
                let keep = 1.0 - rate * adam.weight_decay;
                for weight in weights.iter_mut() {
                    *weight *= keep;
                }
                adam.update(step, rate, 0.0, weights, gradient, state);
            }
        }
    }
}

impl Sgd {
    fn update(
        &self,
        nesterov: bool,
        rate: f32,
        weights: &mut [f32],
        gradient: &[f32],
        velocity: &mut Vec<f32>,
    ) {
        let (momentum, decay) = (self.momentum, self.weight_decay);
        // Without momentum there is no velocity to keep.
        if momentum <= 0.0 {
            let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
            chunks.for_each(|(weights, gradient)| {
                vectorised(|| {
                    for (weight, gradient) in weights.iter_mut().zip(gradient) {
                        *weight -= rate * (gradient + decay * *weight);
                    }
                });
            });
            return;
        }
        velocity.resize(weights.len(), 0.0);
        let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        chunks.zip(velocity.par_chunks_mut(CHUNK)).for_each(|((weights, gradient), velocity)| {
            vectorised(|| {
                let pairs = weights.iter_mut().zip(gradient);
                for ((weight, gradient), velocity) in pairs.zip(velocity.iter_mut()) {
                    let gradient = gradient + decay * *weight;
                    *velocity = momentum * *velocity + gradient;
                    let ahead = if nesterov { gradient + momentum * *velocity } else { *velocity };
                    *weight -= rate * ahead;
                }
            });
        });
    }
}

impl Adam {
    fn update(
        &self,
        step: u64,
        rate: f32,
        decay: f32,
        weights: &mut [f32],
        gradient: &[f32],
        state: &mut Vec<f32>,
    ) {
        // Beyond this many steps the corrections are 1 in any precision.
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        let correction = |beta: f64| 1.0 - beta.powi(step);
        let rate = narrow(f64::from(rate) / correction(self.beta1));
        let root = narrow(correction(self.beta2).sqrt());
        let (first, second) = (narrow(1.0 - self.beta1), narrow(1.0 - self.beta2));
        let keep = narrow(self.beta2);
        state.resize(2 * weights.len(), 0.0);
        let (means, squares) = state.split_at_mut(weights.len());
        let moments = means.par_chunks_mut(CHUNK).zip(squares.par_chunks_mut(CHUNK));
        let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        chunks.zip(moments).for_each(|((weights, gradient), (means, squares))| {
            vectorised(|| {
                let moments = means.iter_mut().zip(squares.iter_mut());
                let pairs = weights.iter_mut().zip(gradient);
                for ((weight, gradient), (mean, square)) in pairs.zip(moments) {
                    let gradient = gradient + decay * *weight;
                    *mean += first * (gradient - *mean);
                    *square = keep * *square + second * gradient * gradient;
                    *weight -= rate * *mean / (square.sqrt() / root + self.epsilon);
                }
            });
        });
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
