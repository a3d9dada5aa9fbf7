//! How examples become what a model sees in training.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::text_or_table;

/// A random change of pictures that are trained on, drawn from the task's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Augment {
    /// Left and right are swapped with probability 1/2.
    Flip,
    /// Black pixels are added around, an eighth of each side (4 of 32), and a picture of the old
    /// size is cut out anywhere.
    PadCrop,
    /// A rectangle of half of each side (16 of 32) becomes 0 (`DeVries` and Taylor 2017).
    Cutout,
}

/// A word that is no augmentation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no augmentation: expected flip, pad_crop or cutout")]
pub struct AugmentError(String);

impl Augment {
    const ALL: [Self; 3] = [Self::Flip, Self::PadCrop, Self::Cutout];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::PadCrop => "pad_crop",
            Self::Cutout => "cutout",
        }
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Augment {
    type Err = AugmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|augment| augment.as_str() == text);
        found.ok_or_else(|| AugmentError(text.to_owned()))
    }
}

/// How values become inputs, `(value - mean) / std`: pixels are 0 to 1, each column of a table is
/// a channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum Normalization {
    /// As the data set's format says, which devices declare.
    #[default]
    Format,
    /// Not at all.
    None,
    /// By mean and standard deviation of each channel over the examples of all devices, as they
    /// declare them when the training begins.
    Dataset,
    /// By these values.
    Fixed {
        /// One for each channel, or one for all.
        mean: Vec<f32>,
        /// The same; above 0.
        std: Vec<f32>,
    },
}

text_or_table!(
    Normalization,
    "\"format\", \"none\", \"dataset\" or mean/std such as \"0.5/0.25\", or a table such as {\"fixed\": \
     {\"mean\": [0.5], \"std\": [0.25]}}",
    Normalization::deserialize
);

/// Text that is no normalisation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no normalisation: expected format, none, dataset, or mean/std such as 0.5/0.25 or \
     0.49,0.48,0.45/0.25,0.24,0.26"
)]
pub struct NormalizationError(String);

impl Normalization {
    /// Whether fixed values can be used: as many as each other or one, finite, `std` above 0.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let Self::Fixed { mean, std } = self else { return None };
        let counts = !mean.is_empty() && !std.is_empty();
        let alike = mean.len() == std.len() || mean.len() == 1 || std.len() == 1;
        let values = mean.iter().all(|mean| mean.is_finite())
            && std.iter().all(|std| std.is_finite() && *std > 0.0);
        let valid = counts && alike && values;
        (!valid).then_some("mean and std of every channel or one for all, finite, std above 0")
    }
}

impl fmt::Display for Normalization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Format => f.write_str("format"),
            Self::None => f.write_str("none"),
            Self::Dataset => f.write_str("dataset"),
            Self::Fixed { mean, std } => write!(f, "{}/{}", list(mean), list(std)),
        }
    }
}

impl FromStr for Normalization {
    type Err = NormalizationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NormalizationError(text.to_owned());
        let list = |text: &str| {
            let values: Result<Vec<f32>, _> = text.split(',').map(|v| v.trim().parse()).collect();
            values.map_err(|_| wrong())
        };
        match text {
            "format" => Ok(Self::Format),
            "none" => Ok(Self::None),
            "dataset" => Ok(Self::Dataset),
            _ => {
                let (mean, std) = text.split_once('/').ok_or_else(wrong)?;
                Ok(Self::Fixed { mean: list(mean)?, std: list(std)? })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_json() {
        for augment in Augment::ALL {
            let word = augment.as_str();
            assert_eq!(word.parse(), Ok(augment));
            assert_eq!(serde_json::to_string(&augment).unwrap(), format!("{word:?}"));
        }
        let error = "rotate".parse::<Augment>().unwrap_err().to_string();
        assert_eq!(error, "\"rotate\" is no augmentation: expected flip, pad_crop or cutout");
        for word in ["format", "none", "dataset"] {
            let normalization: Normalization = word.parse().unwrap();
            assert_eq!(normalization.to_string(), word);
            assert_eq!(serde_json::to_string(&normalization).unwrap(), format!("{word:?}"));
        }
    }

    #[test]
    fn fixed_values_are_written_as_they_are_read() {
        let text = "0.5,0.25,0/1";
        let fixed: Normalization = text.parse().unwrap();
        assert_eq!(fixed, Normalization::Fixed { mean: vec![0.5, 0.25, 0.0], std: vec![1.0] });
        assert_eq!((fixed.to_string(), fixed.problem()), (text.to_owned(), None));
        let json = serde_json::to_string(&fixed).unwrap();
        assert_eq!(json, r#"{"fixed":{"mean":[0.5,0.25,0.0],"std":[1.0]}}"#);
        for text in ["", "0.5", "a/b", "0.5/", "mean"] {
            let error = text.parse::<Normalization>().unwrap_err().to_string();
            assert!(error.contains("0.5/0.25"), "{error}");
        }
        for text in ["0/0", "0,1/1,2,3", "nan/1", "0/inf", "0/-1"] {
            assert!(text.parse::<Normalization>().unwrap().problem().is_some(), "{text}");
        }
    }
}
