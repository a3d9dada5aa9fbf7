//! How a round's parameters travel from the broker to devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the parameters are written that a device begins a round with, and judges. With fewer bits
/// devices train from what they were given, and send what they learnt as differences from it; the
/// broker's own parameters stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Download {
    /// As safetensors of 32-bit floats.
    #[default]
    Plain,
    /// 32-bit floats, compressed without loss.
    Float32,
    /// IEEE 754's 16-bit floats.
    Float16,
    /// The upper halves of 32-bit floats.
    BFloat16,
    /// 8-bit integers with a scale for each block, rounded at random with the right expectation.
    Int8,
}

impl Download {
    const ALL: [Self; 5] = [Self::Plain, Self::Float32, Self::Float16, Self::BFloat16, Self::Int8];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// Whether devices get the very values that the broker has.
    pub fn is_exact(self) -> bool {
        match self {
            Self::Plain | Self::Float32 => true,
            Self::Float16 | Self::BFloat16 | Self::Int8 => false,
        }
    }
}

/// Text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no encoding of parameters: expected plain, float32, float16, bfloat16 or int8")]
pub struct DownloadError(String);

impl fmt::Display for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Download {
    type Err = DownloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|download| download.as_str() == text);
        found.ok_or_else(|| DownloadError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_are_the_same_word() {
        for download in Download::ALL {
            assert_eq!(download.to_string().parse(), Ok(download));
            assert_eq!(serde_json::to_value(download).unwrap(), download.as_str());
        }
        let error = "topk".parse::<Download>().unwrap_err().to_string();
        assert!(error.contains("bfloat16"), "{error}");
    }
}
