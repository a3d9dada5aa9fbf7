//! Which devices: `arch=arm64,accelerator in (cuda),label.site=lab`.

use serde::{Deserialize, Serialize};

use crate::device::Hello;

/// Requirements that a device must all meet; empty means every device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    source: String,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {text:?}: {problem}")]
pub struct SelectorError {
    /// The text.
    pub text: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl Selector {
    /// Parses requirements separated by commas.
    ///
    /// # Errors
    /// [`SelectorError`] naming the requirement that is not one.
    pub fn parse(_text: &str) -> Result<Self, SelectorError> {
        unimplemented!()
    }

    /// Whether a device meets every requirement.
    pub fn matches(&self, _device: &Hello) -> bool {
        unimplemented!()
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Self, SelectorError> {
        Self::parse(&text)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.source
    }
}
