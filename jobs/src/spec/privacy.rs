//! What a training promises of its devices' data: differential privacy, up to a budget.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::settings::text_or_table;
use super::{Keep, SecureAggregation, Selection, Strategy, TrainSpec, settings};
use crate::privacy::{self, Releases};

/// Differential privacy of whole devices: who sees all parameters of the job learns next to
/// nothing of what any one device has, whatever else is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Privacy {
    /// Who adds the noise, and so who sees updates without it.
    #[serde(default)]
    pub mode: PrivacyMode,
    /// The longest update that counts; longer ones are shortened to it.
    pub clip: Clip,
    /// Deviation of the noise by the most that one device changes, above 0: the norm in a sum of
    /// updates; twice the norm, which two updates lie apart, where each device adds its own.
    pub noise_multiplier: f64,
    /// Chance with which the promise may fail, above 0; far below one by the number of devices.
    pub delta: f64,
    /// The job ends before the round that would take its `epsilon` above this.
    pub epsilon_budget: f64,
    /// Below 1 each eligible device takes part in a round by this chance, drawn in secret; who
    /// sees only parameters then learns less, so rounds cost less.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub sampling_rate: f64,
}

text_or_table!(
    Privacy,
    "text such as \"central:norm=1,noise_multiplier=1.1,epsilon_budget=8,delta=1e-5\", or a table \
     such as {\"mode\": \"central\", \"clip\": {\"norm\": 1}, \"noise_multiplier\": 1.1, \"epsilon_budget\": 8, \
     \"delta\": 1e-5}",
    Privacy::deserialize
);

fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(value: &f64) -> bool {
    value.to_bits() == one().to_bits()
}

/// Who adds the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyMode {
    /// The broker, to the mean of a round; it is trusted with the updates.
    #[default]
    Central,
    /// Each device, to its own update; nobody is trusted.
    Local,
}

/// The longest update that counts, as the Euclidean norm of all its differences from the round's
/// parameters together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Always this, above 0.
    Norm(f64),
    /// One that follows what devices send.
    Adaptive(AdaptiveClip),
}

/// A norm that follows a quantile of the updates' norms: `C' = C exp(-rate (b - quantile))`, `b`
/// the noised share of updates that are not longer than `C` (Andrew et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveClip {
    /// Of the first round, above 0.
    pub initial: f64,
    /// Share of updates that are not shortened, 0 to 1.
    pub quantile: f64,
    /// How fast it follows, above 0.
    pub rate: f64,
    /// Deviation of the noise on the number of updates that are not shortened; a twentieth of the
    /// planned devices when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_deviation: Option<f64>,
}

impl Default for AdaptiveClip {
    fn default() -> Self {
        Self { initial: 0.1, quantile: 0.5, rate: 0.2, count_deviation: None }
    }
}

impl AdaptiveClip {
    /// Deviation of the noise on a number of these planned devices.
    pub fn count_deviation(&self, planned: u32) -> f64 {
        self.count_deviation.unwrap_or_else(|| f64::from(planned) / 20.0)
    }
}

impl Privacy {
    /// What so many rounds cost.
    pub fn epsilon(&self, rounds: u32) -> f64 {
        let Self { sampling_rate, noise_multiplier, delta, .. } = *self;
        privacy::epsilon(&[Releases { sampling_rate, noise_multiplier, count: rounds }], delta)
    }

    /// Whether so many rounds are within the budget.
    pub fn allows(&self, rounds: u32) -> bool {
        self.epsilon(rounds) <= self.epsilon_budget
    }

    /// How many rounds the budget is enough for, up to `max`.
    pub fn rounds_within(&self, max: u32) -> u32 {
        if self.allows(max) {
            return max;
        }
        // Rounds that are allowed, and rounds that are not.
        let (mut low, mut high) = (0, max);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.allows(middle) { low = middle } else { high = middle }
        }
        low
    }

    /// The norm of the first round.
    pub fn initial_norm(&self) -> f64 {
        match self.clip {
            Clip::Norm(norm) => norm,
            Clip::Adaptive(AdaptiveClip { initial, .. }) => initial,
        }
    }

    /// Deviation of the noise on updates by what one device changes them at most. With an
    /// adaptive norm it is larger than the noise multiplier, so that both noised figures of a
    /// round together cost what a single one costs; not a number where that cannot be.
    pub fn update_noise_multiplier(&self, planned: u32) -> f64 {
        match self.clip {
            Clip::Norm(_) => self.noise_multiplier,
            Clip::Adaptive(clip) => {
                let deviation = clip.count_deviation(planned);
                privacy::update_noise_multiplier(self.noise_multiplier, deviation)
            }
        }
    }

    /// How far a parameter may move with noise that a device adds itself: the norm and four
    /// deviations, beyond which one value in 16,000 lies. As exact as a range is, so that the product
    /// of round numbers is enough.
    #[expect(clippy::cast_possible_truncation, reason = "a range beyond floats is infinite")]
    pub fn range_needed(&self) -> f32 {
        (self.initial_norm() * (1.0 + 4.0 * 2.0 * self.noise_multiplier)) as f32
    }

    /// The norm after a round with this one, in which `within` is the noised share of updates that
    /// were not longer.
    pub fn next_norm(&self, norm: f64, within: Option<f64>) -> f64 {
        match (self.clip, within) {
            (Clip::Adaptive(AdaptiveClip { quantile, rate, .. }), Some(within)) => {
                let next = norm * (-rate * (within - quantile)).exp();
                next.clamp(NORM_MIN, NORM_MAX)
            }
            (Clip::Norm(_) | Clip::Adaptive(_), _) => norm,
        }
    }
}

impl TrainSpec {
    /// Whether devices say in their masked updates which of these were not longer than the norm, so
    /// that it can follow a sum that tells of no single one.
    pub fn masks_within(&self) -> bool {
        let adaptive = self.privacy.is_some_and(|it| matches!(it.clip, Clip::Adaptive(_)));
        adaptive && self.secure_aggregation.is_some()
    }
}

/// Norms stay within this, so that noise of them does not leave the range of `f32`.
const NORM_MIN: f64 = 1e-12;
const NORM_MAX: f64 = 1e12;
const NOISE_MAX: f64 = 1e6;

/// What is wrong with the promise of a training, and with what stands beside it: field, value,
/// what is accepted.
pub(super) fn problems(spec: &TrainSpec) -> Vec<(String, String, String)> {
    let mut problems = Problems(Vec::new());
    if let Some(privacy) = &spec.privacy {
        problems.settings(privacy, spec.participation.devices);
        problems.beside(privacy, spec);
        match privacy.mode {
            PrivacyMode::Central => problems.central(spec),
            PrivacyMode::Local => problems.local(privacy, spec),
        }
        if let Some(secure) = &spec.secure_aggregation {
            problems.masked(privacy, secure);
        }
    }
    problems.0
}

struct Problems(Vec<(String, String, String)>);

impl Problems {
    fn check(&mut self, valid: bool, field: &str, found: impl fmt::Display, expected: &str) {
        if !valid {
            self.0.push((field.to_owned(), found.to_string(), expected.to_owned()));
        }
    }

    fn settings(&mut self, privacy: &Privacy, planned: Option<u32>) {
        let above_0 = |value: f64, max: f64| value > 0.0 && value <= max;
        let norm = |value| (NORM_MIN..=NORM_MAX).contains(&value);
        match privacy.clip {
            Clip::Norm(value) => {
                self.check(norm(value), "privacy.clip.norm", value, "1e-12 to 1e12");
            }
            Clip::Adaptive(AdaptiveClip { initial, quantile, rate, count_deviation }) => {
                let field = |name: &str| format!("privacy.clip.adaptive.{name}");
                self.check(norm(initial), &field("initial"), initial, "1e-12 to 1e12");
                let share = (0.0..=1.0).contains(&quantile);
                self.check(share, &field("quantile"), quantile, "0 to 1");
                self.check(above_0(rate, 10.0), &field("rate"), rate, "above 0, at most 10");
                if let Some(deviation) = count_deviation {
                    let valid = above_0(deviation, NOISE_MAX);
                    let expected = "above 0, at most 1e6";
                    self.check(valid, &field("count_deviation"), deviation, expected);
                }
            }
        }
        let noise = privacy.noise_multiplier;
        self.check(
            above_0(noise, NOISE_MAX),
            "privacy.noise_multiplier",
            noise,
            "above 0, at most 1e6",
        );
        let delta = privacy.delta > 0.0 && privacy.delta < 1.0;
        self.check(delta, "privacy.delta", privacy.delta, "above 0, below 1");
        let budget = privacy.epsilon_budget;
        self.check(above_0(budget, 1e6), "privacy.epsilon_budget", budget, "above 0, at most 1e6");
        let rate = privacy.sampling_rate;
        self.check(above_0(rate, 1.0), "privacy.sampling_rate", rate, "above 0, at most 1");
        if !self.0.is_empty() {
            return;
        }
        if let (Clip::Adaptive(clip), Some(planned)) = (privacy.clip, planned)
            && !privacy.update_noise_multiplier(planned).is_finite()
        {
            let twice = 2.0 * clip.count_deviation(planned);
            let expected = format!(
                "below {twice}, twice the count_deviation, because an adaptive norm takes part of \
                 the noise"
            );
            self.check(false, "privacy.noise_multiplier", noise, &expected);
        }
        let first = privacy.epsilon(1);
        if first > budget {
            let needed = privacy::noise_multiplier(1, rate, budget, privacy.delta);
            let needed =
                needed.map_or_else(String::new, |it| format!(", or noise_multiplier {it:.4}"));
            let expected = format!("at least {first:.4}, which one round costs{needed}");
            self.check(false, "privacy.epsilon_budget", budget, &expected);
        }
    }

    /// What neither mode goes with.
    fn beside(&mut self, privacy: &Privacy, spec: &TrainSpec) {
        if let Some(target) = spec.target_accuracy {
            let expected = "absent, because noise does not cover what ends the job";
            self.check(false, "target_accuracy", target, expected);
        }
        if spec.early_stopping.is_some() {
            let expected = "absent, because noise does not cover what ends the job";
            self.check(false, "early_stopping", "given", expected);
        }
        if spec.keep == Keep::Best {
            let expected = "last, because noise does not cover which round is the best";
            self.check(false, "keep", "best", expected);
        }
        if privacy.sampling_rate < 1.0 {
            let surplus = spec.participation.over_selection;
            let expected = "0, because privacy.sampling_rate says who is invited";
            self.check(surplus <= 0.0, "participation.over_selection", surplus, expected);
        }
        let selection = &spec.participation.selection;
        let chance = matches!(selection, Selection::Random | Selection::Windows { .. });
        if !chance && privacy.sampling_rate < 1.0 {
            let expected = "random, because privacy.sampling_rate says who is invited";
            self.check(false, "participation.selection", selection, expected);
        } else if matches!(selection, Selection::ByLoss { .. }) {
            let expected = "another one, because noise does not cover the losses that devices tell";
            self.check(false, "participation.selection", selection, expected);
        }
    }

    fn central(&mut self, spec: &TrainSpec) {
        let planned = spec.participation.devices.is_some();
        let expected = "a number, because privacy divides by it however many updates come";
        self.check(planned, "participation.devices", "absent", expected);
        let mean = matches!(
            spec.strategy,
            Strategy::FedAvg {}
                | Strategy::FedAvgM(_)
                | Strategy::FedAdagrad(_)
                | Strategy::FedAdam(_)
                | Strategy::FedYogi(_)
        );
        let expected = "fedavg or a server optimizer, because privacy needs a mean";
        self.check(mean, "strategy", spec.strategy, expected);
    }

    /// What goes with updates that are masked.
    fn masked(&mut self, privacy: &Privacy, secure: &SecureAggregation) {
        let expected = "1, because all updates of a private job weigh the same";
        let field = "secure_aggregation.weight_max";
        self.check(secure.weight_max == 1, field, secure.weight_max, expected);
        match privacy.mode {
            PrivacyMode::Central => {
                let rate = privacy.sampling_rate;
                let expected = "1, because devices learn whose masks belong to theirs";
                self.check(rate >= 1.0, "privacy.sampling_rate", rate, expected);
            }
            PrivacyMode::Local => {
                let needed = privacy.range_needed();
                let expected = format!("at least {needed}, so that the noise is not cut off");
                let field = "secure_aggregation.clip";
                self.check(secure.clip >= needed, field, secure.clip, &expected);
            }
        }
    }

    fn local(&mut self, privacy: &Privacy, spec: &TrainSpec) {
        let fixed = matches!(privacy.clip, Clip::Norm(_));
        let expected =
            "a norm, because a device's own noise covers its update, not whether it was shortened";
        self.check(fixed, "privacy.clip", "adaptive", expected);
        let all = privacy.sampling_rate >= 1.0;
        let expected = "1, because who receives an update knows whose it is";
        self.check(all, "privacy.sampling_rate", privacy.sampling_rate, expected);
        let alone = !matches!(
            spec.strategy,
            Strategy::QFedAvg(_) | Strategy::FedNova {} | Strategy::Scaffold(_)
        );
        let expected = "one that looks at updates alone, because noise covers nothing else";
        self.check(alone, "strategy", spec.strategy, expected);
        let silent = !spec.evaluate.by_devices();
        let expected = "none or broker, because what devices judge is not covered by their noise";
        self.check(silent, "evaluate", spec.evaluate, expected);
    }
}

/// Text that is no promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no privacy: {reason}; expected central or local with settings such as \
     central:norm=1,noise_multiplier=1.1,epsilon_budget=8,delta=1e-5 or \
     central:initial=0.1,noise_multiplier=1.1,epsilon_budget=8,delta=1e-5"
)]
pub struct PrivacyError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl fmt::Display for Privacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            PrivacyMode::Central => "central",
            PrivacyMode::Local => "local",
        };
        match self.clip {
            Clip::Norm(norm) => write!(f, "{mode}:norm={norm}")?,
            Clip::Adaptive(AdaptiveClip { initial, quantile, rate, count_deviation }) => {
                write!(f, "{mode}:initial={initial},quantile={quantile},rate={rate}")?;
                if let Some(deviation) = count_deviation {
                    write!(f, ",count_deviation={deviation}")?;
                }
            }
        }
        let Self { noise_multiplier, delta, epsilon_budget, sampling_rate, .. } = self;
        write!(f, ",noise_multiplier={noise_multiplier},delta={delta}")?;
        write!(f, ",epsilon_budget={epsilon_budget}")?;
        if !is_one(sampling_rate) {
            write!(f, ",sampling_rate={sampling_rate}")?;
        }
        Ok(())
    }
}

impl FromStr for Privacy {
    type Err = PrivacyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| PrivacyError { text: text.to_owned(), reason };
        let (mode, mut fields) = settings::parse(text).map_err(fail)?;
        let adaptive: Map<String, Value> = ["initial", "quantile", "rate", "count_deviation"]
            .into_iter()
            .filter_map(|name| fields.remove_entry(name))
            .collect();
        let clip = match (fields.remove("norm"), adaptive.is_empty()) {
            (Some(norm), true) => json!({ "norm": norm }),
            (None, false) => json!({ "adaptive": adaptive }),
            (Some(_), false) => {
                return Err(fail("norm and an adaptive one exclude each other".into()));
            }
            (None, true) => return Err(fail("norm or initial is missing".into())),
        };
        fields.insert("clip".to_owned(), clip);
        fields.insert("mode".to_owned(), mode.into());
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
