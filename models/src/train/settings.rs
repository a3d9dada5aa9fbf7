//! What training does beside the optimizer.

use super::Schedule;
use crate::params::is_named;

/// Everything that a trainer may be told; the default is plain training of a classifier.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// What is made small.
    pub loss: Loss,
    /// The step size over time.
    pub schedule: Schedule,
    /// Steps of the schedule that were taken before.
    pub first_step: u64,
    /// Largest norm of all gradients together; longer ones are scaled down to it, as PyTorch's
    /// `clip_grad_norm_` does.
    pub gradient_norm_max: Option<f32>,
    /// `mu` of the proximal term `mu / 2 |w - w0|^2` (`FedProx`, Li et al. 2020); `w0` are the
    /// weights as they were set last.
    pub proximal: f32,
    /// Names of parameters that are not trained; `*` stands for any characters. A batch
    /// normalisation whose running statistics are among them uses these in training too.
    pub frozen: Vec<String>,
}

/// What is made small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Mean over the batch of `-sum(t log(softmax(z)))`.
    SoftmaxCrossEntropy {
        /// Share of each target that is spread evenly over all classes, 0 to 1
        /// (Szegedy et al. 2016).
        label_smoothing: f32,
    },
    /// Mean over batch and outputs of `(z - t)^2`; `z` is the model's output, after its softmax
    /// or sigmoid if it ends with one.
    MeanSquaredError,
    /// Mean over batch and outputs of `-t log(s) - (1 - t) log(1 - s)`, `s` the sigmoid of `z`.
    BinaryCrossEntropy,
}

impl Default for Loss {
    fn default() -> Self {
        Self::SoftmaxCrossEntropy { label_smoothing: 0.0 }
    }
}

/// What the outputs should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Targets<'a> {
    /// One class per example. The target is 1 for the class and 0 for others; a single output of
    /// [`Loss::BinaryCrossEntropy`] takes the labels 0 and 1 themselves.
    Labels(&'a [u32]),
    /// Values `[n, outputs]`, row-major.
    Values(&'a [f32]),
}

impl Loss {
    /// Whether a final softmax or sigmoid of the model is part of the loss.
    pub(super) fn takes_logits(self) -> bool {
        match self {
            Self::SoftmaxCrossEntropy { .. } | Self::BinaryCrossEntropy => true,
            Self::MeanSquaredError => false,
        }
    }
}

impl Settings {
    /// Whether a parameter is not trained.
    pub(super) fn freezes(&self, name: &str) -> bool {
        is_named(&self.frozen, name)
    }
}
