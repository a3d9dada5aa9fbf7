//! Flags that cannot be read: each is set aside with what is wrong with it, so that all of them are told
//! at once, and with them what is wrong with the others.

use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args as _, Command, Error};

use super::TrainArgs;

/// Stands for a model or a data set that is missing, or that cannot be read. It is asked of nobody.
pub(super) const PLACEHOLDER: &str = "placeholder";
/// Flags that name where a model and a data set come from.
const INSTEAD: [&str; 2] = ["--plan", "--continue"];

/// What a number has to be, by its type.
const NUMBERS: [(TypeId, &str); 4] = [
    (TypeId::of::<u32>(), "a whole number, 0 to 4294967295"),
    (TypeId::of::<u64>(), "a whole number, 0 to 18446744073709551615"),
    (TypeId::of::<f32>(), "a finite number"),
    (TypeId::of::<f64>(), "a finite number"),
];

/// Errors of one flag or its value.
const OF_A_FLAG: [ErrorKind; 5] = [
    ErrorKind::ValueValidation,
    ErrorKind::InvalidValue,
    ErrorKind::UnknownArgument,
    ErrorKind::ArgumentConflict,
    ErrorKind::TooManyValues,
];

/// A flag that is missing or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Mistyped {
    /// The flag that was meant, such as `--rounds`.
    pub(super) flag: String,
    /// What was typed for it, if there is a text of it.
    pub(super) value: Option<String>,
    /// The mistake, which begins with the flag; none where another one says it.
    pub(super) told: Option<String>,
}

/// Takes the flag of an error off the words of a command line of `dunlin train`, and adds what is wrong
/// with it; whether that was possible. Flags that are missing get a placeholder.
pub(in crate::cli) fn set_aside(
    words: &mut Vec<OsString>,
    error: &Error,
    mistyped: &mut Vec<Mistyped>,
) -> bool {
    let Some(train) = words.iter().position(|word| word == "train") else { return false };
    let flag = error.get(ContextKind::InvalidArg);
    if error.kind() == ErrorKind::MissingRequiredArgument {
        let Some(ContextValue::Strings(missing)) = flag else { return false };
        for flag in missing.iter().map(|flag| name(flag)) {
            words.push(format!("{flag}={PLACEHOLDER}").into());
            // One that cannot be read is not missing, nor is what comes from elsewhere.
            let is_there = |flag: &str| mistyped.iter().any(|other| other.flag == flag);
            if is_there(flag) {
                continue;
            }
            let told = (!INSTEAD.iter().any(|instead| is_there(instead)))
                .then(|| format!("{flag}: missing, expected {}", of(flag)));
            mistyped.push(Mistyped { flag: flag.to_owned(), value: None, told });
        }
        return true;
    }
    let Some(ContextValue::String(flag)) = flag else { return false };
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value,
        _ => "",
    };
    let found = OF_A_FLAG.contains(&error.kind()) && remove(words, train + 1, name(flag), value);
    if found {
        let told = Some(told(error, name(flag), value));
        let (meant, value) = match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(similar)) => (similar.as_str(), None),
            _ => (flag.as_str(), Some(value.to_owned())),
        };
        mistyped.push(Mistyped { flag: name(meant).to_owned(), value, told });
    }
    found
}

/// What the flags are that a job needs.
fn of(flag: &str) -> &'static str {
    if flag == "--model" { "a registered model or a family" } else { "a name" }
}

/// `--rounds` of `--rounds <ROUNDS>`.
fn name(flag: &str) -> &str {
    flag.split([' ', '[', '=']).next().unwrap_or(flag)
}

/// Takes a flag and its value off; whether it was there.
fn remove(words: &mut Vec<OsString>, begin: usize, flag: &str, value: &str) -> bool {
    // Words that are no text are values, and not those of a flag that is looked for.
    let text = |at: usize| words.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let value_at = |at: usize| match text(at).split_once('=') {
        Some((name, value)) if name == flag => Some(value),
        None if text(at) == flag => Some(text(at + 1)),
        _ => None,
    };
    let found = (begin..words.len()).filter_map(|at| Some((at, value_at(at)?)));
    let found: Vec<(usize, &str)> = found.collect();
    let is_it =
        |found: &&(usize, &str)| found.1.split(',').any(|one| one == value) || found.1 == value;
    let Some((at, _)) = found.iter().find(is_it).or(found.last()) else { return false };
    let at = *at;
    let is_value = |word: &str| {
        let negative = word.strip_prefix('-').is_some_and(|rest| rest.parse::<f64>().is_ok());
        !word.is_empty() && (negative || !word.starts_with('-'))
    };
    let with_value = text(at) == flag && is_value(text(at + 1));
    words.drain(at..=at + usize::from(with_value));
    true
}

/// The mistake in words that begin with its flag.
fn told(error: &Error, flag: &str, value: &str) -> String {
    if error.kind() == ErrorKind::UnknownArgument {
        let similar = match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(similar)) => format!("; {} is similar", name(similar)),
            _ => String::new(),
        };
        return format!("{flag}: there is no such flag{similar}");
    }
    let command = TrainArgs::augment_args(Command::new("train"));
    let known = command.get_arguments().find(|known| known.get_long() == flag.strip_prefix("--"));
    let kind = known.map(|known| known.get_value_parser().type_id());
    let number = NUMBERS.iter().find(|(number, _)| kind.is_some_and(|kind| kind == *number));
    match (error.source().map(ToString::to_string), number) {
        (Some(_), Some((_, expected))) => format!("{flag} is {value}: expected {expected}"),
        (Some(why), None) if why.starts_with("expected") => format!("{flag} is {value}: {why}"),
        (Some(why), None) => format!("{flag}: {why}"),
        (None, _) => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("{flag}: {}", first.trim_start_matches("error: "))
        }
    }
}
