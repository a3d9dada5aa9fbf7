//! Numbers that are not finite: JSON has none, and null, which they become, says that a field is absent.

use serde_json::Value;

use super::FIELDS;
use crate::request::training::put;

/// Takes fields with such numbers off a job as TOML, flags, or a job before say it, which have no null
/// of their own; a problem for each.
pub(super) fn removed(plan: &mut Value) -> Vec<String> {
    let mut found = Vec::new();
    find(plan, "", &mut found);
    for place in &found {
        let within = |field: &str| place.starts_with(&format!("{field}."));
        let whole = FIELDS.iter().map(|(_, field)| *field).find(|field| within(field));
        put(plan, whole.unwrap_or(place), None);
    }
    found.into_iter().map(|place| format!("{place}: expected a finite number")).collect()
}

fn find(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::Null => found.push(place.to_owned()),
        Value::Array(values) if values.contains(&Value::Null) => found.push(place.to_owned()),
        Value::Object(table) => {
            for (name, value) in table {
                let dot = if place.is_empty() { "" } else { "." };
                find(value, &format!("{place}{dot}{name}"), found);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
}
