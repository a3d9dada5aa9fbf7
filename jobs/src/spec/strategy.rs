//! How the updates of a round become new parameters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings;
use super::{LocalTraining, Optimizer, Schedule, Staleness};
use crate::id::{BlobRef, JobId, RoundNumber};
use crate::report::{LOSS_MAX, UpdateReport};

mod elsewhere;
mod quorum;
mod server;

use self::server::V0_MAX;
pub use self::server::{FedAdagrad, FedAdam, FedAvgM, FedYogi};

/// How a broker makes new parameters of a round's updates.
///
/// Running statistics of batch normalisations are no parameters that a strategy moves: they become
/// the devices' mean under every one, weighted as updates are (by examples, by age with late updates);
/// the strategies that bear wrong updates choose of them as of other values.
///
/// Server optimizers, [`Strategy::FedAvgM`] to [`Strategy::FedYogi`], take the round's parameters
/// less the mean of the updates, weighted by examples, as a gradient, with which they go a step.
/// What they keep lasts as long as the job.
///
/// [`Strategy::QFedAvg`] to [`Strategy::Scaffold`] make up for devices that differ.
///
/// The others bear some devices' updates being wrong, by fault or by intent. How many examples a
/// device says it has does not count in them: it would be a weight that a device gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields, remote = "Self")]
pub enum Strategy {
    /// The mean itself (`McMahan` et al. 2017).
    FedAvg {},
    /// Gradient descent with momentum (Hsu et al. 2019).
    FedAvgM(FedAvgM),
    /// Adagrad (Reddi et al. 2021).
    FedAdagrad(FedAdagrad),
    /// Adam, without correction of its beginning (Reddi et al. 2021).
    FedAdam(FedAdam),
    /// Yogi, without correction of its beginning (Reddi et al. 2021).
    FedYogi(FedYogi),
    /// Devices on whose examples the round's parameters have a high loss pull more (Li et al. 2020).
    QFedAvg(QFedAvg),
    /// Devices that take more steps do not pull the more for it; the mean is weighted by examples
    /// (Wang et al. 2020).
    FedNova {},
    /// Devices correct their gradients by what all of them see, so that they do not drift apart;
    /// examples do not count (Karimireddy et al. 2020).
    Scaffold(Scaffold),
    /// Asynchronous: new parameters are made as soon as `participation.devices` updates are there,
    /// whichever version they were trained from; examples do not count (Nguyen et al. 2022). As many
    /// more devices are at work as `participation.over_selection` says: those that are not done go
    /// on, nobody waits for them, and whoever delivers is replaced at once. It is invited again
    /// itself with the next version, and not before as it may be in the paper: no device is in a
    /// buffer twice.
    FedBuff(FedBuff),
    /// The median of each coordinate; examples do not count (Yin et al. 2018).
    FedMedian {},
    /// The mean of each coordinate without its lowest and highest values; examples do not count
    /// (Yin et al. 2018).
    FedTrimmedAvg(FedTrimmedAvg),
    /// The update that lies closest to its neighbours (Blanchard et al. 2017).
    Krum(Byzantine),
    /// The mean of the updates that lie closest to their neighbours (Blanchard et al. 2017).
    MultiKrum(MultiKrum),
    /// Krum's choice, of each coordinate the mean of the values nearest the median (El Mhamdi et
    /// al. 2018).
    Bulyan(Byzantine),
    /// The point with the least sum of distances to all updates (RFA, Pillutla et al. 2022, with
    /// equal weights).
    GeometricMedian {},
    /// The mean of the updates' differences from the round's parameters, each no longer than a
    /// radius around a guess that moves there (Karimireddy et al. 2021). The guess begins at the
    /// round's parameters, and not at the aggregate of the round before as in the paper.
    CentredClipping(CentredClipping),
    /// The mean of the updates' differences from the round's parameters, each no longer than a norm
    /// (Sun et al. 2019).
    NormBound(NormBound),
}

/// What a strategy keeps from round to round beside the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Moments of a server optimizer.
    Moments,
    /// The server's control variate, and one on each device.
    Controls,
}

/// Control variates of a round (Karimireddy et al. 2020).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlVariates {
    /// The server's, as parameters (safetensors); all 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<BlobRef>,
    /// The round that left the device's own: the last one whose update of the device counted; all
    /// 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<RoundNumber>,
    /// The job of that round; the task's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The oldest round of the task's job that another may go on from: what the device has kept that
    /// counted since, or last until then, stays. When absent only what this round begins with stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_since: Option<RoundNumber>,
}

impl Default for Strategy {
    fn default() -> Self {
        Self::FedAvg {}
    }
}

impl Strategy {
    /// Whether it is a step of an optimizer against what the mean lacks.
    pub(super) fn is_server_optimizer(&self) -> bool {
        matches!(self, Self::FedAvgM(_) | Self::FedAdagrad(_) | Self::FedAdam(_) | Self::FedYogi(_))
    }

    /// What it keeps from round to round beside the parameters.
    pub fn keeps(&self) -> Option<Keeps> {
        if matches!(self, Self::Scaffold(_)) {
            return Some(Keeps::Controls);
        }
        let forgets = matches!(self, Self::FedAvgM(FedAvgM { momentum, .. }) if *momentum <= 0.0);
        (self.is_server_optimizer() && !forgets).then_some(Keeps::Moments)
    }

    /// Whether it needs no more of the updates than their sum.
    pub(super) fn needs_only_the_sum(&self) -> bool {
        matches!(self, Self::FedAvg {}) || self.is_server_optimizer()
    }

    /// Settings that are out of range: the name, the value, what is accepted.
    pub(super) fn problems(&self) -> Vec<(&'static str, f64, &'static str)> {
        let above_0 = |name, value: f64| (name, value, value > 0.0, "above 0, finite");
        let share = |name, value: f64| (name, value, (0.0..1.0).contains(&value), "0 to below 1");
        let second = |v0: f64| ("v0", v0, (0.0..=V0_MAX).contains(&v0), "0 to 1e30");
        let checked = match *self {
            Self::FedAvgM(FedAvgM { learning_rate, momentum }) => {
                vec![above_0("learning_rate", learning_rate), share("momentum", momentum)]
            }
            Self::FedAdagrad(FedAdagrad { learning_rate, tau, v0 }) => {
                vec![above_0("learning_rate", learning_rate), above_0("tau", tau), second(v0)]
            }
            Self::FedAdam(FedAdam { learning_rate, beta1, beta2, tau, v0 })
            | Self::FedYogi(FedYogi { learning_rate, beta1, beta2, tau, v0 }) => vec![
                above_0("learning_rate", learning_rate),
                share("beta1", beta1),
                share("beta2", beta2),
                above_0("tau", tau),
                second(v0),
            ],
            Self::QFedAvg(QFedAvg { q, learning_rate }) => vec![
                ("q", q, (0.0..=100.0).contains(&q), "0 to 100"),
                above_0("learning_rate", learning_rate.unwrap_or(1.0)),
            ],
            Self::Scaffold(Scaffold { learning_rate }) => {
                vec![above_0("learning_rate", learning_rate)]
            }
            Self::FedBuff(FedBuff { learning_rate, exponent, staleness_max }) => {
                let out_of_range = Staleness { exponent, staleness_max }.problems();
                let wrong = |(name, value, expected)| (name, value, false, expected);
                let mut checked: Vec<_> = out_of_range.into_iter().map(wrong).collect();
                checked.push(above_0("learning_rate", learning_rate));
                checked
            }
            Self::FedAvg {} | Self::FedNova {} | Self::FedMedian {} | Self::GeometricMedian {} => {
                Vec::new()
            }
            Self::Krum(Byzantine { byzantine }) | Self::Bulyan(Byzantine { byzantine }) => {
                vec![quorum::some_byzantine(byzantine)]
            }
            Self::MultiKrum(MultiKrum { byzantine, selected }) => {
                let selected = f64::from(selected.unwrap_or(1));
                let selected = ("selected", selected, selected >= 1.0, "1 or above");
                vec![quorum::some_byzantine(byzantine), selected]
            }
            Self::FedTrimmedAvg(FedTrimmedAvg { fraction }) => {
                let some = fraction > 0.0 && fraction < 0.5;
                let expected = "above 0, below 0.5: with 0 none is left out";
                vec![("fraction", fraction, some, expected)]
            }
            Self::CentredClipping(CentredClipping { radius, iterations }) => {
                let some = (1..=1000).contains(&iterations);
                vec![
                    above_0("radius", radius),
                    ("iterations", f64::from(iterations), some, "1 to 1000"),
                ]
            }
            Self::NormBound(NormBound { norm }) => vec![above_0("norm", norm)],
        };
        let wrong = |(name, value, right, expected): (_, f64, bool, _)| {
            (!right || !value.is_finite()).then_some((name, value, expected))
        };
        checked.into_iter().filter_map(wrong).collect()
    }

    /// Settings of local training with which it would not be what it is: the name, the value, what
    /// is accepted.
    pub(super) fn conflicts(
        &self,
        local: &LocalTraining,
    ) -> Vec<(&'static str, String, &'static str)> {
        let mut found = Vec::new();
        let mut check = |name, value: &dyn fmt::Display, right: bool, expected| {
            if !right {
                found.push((name, value.to_string(), expected));
            }
        };
        let nova = matches!(self, Self::FedNova {});
        let scaffold = matches!(self, Self::Scaffold(_));
        if nova || scaffold || matches!(self, Self::QFedAvg(_)) {
            let expected = "1 or above: the strategy looks at the training";
            check("epochs", &local.epochs, local.epochs > 0, expected);
        }
        if nova || scaffold {
            let sgd = local.optimizer == Optimizer::Sgd;
            check("optimizer", &local.optimizer, sgd, "sgd, whose steps the strategy weighs");
            let constant = local.schedule == Schedule::Constant && local.warm_up == 0;
            let expected = "constant, without warm_up: the strategy weighs steps of one size";
            check("schedule", &local.schedule, constant, expected);
        }
        if nova {
            let one = local.proximal == 0.0 || local.momentum == 0.0;
            let expected = "0 with momentum: fednova weighs the steps of one or the other";
            check("proximal", &local.proximal, one, expected);
            let pull = local.proximal * local.learning_rate;
            check("proximal", &local.proximal, pull < 1.0, "below 1 / learning_rate");
        }
        if scaffold {
            check("momentum", &local.momentum, local.momentum == 0.0, "0 with scaffold");
            check("proximal", &local.proximal, local.proximal == 0.0, "0 with scaffold");
            let norm = local.gradient_norm_max;
            let expected = "absent with scaffold, which corrects whole gradients";
            check("gradient_norm_max", &norm.unwrap_or_default(), norm.is_none(), expected);
            let kept = &local.kept_local;
            let expected = "empty with scaffold, which compares all parameters";
            check("kept_local", &kept.join(", "), kept.is_empty(), expected);
        }
        found
    }

    /// Why an update of this training does not have what the strategy needs of it, if it does not.
    pub fn refuses(&self, local: &LocalTraining, update: &UpdateReport) -> Option<String> {
        let UpdateReport { examples, steps, initial_loss, control_change, .. } = update;
        if let Self::QFedAvg(rule) = self {
            rule.refuses(*initial_loss)
        } else if matches!(self, Self::FedNova {}) {
            local.refuses_steps(*steps, *examples)
        } else if matches!(self, Self::Scaffold(_)) && control_change.is_none() {
            Some("the change of its control variate is missing: an older agent?".to_owned())
        } else {
            None
        }
    }
}

/// `x -= sum F_k^q d_k / sum h_k` with `d_k = (x - w_k) / learning_rate` and
/// `h_k = q F_k^(q-1) |d_k|^2 + F_k^q / learning_rate`; `F_k` is the loss of `x` on a device's
/// examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QFedAvg {
    /// How much fairness counts: 0 weighs all devices alike.
    pub q: f64,
    /// Above 0; that of the local training when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
}

/// The highest power of a loss: those of all devices, times squares of what updates may be, have a
/// sum in `f64`.
const POWER_MAX: f64 = 1e200;

impl QFedAvg {
    /// Why a device does not count that has this loss before its training, if it does not.
    fn refuses(&self, initial_loss: Option<f64>) -> Option<String> {
        let Some(loss) = initial_loss else {
            return Some("the loss before the training is missing: an older agent?".to_owned());
        };
        let q = self.q;
        let max = POWER_MAX.powf(q.recip()).min(LOSS_MAX);
        let text = || format!("the loss before the training is {loss:e}, expected 0 to {max:e}");
        (!(0.0..=max).contains(&loss)).then(text)
    }
}

impl Default for QFedAvg {
    fn default() -> Self {
        Self { q: 0.1, learning_rate: None }
    }
}

/// How far the parameters move towards the mean of the updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaffold {
    /// Share of the way, above 0.
    pub learning_rate: f64,
}

impl Default for Scaffold {
    fn default() -> Self {
        Self { learning_rate: 1.0 }
    }
}

/// `x += learning_rate / K sum s_k (w_k - x_k)` over the `K` updates of the buffer, each trained
/// from a version `x_k`; `s_k` is [`Staleness`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedBuff {
    /// Step size, above 0.
    pub learning_rate: f64,
    /// See [`Staleness::exponent`].
    pub exponent: f64,
    /// See [`Staleness::staleness_max`].
    pub staleness_max: u32,
}

impl Default for FedBuff {
    fn default() -> Self {
        let Staleness { exponent, staleness_max } = Staleness::default();
        Self { learning_rate: 1.0, exponent, staleness_max }
    }
}

/// How much of each coordinate's values is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedTrimmedAvg {
    /// Share of the updates at each end, rounded down; above 0, below 0.5.
    pub fraction: f64,
}

impl Default for FedTrimmedAvg {
    fn default() -> Self {
        Self { fraction: 0.2 }
    }
}

/// How many devices may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Byzantine {
    /// Updates that may be anything, 1 or more.
    pub byzantine: u32,
}

/// How many devices may be wrong, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiKrum {
    /// Updates that may be anything, 1 or more.
    pub byzantine: u32,
    /// Updates that are averaged; all but `byzantine` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected: Option<u32>,
}

/// How far an update may lie off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentredClipping {
    /// Longest difference from the guess that counts, above 0.
    pub radius: f64,
    /// Steps of the guess.
    #[serde(default = "one")]
    pub iterations: u32,
}

fn one() -> u32 {
    1
}

/// How long an update may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormBound {
    /// Longest difference from the round's parameters that counts, above 0.
    pub norm: f64,
}

/// Text that is no strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no strategy: {reason}; expected fedavg, fedavgm, fedadagrad, fedadam, fedyogi, \
     qfedavg, fednova, scaffold, fedbuff, fedmedian, fedtrimmedavg, krum, multikrum, bulyan, \
     geometricmedian, centredclipping or normbound, with settings such as \
     fedadam:learning_rate=0.1,beta1=0.9"
)]
pub struct StrategyError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else {
            return Err(fmt::Error);
        };
        let name = fields.remove("name");
        f.write_str(name.as_ref().and_then(Value::as_str).unwrap_or_default())?;
        for (index, (name, value)) in fields.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for Strategy {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| StrategyError { text: text.to_owned(), reason };
        let (name, mut fields) = settings::parse(text).map_err(fail)?;
        fields.insert("name".to_owned(), name.into());
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
