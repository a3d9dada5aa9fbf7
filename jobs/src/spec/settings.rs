//! Text such as `name:first=1,second=0.5`.

use serde_json::{Map, Value};

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
            (_, Ok(number), _) => number.into(),
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
