//! Text such as `name:first=1,second=0.5`.

use serde_json::{Map, Value};

/// The name, and the settings as JSON; or what is wrong.
pub(super) fn parse(text: &str) -> Result<(&str, Map<String, Value>), String> {
    let (name, settings) = text.split_once(':').unwrap_or((text, ""));
    let mut fields = Map::new();
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) =
            setting.split_once('=').ok_or_else(|| format!("{setting:?} has no value"))?;
        let value: Value = match (value.parse::<u32>(), value.parse::<f64>()) {
            (Ok(count), _) => count.into(),
            (_, Ok(number)) => number.into(),
            (Err(_), Err(_)) => return Err(format!("{name} is {value:?}, not a number")),
        };
        if fields.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok((name, fields))
}
