//! From a selector's text to its requirements.

use super::{Key, NumberKey, Requirement, TEXT_LENGTH_MAX};

const FORMS: &str = "expected 'key=value', 'key!=value', 'key in (a,b)', 'key notin (a,b)', \
                     'key', '!key', 'cpus>=4', 'cpus<4', 'memory>=1GiB' or 'memory<1GiB'";
const KEYS: &str = "device, arch, os, model, group, dataset, engine (or accelerator), cpus, \
                    memory, label.<key>";

/// Parses a whole selector; the error says which requirement is wrong and what is accepted.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    if text.len() > TEXT_LENGTH_MAX {
        return Err(format!("has {} bytes, at most {TEXT_LENGTH_MAX} are accepted", text.len()));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    split(text)?.into_iter().map(requirement).collect()
}

/// Splits at the commas outside of parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let mut begin = 0;
    let mut inside = false;
    for (index, character) in text.char_indices() {
        match character {
            '(' if inside => return Err("'(' inside of '(...)'".to_owned()),
            '(' => inside = true,
            ')' if !inside => return Err("')' without '(' before it".to_owned()),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[begin..index]);
                begin = index + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("'(' without ')' after it".to_owned());
    }
    parts.push(&text[begin..]);
    Ok(parts)
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let text = text.trim();
    let wrong = |problem: String| format!("requirement {text:?}: {problem}");
    let end = text.find(|c: char| matches!(c, '=' | '!' | '<' | '>' | '(') || c.is_whitespace());
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    let rest = rest.trim_start();
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Requirement::Exists { key: key(name.trim()).map_err(wrong)?, negated: true });
    }
    if let "cpus" | "memory" = name {
        return number(name, rest).map_err(wrong);
    }
    if name.is_empty() {
        return Err(wrong(FORMS.to_owned()));
    }
    let key = key(name).map_err(wrong)?;
    let (values, negated) = if rest.is_empty() {
        return Ok(Requirement::Exists { key, negated: false });
    } else if let Some(value) = rest.strip_prefix("!=") {
        (one(value), true)
    } else if let Some(value) = rest.strip_prefix('=') {
        (one(value.strip_prefix('=').unwrap_or(value)), false)
    } else if let Some(values) = word(rest, "in") {
        (many(values), false)
    } else if let Some(values) = word(rest, "notin") {
        (many(values), true)
    } else {
        return Err(wrong(FORMS.to_owned()));
    };
    let values = values.map_err(wrong)?.iter().map(|value| key.canonical(value)).collect();
    Ok(Requirement::Has { key, values, negated })
}

/// What follows a word, if the text begins with it and a parenthesis follows.
fn word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.strip_prefix(word).map(str::trim_start).filter(|rest| rest.starts_with('('))
}

fn key(name: &str) -> Result<Key, String> {
    Ok(match name {
        "device" => Key::Device,
        "arch" => Key::Arch,
        "os" => Key::Os,
        "model" => Key::Model,
        "group" => Key::Group,
        "dataset" => Key::Dataset,
        "engine" | "accelerator" => Key::Engine,
        "cpus" | "memory" => return Err(format!("'{name}' takes '>=' and '<' with a number")),
        _ => match name.strip_prefix("label.") {
            Some(label) if is_label(label) => Key::Label(label.to_owned()),
            Some(_) => return Err("a label's key has letters, digits, '.', '-', '_'".to_owned()),
            None => return Err(format!("no such key, expected one of {KEYS}")),
        },
    })
}

fn is_label(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.chars().all(valid)
}

fn one(text: &str) -> Result<Vec<&str>, String> {
    Ok(vec![value(text)?])
}

fn many(text: &str) -> Result<Vec<&str>, String> {
    let list = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    list.ok_or("expected '(a,b)'")?.split(',').map(value).collect()
}

fn value(text: &str) -> Result<&str, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("a value is missing".to_owned());
    }
    if text.contains(|c: char| matches!(c, '=' | '!' | '<' | '>' | '(' | ')') || c.is_control()) {
        return Err(format!("value {text:?} must not hold '=', '!', '<', '>', '(' or ')'"));
    }
    Ok(text)
}

fn number(name: &str, rest: &str) -> Result<Requirement, String> {
    let (below, text) = if let Some(text) = rest.strip_prefix(">=") {
        (false, text)
    } else if let Some(text) = rest.strip_prefix('<').filter(|text| !text.starts_with('=')) {
        (true, text)
    } else {
        return Err(format!("'{name}' takes '>=' and '<' with a number"));
    };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let (key, scale) = match (name, unit.trim().to_ascii_lowercase().as_str()) {
        ("cpus", "") => (NumberKey::Cpus, 1),
        ("memory", unit) => (NumberKey::Memory, bytes_per(unit)?),
        _ => return Err(format!("{text:?} is not a number")),
    };
    let limit = digits.parse().ok().and_then(|number: u64| number.checked_mul(scale));
    let limit = limit.ok_or_else(|| format!("{text:?} is not a number that fits 64 bits"))?;
    Ok(Requirement::Number { key, limit, below })
}

fn bytes_per(unit: &str) -> Result<u64, String> {
    Ok(match unit {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        _ => return Err(format!("no such unit {unit:?}, expected KiB, MiB, GiB, KB, MB, GB")),
    })
}
