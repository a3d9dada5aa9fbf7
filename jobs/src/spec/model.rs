//! Which model: by name and version, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{IdError, ModelName, ModelVersion};

/// A model by name, and by version if not the newest; also read from `name` or `name:version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelQuery {
    /// The model's name.
    pub name: ModelName,
    /// The version; the newest when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<ModelVersion>,
}

impl FromStr for ModelQuery {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (name, version) = match text.split_once(':') {
            None => (text, None),
            Some((name, version)) => (name, Some(ModelVersion::parse(version)?)),
        };
        Ok(Self { name: ModelName::parse(name)?, version })
    }
}

impl<'de> Deserialize<'de> for ModelQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ModelQueryVisitor)
    }
}

struct ModelQueryVisitor;

impl<'de> Visitor<'de> for ModelQueryVisitor {
    type Value = ModelQuery;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a model as \"name\", \"name:version\" or {\"name\": .., \"version\": ..}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ModelQuery, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelQuery, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            name: ModelName,
            #[serde(default)]
            version: Option<ModelVersion>,
        }
        let Parts { name, version } = Parts::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ModelQuery { name, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_by_text_or_parts() {
        let parse = |text: &str| serde_json::from_str::<ModelQuery>(text);
        let both = parse(r#"{"name":"digits","version":"3"}"#).unwrap();
        assert_eq!(parse(r#""digits:3""#).unwrap(), both);
        assert_eq!(parse(&serde_json::to_string(&both).unwrap()).unwrap(), both);
        assert_eq!(parse(r#""digits""#).unwrap().version, None);
        for (bad, expected) in [
            (r#""Digits""#, "model name \"Digits\""),
            (r#""digits:""#, "model version \"\""),
            (r#"{"name":"a","versoin":"1"}"#, "unknown field `versoin`"),
            ("7", "\"name:version\""),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }
}
