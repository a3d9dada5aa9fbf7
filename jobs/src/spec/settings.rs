//! Text such as `name:first=1,second=0.5`, and where it stands for a table of settings.

use serde_json::{Map, Value};

/// Bytes of a text that stands for a table, at most.
pub(in crate::spec) const TEXT_MAX: usize = 1000;

/// Reads a type as text, as the command line takes it ([`FromStr`](std::str::FromStr)), or as the table
/// that is written. The type derives both of serde's traits with `remote = "Self"`; `$ways` says what
/// to write, `$of_table` reads a table.
macro_rules! text_or_table {
    ($type:ident, $ways:literal, $of_table:path) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Ways;

                impl<'de> serde::de::Visitor<'de> for Ways {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($ways)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        if text.len() > $crate::spec::settings::TEXT_MAX {
                            return Err(E::invalid_length(text.len(), &self));
                        }
                        text.parse().map_err(E::custom)
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        map: A,
                    ) -> Result<$type, A::Error> {
                        $of_table(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_any(Ways)
            }
        }
    };
}
pub(in crate::spec) use text_or_table;

/// The name, and the settings as JSON; or what is wrong.
pub(super) fn parse(text: &str) -> Result<(&str, Map<String, Value>), String> {
    let (name, settings) = text.split_once(':').unwrap_or((text, ""));
    let fields = fields(settings)?;
    match fields.iter().find(|(_, value)| value.is_string() || value.is_boolean()) {
        Some((name, value)) => Err(format!("{name} is {value}, not a number")),
        None => Ok((name, fields)),
    }
}

/// Settings alone, of numbers, `true`, `false` and words.
pub(super) fn fields(text: &str) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for setting in text.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) =
            setting.split_once('=').ok_or_else(|| format!("{setting:?} has no value"))?;
        let value: Value = match (value.parse::<u32>(), value.parse::<f64>(), value) {
            (Ok(count), _, _) => count.into(),
            (_, Ok(number), _) if number.is_finite() => number.into(),
            (_, Ok(_), _) => return Err(format!("{name} is {value}, not a finite number")),
            (_, _, "true") => true.into(),
            (_, _, "false") => false.into(),
            (_, _, word) => word.into(),
        };
        if fields.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(fields)
}

/// Settings as text that [`fields`] reads.
pub(super) fn text(fields: &Map<String, Value>) -> String {
    let settings = fields.iter().map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name}={value}")
    });
    settings.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::TrainSpec;
    use serde_json::json;

    fn read(field: &str, value: &Value) -> Result<TrainSpec, String> {
        let mut spec = json!({"model": "mlp", "dataset": "digits", "rounds": 1, "local": {},
            "participation": {}});
        let (table, name) = field.split_once('.').unwrap_or(("", field));
        let table = if table.is_empty() { &mut spec } else { &mut spec[table] };
        table[name] = value.clone();
        serde_json::from_value(spec).map_err(|error| error.to_string())
    }

    #[test]
    fn text_of_the_command_line_stands_for_a_table() {
        for (field, text, table) in [
            ("strategy", "fedadam", json!({"name": "fedadam"})),
            ("strategy", "qfedavg:q=2", json!({"name": "qfedavg", "q": 2})),
            ("rule", "krum:byzantine=1", json!({"name": "krum", "byzantine": 1})),
            (
                "privacy",
                "central:norm=1,noise_multiplier=2,epsilon_budget=8,delta=1e-5",
                json!({"clip": {"norm": 1}, "noise_multiplier": 2, "epsilon_budget": 8,
                    "delta": 1e-5}),
            ),
            ("update", "topk:share=0.25", json!({"encoding": "topk", "share": 0.25})),
            ("secure_aggregation", "", json!({})),
            ("secure_aggregation", "clip=0.5", json!({"clip": 0.5})),
            ("early_stopping", "3::accuracy", json!(null)),
            ("early_stopping", "3:0.5", json!({"patience": 3, "min_delta": 0.5})),
            ("begin_from", "j1:3", json!({"job": "j1", "round": 3})),
            ("local.schedule", "cosine", json!({"kind": "cosine"})),
            ("local.normalization", "0.5/0.25", json!({"fixed": {"mean": [0.5], "std": [0.25]}})),
            ("local.normalization", "dataset", json!("dataset")),
            ("participation.selection", "by_loss:20", json!({"kind": "by_loss", "candidates": 20})),
            ("participation.quarantine", "", json!({})),
            ("participation.quarantine", "rounds=5", json!({"rounds": 5})),
            ("participation.late_updates", "staleness", json!({"policy": "staleness"})),
        ] {
            let of_text = read(field, &json!(text));
            if table.is_null() {
                assert!(of_text.unwrap_err().contains("PATIENCE[:MIN_DELTA"), "{field}: {text}");
            } else {
                assert_eq!(of_text, read(field, &table), "{field}: {text}");
            }
        }
    }

    #[test]
    fn what_is_neither_text_nor_table_says_what_to_write() {
        for (field, expected) in [
            ("strategy", "\"fedadam:learning_rate=0.1\""),
            ("privacy", "\"central:norm=1,"),
            ("update", "\"topk:share=0.01\""),
            ("secure_aggregation", "\"clip=0.5,drop_out=0.3\""),
            ("early_stopping", "\"3:0.001:accuracy\""),
            ("begin_from", "\"JOB:3\""),
            ("local.schedule", "\"step:500:0.5\""),
            ("local.normalization", "\"0.5/0.25\""),
            ("participation.selection", "\"by_loss:20\""),
            ("participation.quarantine", "\"refused=2,rounds=50\""),
            ("participation.late_updates", "\"staleness:exponent=0.5"),
        ] {
            for wrong in [json!(true), json!(3), json!([1]), json!("x".repeat(TEXT_MAX + 1))] {
                let error = read(field, &wrong).unwrap_err();
                let told = error.contains(expected) && error.contains("or a table such as {");
                assert!(told && error.len() < 300, "{field}: {error}");
            }
        }
    }
}
