//! Which devices: `arch=arm64,accelerator in (cuda),label.site=lab`.
//!
//! Requirements are separated by commas, and a device must meet all of them:
//!
//! | requirement | met when |
//! |---|---|
//! | `key=value`, `key!=value` | the device has, or has not, this value |
//! | `key in (a,b)`, `key notin (a,b)` | it has one, or none, of these values |
//! | `key`, `!key` | it has any, or no, value |
//! | `cpus>=4`, `memory<2GiB` | the number is large, or small, enough |
//!
//! Keys are `device`, `arch`, `os`, `model`, `group`, `dataset`, `engine` (or `accelerator`),
//! `cpus`, `memory` and `label.<key>`. Values are compared without regard to ASCII case; `*`
//! stands for any characters. `arm64`, `amd64`, `armv7` and `darwin` mean `aarch64`, `x86_64`,
//! `arm` and `macos`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::Hello;
use crate::id::GroupName;

mod parse;

/// Length of a selector's text, at most.
pub const TEXT_LENGTH_MAX: usize = 4096;

/// Requirements that a device must all meet; empty means every device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {text:?}: {problem}")]
pub struct SelectorError {
    /// The text, cut to 80 characters.
    pub text: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl Selector {
    /// Parses requirements separated by commas.
    ///
    /// # Errors
    /// [`SelectorError`] naming the requirement that is not one.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        match parse::requirements(text) {
            Ok(requirements) => Ok(Self { requirements }),
            Err(problem) => Err(SelectorError { text: text.chars().take(80).collect(), problem }),
        }
    }

    /// Whether a device meets every requirement.
    pub fn matches(&self, device: &Hello) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(device))
    }

    /// Whether every device matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// The text again, in one spelling: aliases resolved, no needless spaces.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
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
        selector.to_string()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// One of the values, or none of them when negated.
    Has { key: Key, values: Vec<String>, negated: bool },
    /// Any value, or no value when negated.
    Exists { key: Key, negated: bool },
    /// A number of at least this, or below it.
    Number { key: NumberKey, limit: u64, below: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Device,
    Arch,
    Os,
    Model,
    Group,
    Dataset,
    Engine,
    Label(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberKey {
    Cpus,
    Memory,
}

impl Requirement {
    fn matches(&self, device: &Hello) -> bool {
        match self {
            Requirement::Has { key, values, negated } => {
                let has = key.values(device).iter().any(|found| {
                    let found = key.canonical(found);
                    values.iter().any(|wanted| is_like(&found, wanted))
                });
                has != *negated
            }
            Requirement::Exists { key, negated } => key.values(device).is_empty() == *negated,
            Requirement::Number { key, limit, below } => {
                let found = match key {
                    NumberKey::Cpus => u64::from(device.facts.cpus),
                    NumberKey::Memory => device.facts.memory.0,
                };
                (found < *limit) == *below
            }
        }
    }
}

impl Key {
    /// What the device has under this key; nothing when it does not know.
    fn values<'a>(&self, device: &'a Hello) -> Vec<&'a str> {
        let facts = &device.facts;
        let mut values: Vec<&str> = match self {
            Key::Device => vec![device.device.as_str()],
            Key::Arch => vec![&facts.arch],
            Key::Os => vec![&facts.os],
            Key::Model => vec![&facts.model],
            Key::Group => device.groups.iter().map(GroupName::as_str).collect(),
            Key::Dataset => device.datasets.iter().map(|dataset| dataset.name.as_str()).collect(),
            Key::Engine => device.engines.iter().map(String::as_str).collect(),
            Key::Label(label) => device.labels.get(label).map(String::as_str).into_iter().collect(),
        };
        // A label may be empty on purpose; an empty fact is an unknown one.
        values.retain(|value| matches!(self, Key::Label(_)) || !value.is_empty());
        values
    }

    /// The one spelling of a value.
    fn canonical(&self, value: &str) -> String {
        let value = value.to_ascii_lowercase();
        let alias = match (self, value.as_str()) {
            (Key::Arch, "arm64") => "aarch64",
            (Key::Arch, "amd64" | "x64") => "x86_64",
            (Key::Arch, "armv7" | "armv7l" | "armhf") => "arm",
            (Key::Os, "darwin") => "macos",
            _ => return value,
        };
        alias.to_owned()
    }
}

/// Whether a text has the form of a pattern, in which `*` stands for any characters.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pattern[first.len()..].rsplit_once('*').map(|(_, last)| last) else {
        return rest.is_empty();
    };
    let between = parts.clone().count().saturating_sub(1);
    for part in parts.take(between) {
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.ends_with(last)
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::Has { key, values, negated } => match (&values[..], negated) {
                ([value], false) => write!(f, "{key}={value}"),
                ([value], true) => write!(f, "{key}!={value}"),
                (_, false) => write!(f, "{key} in ({})", values.join(",")),
                (_, true) => write!(f, "{key} notin ({})", values.join(",")),
            },
            Requirement::Exists { key, negated: false } => write!(f, "{key}"),
            Requirement::Exists { key, negated: true } => write!(f, "!{key}"),
            Requirement::Number { key, limit, below } => {
                let operator = if *below { "<" } else { ">=" };
                let key = match key {
                    NumberKey::Cpus => "cpus",
                    NumberKey::Memory => "memory",
                };
                write!(f, "{key}{operator}{limit}")
            }
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Device => f.write_str("device"),
            Key::Arch => f.write_str("arch"),
            Key::Os => f.write_str("os"),
            Key::Model => f.write_str("model"),
            Key::Group => f.write_str("group"),
            Key::Dataset => f.write_str("dataset"),
            Key::Engine => f.write_str("engine"),
            Key::Label(label) => write!(f, "label.{label}"),
        }
    }
}

#[cfg(test)]
mod tests;
