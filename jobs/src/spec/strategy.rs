//! How the updates of a round become new parameters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a broker makes new parameters of a round's updates.
///
/// Server optimizers, [`Strategy::FedAvgM`] to [`Strategy::FedYogi`], take the round's parameters
/// less the mean of the updates, weighted by examples, as a gradient, with which they go a step.
/// What they keep lasts as long as the job.
///
/// The others bear some devices' updates being wrong, by fault or by intent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
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
    /// The median of each coordinate; examples do not count (Yin et al. 2018).
    FedMedian {},
    /// The mean of each coordinate without its lowest and highest values; examples do not count
    /// (Yin et al. 2018).
    FedTrimmedAvg(FedTrimmedAvg),
    /// The update that lies closest to its neighbours (Blanchard et al. 2017).
    Krum(Byzantine),
    /// The mean of the updates that lie closest to their neighbours, weighted by examples
    /// (Blanchard et al. 2017).
    MultiKrum(MultiKrum),
    /// Krum's choice, of each coordinate the mean of the values nearest the median (El Mhamdi et
    /// al. 2018).
    Bulyan(Byzantine),
    /// The point with the least sum of distances to all updates, weighted by examples (RFA,
    /// Pillutla et al. 2022).
    GeometricMedian {},
    /// The mean of the updates' differences from the round's parameters, each no longer than a
    /// radius around a guess that moves there (Karimireddy et al. 2021).
    CentredClipping(CentredClipping),
    /// The mean of the updates' differences from the round's parameters, weighted by examples, each
    /// no longer than a norm (Sun et al. 2019).
    NormBound(NormBound),
}

impl Default for Strategy {
    fn default() -> Self {
        Self::FedAvg {}
    }
}

impl Strategy {
    /// Settings that are out of range: the name, the value, what is accepted.
    pub(super) fn problems(&self) -> Vec<(&'static str, f64, &'static str)> {
        let above_0 = |name, value: f64| (name, value, value > 0.0, "above 0, finite");
        let share = |name, value: f64| (name, value, (0.0..1.0).contains(&value), "0 to below 1");
        let checked = match *self {
            Self::FedAvgM(FedAvgM { learning_rate, momentum }) => {
                vec![above_0("learning_rate", learning_rate), share("momentum", momentum)]
            }
            Self::FedAdagrad(FedAdagrad { learning_rate, tau }) => {
                vec![above_0("learning_rate", learning_rate), above_0("tau", tau)]
            }
            Self::FedAdam(FedAdam { learning_rate, beta1, beta2, tau })
            | Self::FedYogi(FedYogi { learning_rate, beta1, beta2, tau }) => vec![
                above_0("learning_rate", learning_rate),
                share("beta1", beta1),
                share("beta2", beta2),
                above_0("tau", tau),
            ],
            Self::FedAvg {}
            | Self::FedMedian {}
            | Self::GeometricMedian {}
            | Self::Krum(_)
            | Self::MultiKrum(MultiKrum { selected: None | Some(1..), .. })
            | Self::Bulyan(_) => Vec::new(),
            Self::MultiKrum(_) => vec![("selected", 0.0, false, "1 or above")],
            Self::FedTrimmedAvg(FedTrimmedAvg { fraction }) => {
                vec![("fraction", fraction, (0.0..0.5).contains(&fraction), "0 to below 0.5")]
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

    /// Updates without which it cannot work, and why.
    pub(super) fn quorum(&self) -> (u32, &'static str) {
        let needed = |factor, byzantine: u32| byzantine.saturating_mul(factor).saturating_add(3);
        match *self {
            Self::Krum(Byzantine { byzantine }) => {
                (needed(2, byzantine), "krum needs 2 byzantine + 3 updates")
            }
            Self::MultiKrum(MultiKrum { byzantine, selected }) => {
                let selected = selected.unwrap_or(1).saturating_add(byzantine);
                (
                    needed(2, byzantine).max(selected),
                    "multikrum needs 2 byzantine + 3 updates, and selected + byzantine",
                )
            }
            Self::Bulyan(Byzantine { byzantine }) => {
                (needed(4, byzantine), "bulyan needs 4 byzantine + 3 updates")
            }
            Self::FedAvg {}
            | Self::FedAvgM(_)
            | Self::FedAdagrad(_)
            | Self::FedAdam(_)
            | Self::FedYogi(_)
            | Self::FedMedian {}
            | Self::FedTrimmedAvg(_)
            | Self::GeometricMedian {}
            | Self::CentredClipping(_)
            | Self::NormBound(_) => (1, "a round needs an update"),
        }
    }
}

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
}

impl Default for FedAdagrad {
    fn default() -> Self {
        Self { learning_rate: 0.1, tau: 1e-3 }
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
}

impl Default for FedAdam {
    fn default() -> Self {
        Self { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
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
}

impl Default for FedYogi {
    fn default() -> Self {
        Self { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

/// How much of each coordinate's values is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedTrimmedAvg {
    /// Share of the updates at each end, rounded down; 0 to below 0.5.
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
    /// Updates that may be anything.
    pub byzantine: u32,
}

/// How many devices may be wrong, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiKrum {
    /// Updates that may be anything.
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
     fedmedian, fedtrimmedavg, krum, multikrum, bulyan, geometricmedian, centredclipping or \
     normbound, with settings such as fedadam:learning_rate=0.1,beta1=0.9"
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
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let mut fields = Map::new();
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (name, value) =
                setting.split_once('=').ok_or_else(|| fail(format!("{setting:?} has no value")))?;
            let value: Value = match (value.parse::<u32>(), value.parse::<f64>()) {
                (Ok(count), _) => count.into(),
                (_, Ok(number)) => number.into(),
                (Err(_), Err(_)) => {
                    return Err(fail(format!("{name} is {value:?}, not a number")));
                }
            };
            if fields.insert(name.to_owned(), value).is_some() {
                return Err(fail(format!("{name} is there twice")));
            }
        }
        fields.insert("name".to_owned(), name.into());
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("fedavg", r#"{"name":"fedavg"}"#),
            ("fedavgm:learning_rate=1.0,momentum=0.5", r#"{"name":"fedavgm","momentum":0.5}"#),
            ("fedadagrad:learning_rate=0.1,tau=0.001", r#"{"name":"fedadagrad"}"#),
            (
                "fedadam:beta1=0.9,beta2=0.99,learning_rate=0.1,tau=0.25",
                r#"{"name":"fedadam","tau":0.25}"#,
            ),
            ("fedyogi:beta1=0.9,beta2=0.99,learning_rate=0.01,tau=0.001", r#"{"name":"fedyogi"}"#),
            ("fedmedian", r#"{"name":"fedmedian"}"#),
            ("fedtrimmedavg:fraction=0.2", r#"{"name":"fedtrimmedavg"}"#),
            ("krum:byzantine=2", r#"{"name":"krum","byzantine":2}"#),
            ("multikrum:byzantine=0", r#"{"name":"multikrum"}"#),
            (
                "multikrum:byzantine=1,selected=3",
                r#"{"name":"multikrum","byzantine":1,"selected":3}"#,
            ),
            ("bulyan:byzantine=1", r#"{"name":"bulyan","byzantine":1}"#),
            ("geometricmedian", r#"{"name":"geometricmedian"}"#),
            (
                "centredclipping:iterations=1,radius=2.5",
                r#"{"name":"centredclipping","radius":2.5}"#,
            ),
            ("normbound:norm=10.0", r#"{"name":"normbound","norm":10}"#),
        ] {
            let strategy: Strategy = text.parse().unwrap();
            assert_eq!(serde_json::from_str::<Strategy>(json).unwrap(), strategy);
            let written = serde_json::to_string(&strategy).unwrap();
            assert_eq!(serde_json::from_str::<Strategy>(&written).unwrap(), strategy);
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
            let mut words: Vec<String> = text.split([':', ',']).map(str::to_owned).collect();
            let shown = strategy.to_string();
            let mut found: Vec<String> = shown.split([':', ',']).map(str::to_owned).collect();
            words.sort();
            found.sort();
            assert_eq!(found, words);
        }
        assert_eq!("fedavg".parse(), Ok(Strategy::default()));
        assert_eq!("fedadam".parse(), Ok(Strategy::FedAdam(FedAdam::default())));
    }

    #[test]
    fn settings_out_of_range_are_found() {
        for (text, names) in [
            ("fedavg", ""),
            ("fedadam", ""),
            ("fedavgm:learning_rate=0,momentum=1", "learning_rate momentum"),
            ("fedadagrad:tau=0,learning_rate=inf", "learning_rate tau"),
            ("fedyogi:beta1=-0.1,beta2=1,tau=-1", "beta1 beta2 tau"),
            ("fedtrimmedavg:fraction=0.5", "fraction"),
            ("multikrum:selected=0", "selected"),
            ("centredclipping:radius=0,iterations=0", "radius iterations"),
            ("normbound:norm=-1", "norm"),
        ] {
            let strategy = text.parse::<Strategy>();
            // JSON has no infinity: it is refused before.
            let Ok(strategy) = strategy else {
                assert!(text.contains("inf"), "{strategy:?}");
                continue;
            };
            let found: Vec<&str> = strategy.problems().iter().map(|problem| problem.0).collect();
            assert_eq!(found.join(" "), names);
        }
        let steep = FedAdam { learning_rate: f64::INFINITY, ..FedAdam::default() };
        assert_eq!(Strategy::FedAdam(steep).problems()[0].0, "learning_rate");
    }

    #[test]
    fn what_is_no_strategy_says_why() {
        for (text, words) in [
            ("fedprox", "unknown variant `fedprox`"),
            ("normbound", "missing field `norm`"),
            ("krum:byzantine=0.5", "expected u32"),
            ("", "unknown variant ``"),
            ("fedavg:momentum=0.9", "unknown field `momentum`"),
            ("fedadam:momentum=0.9", "unknown field `momentum`"),
            ("fedadam:beta1", "\"beta1\" has no value"),
            ("fedadam:beta1=much", "beta1 is \"much\", not a number"),
            ("fedadam:beta1=0,beta1=0", "beta1 is there twice"),
        ] {
            let error = text.parse::<Strategy>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
