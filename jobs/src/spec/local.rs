//! What a device does in a round of training.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Augment, Normalization, Schedule};

/// Patterns of names in a list, at most.
pub const PATTERNS_MAX: usize = 1000;

/// Local training. What has its default is not written, so that agents which do not know it yet
/// take part where it is not asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalTraining {
    /// Passes over the local examples; 0 returns the parameters untouched, to measure a round.
    pub epochs: u32,
    /// Examples per step.
    pub batch_size: u32,
    /// Steps at most, over all epochs; absent means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_max: Option<u32>,
    /// Step size of the optimizer.
    pub learning_rate: f32,
    /// Momentum of `sgd` and `nesterov`, 0 to below 1.
    pub momentum: f32,
    /// L2 penalty added to the gradient; with `adamw` the share of each weight that is taken off
    /// before a step, times the step size.
    pub weight_decay: f32,
    /// How weights move against their gradients; its state begins anew in each round.
    #[serde(skip_serializing_if = "is_default")]
    pub optimizer: Optimizer,
    /// What is made small.
    #[serde(skip_serializing_if = "is_default")]
    pub loss: Loss,
    /// The step size over the steps of the job.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Steps of the job over which the step size rises linearly, before the schedule begins.
    #[serde(skip_serializing_if = "is_default")]
    pub warm_up: u32,
    /// `mu` of the term `mu / 2 |w - w0|^2` that keeps weights near the round's (`FedProx`, Li et
    /// al. 2020); 0 is none.
    #[serde(skip_serializing_if = "is_default")]
    pub proximal: f32,
    /// Longest gradient, all weights together; longer ones are scaled down to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm_max: Option<f32>,
    /// Share of each target that is spread over all classes, 0 to below 1; with
    /// [`Loss::CrossEntropy`] only.
    #[serde(skip_serializing_if = "is_default")]
    pub label_smoothing: f32,
    /// Names of parameters that are not trained; `*` stands for any characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
    /// Names of parameters that each device trains and keeps to itself from round to round; `*`
    /// stands for any characters. Those of normalisations make `FedBN` (Li et al. 2021), those of
    /// the last layers `FedPer` (Arivazhagan et al. 2019). The trained model has them as the job
    /// began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_local: Vec<String>,
    /// Random changes of pictures, each once; tables and texts cannot have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub augment: Vec<Augment>,
    /// Shortens the update and adds noise before it is sent; a broker puts it there for a job that
    /// is private by its devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noised: Option<Noised>,
    /// Shortens the update before it is masked, so that its difference from the round's parameters
    /// is no longer; a broker puts it there for a private job that it sees no updates of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_norm_max: Option<f64>,
    /// How values become inputs, in evaluation too; a broker puts the values in place of
    /// `dataset`.
    #[serde(skip_serializing_if = "is_default")]
    pub normalization: Normalization,
}

impl Default for LocalTraining {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_size: 32,
            steps_max: None,
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 0.0,
            optimizer: Optimizer::Sgd,
            loss: Loss::CrossEntropy,
            schedule: Schedule::Constant,
            warm_up: 0,
            proximal: 0.0,
            gradient_norm_max: None,
            label_smoothing: 0.0,
            frozen: Vec::new(),
            kept_local: Vec::new(),
            augment: Vec::new(),
            noised: None,
            update_norm_max: None,
            normalization: Normalization::Format,
        }
    }
}

impl LocalTraining {
    /// Steps of one pass over so many examples, in batches, the last one with what is left.
    pub fn steps_per_epoch(&self, examples: u64) -> u64 {
        examples.div_ceil(self.batch_size.max(1).into())
    }

    /// Steps that a device takes which has so many examples: those of all its passes, and none
    /// beyond `steps_max`.
    pub fn steps(&self, examples: u64) -> u64 {
        let all = self.steps_per_epoch(examples).saturating_mul(self.epochs.into());
        self.steps_max.map_or(all, |max| all.min(max.into()))
    }

    /// Why these are no steps by which an update of so many examples can weigh, if they are none. A
    /// device does not choose how many it takes: by fewer its own update would count for more, by
    /// more those of all others.
    pub(super) fn refuses_steps(&self, steps: u64, examples: u64) -> Option<String> {
        if !(1..=u32::MAX.into()).contains(&steps) {
            return Some(format!("{steps} steps, expected 1 to {}", u32::MAX));
        }
        let (expected, batch_size) = (self.steps(examples), self.batch_size);
        let text = || {
            format!(
                "{steps} steps, expected {expected}: epochs {} of {examples} examples in batches \
                 of {batch_size}",
                self.epochs
            )
        };
        (steps != expected).then(text)
    }
}

/// What a device does to its update before anyone sees it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noised {
    /// The longest difference from the round's parameters; longer ones are shortened to it.
    pub norm: f64,
    /// Deviation of the noise by twice the norm, the farthest that two updates lie apart.
    pub noise_multiplier: f64,
}

/// The optimizers of local training, with the rules and defaults of `PyTorch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Stochastic gradient descent with classical momentum.
    #[default]
    Sgd,
    /// Stochastic gradient descent with Nesterov's momentum.
    Nesterov,
    /// Adam; the momentum is not used.
    Adam,
    /// Adam with decoupled weight decay; the momentum is not used.
    Adamw,
}

/// A word that is no optimizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no optimizer: expected sgd, nesterov, adam or adamw")]
pub struct OptimizerError(String);

impl Optimizer {
    const ALL: [Self; 4] = [Self::Sgd, Self::Nesterov, Self::Adam, Self::Adamw];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Nesterov => "nesterov",
            Self::Adam => "adam",
            Self::Adamw => "adamw",
        }
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Optimizer {
    type Err = OptimizerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|optimizer| optimizer.as_str() == text);
        found.ok_or_else(|| OptimizerError(text.to_owned()))
    }
}

/// The losses of local training, with the definitions of `PyTorch`. Targets are 1 for an
/// example's class and 0 for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Softmax cross-entropy.
    #[default]
    CrossEntropy,
    /// Mean squared error of the outputs.
    Mse,
    /// Binary cross-entropy of the outputs' sigmoids; a model with one output tells two classes
    /// apart.
    Bce,
}

/// A word that is no loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no loss: expected cross_entropy, mse or bce")]
pub struct LossError(String);

impl Loss {
    const ALL: [Self; 3] = [Self::CrossEntropy, Self::Mse, Self::Bce];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::Mse => "mse",
            Self::Bce => "bce",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Loss {
    type Err = LossError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|loss| loss.as_str() == text);
        found.ok_or_else(|| LossError(text.to_owned()))
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_json() {
        for optimizer in Optimizer::ALL {
            let word = optimizer.as_str();
            assert_eq!(word.parse(), Ok(optimizer));
            assert_eq!(serde_json::to_string(&optimizer).unwrap(), format!("{word:?}"));
        }
        for loss in Loss::ALL {
            let word = loss.as_str();
            assert_eq!(word.parse(), Ok(loss));
            assert_eq!(serde_json::to_string(&loss).unwrap(), format!("{word:?}"));
        }
        let error = "l1".parse::<Loss>().unwrap_err();
        assert_eq!(error.to_string(), "\"l1\" is no loss: expected cross_entropy, mse or bce");
        let error = "sgdm".parse::<Optimizer>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"sgdm\" is no optimizer: expected sgd, nesterov, adam or adamw"
        );
    }

    #[test]
    fn defaults_are_as_older_agents_know_them() {
        let written = serde_json::to_value(LocalTraining::default()).unwrap();
        let fields: Vec<&String> = written.as_object().unwrap().keys().collect();
        let known = ["batch_size", "epochs", "learning_rate", "momentum", "weight_decay"];
        assert_eq!(fields, known);
    }
}
