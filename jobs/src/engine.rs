//! Engines that run models: their names, what a device says of them, and which of them a request
//! lets answer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Bytes;

/// The engines that run models, by the names that facts, reports and requests use.
pub const ENGINES: [&str; 5] = ["native", "tract", "cuda", "webgpu", "ort-cpu"];

/// What a device found out about an engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Which of [`ENGINES`].
    pub engine: String,
    /// Why it cannot be used; absent where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
    /// What it computes on, such as `NVIDIA GeForce RTX 3080 Ti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Driver with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The library that was loaded, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Memory of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Floating-point operations per second of a known model, in 10^9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
}

/// Which engines may answer a request: all of them (empty), only some (`cuda,ort-cpu`), or all
/// but some (`!webgpu,!tract`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnginePolicy {
    names: Vec<&'static str>,
    forbids: bool,
}

/// Text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnginePolicyError {
    /// A name that no engine has.
    #[error("engine {0:?} is not known: expected one of native, tract, cuda, webgpu, ort-cpu")]
    Unknown(String),
    /// Both forms at once.
    #[error(
        "engines {0:?}: expected either engines that may answer (cuda,ort-cpu) or engines that \
         may not (!webgpu)"
    )]
    Mixed(String),
}

impl EnginePolicy {
    /// Whether an engine may answer.
    pub fn allows(&self, engine: &str) -> bool {
        self.names.is_empty() || self.names.contains(&engine) != self.forbids
    }

    /// Whether an engine is one of those that are asked for by their names.
    pub fn names(&self, engine: &str) -> bool {
        !self.forbids && self.names.contains(&engine)
    }
}

impl FromStr for EnginePolicy {
    type Err = EnginePolicyError;

    fn from_str(text: &str) -> Result<Self, EnginePolicyError> {
        let mut policy = Self::default();
        for (index, part) in text.split(',').map(str::trim).enumerate() {
            if part.is_empty() && text.trim().is_empty() {
                return Ok(Self::default());
            }
            let (forbids, name) = match part.strip_prefix('!') {
                Some(name) => (true, name),
                None => (false, part),
            };
            let known = ENGINES.into_iter().find(|known| *known == name);
            let name = known.ok_or_else(|| EnginePolicyError::Unknown(name.to_owned()))?;
            if index > 0 && forbids != policy.forbids {
                return Err(EnginePolicyError::Mixed(text.to_owned()));
            }
            policy.forbids = forbids;
            if !policy.names.contains(&name) {
                policy.names.push(name);
            }
        }
        Ok(policy)
    }
}

impl fmt::Display for EnginePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}{name}", if self.forbids { "!" } else { "" })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for EnginePolicy {
    type Error = EnginePolicyError;
    fn try_from(text: String) -> Result<Self, EnginePolicyError> {
        text.parse()
    }
}

impl From<EnginePolicy> for String {
    fn from(policy: EnginePolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_allows_some_or_all_but_some() {
        for (text, allowed) in [
            ("", "native tract cuda webgpu ort-cpu"),
            ("cuda", "cuda"),
            ("cuda, ort-cpu,cuda", "cuda ort-cpu"),
            ("!webgpu", "native tract cuda ort-cpu"),
            ("!webgpu,!native", "tract cuda ort-cpu"),
        ] {
            let policy: EnginePolicy = text.parse().unwrap();
            let found: Vec<&str> =
                ENGINES.into_iter().filter(|engine| policy.allows(engine)).collect();
            assert_eq!(found.join(" "), allowed, "{text:?}");
            let named: Vec<&str> =
                ENGINES.into_iter().filter(|engine| policy.names(engine)).collect();
            assert_eq!(named, if text.starts_with('c') { found } else { Vec::new() }, "{text:?}");
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for (text, expected) in [
            ("gpu", "engine \"gpu\" is not known"),
            ("cuda,", "engine \"\" is not known"),
            ("cuda,!webgpu", "expected either"),
            ("!", "engine \"\" is not known"),
        ] {
            let error = text.parse::<EnginePolicy>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
