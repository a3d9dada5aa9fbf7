//! A training as it is asked for, read field by field, so that everything that cannot be read is told
//! at once.

use std::fmt::Display;
use std::sync::LazyLock;

use jobs::id::Millis;
use jobs::selector::Selector;
use jobs::spec::{JobSpec, TrainSpec, WorkSpec, validate};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use super::TRAIN_DEADLINE;
use crate::error::ApiError;

mod unread;

pub(crate) use unread::{Unread, field_of};

/// Members of a job.
const MEMBERS: [&str; 4] = ["kind", "selector", "deadline_ms", "spec"];
/// Values that cannot be read and are told at once, at most.
const UNREADABLE_MAX: usize = 100;
/// Bytes of a body that is read again for everything that is wrong with it, at most.
const TOLD_BYTES_MAX: usize = 1024 * 1024;
/// Fields that a training cannot be without, and what they are.
const NEEDED: [(&str, &str); 3] =
    [("model", "a registered model or a family"), ("dataset", "a name"), ("rounds", "a number")];
/// What stands for them while the others are read.
static PLACEHOLDERS: LazyLock<Value> = LazyLock::new(
    || json!({"spec": {"model": "placeholder", "dataset": "placeholder", "rounds": 1}}),
);

/// A training job that can be read.
#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) selector: String,
    pub(crate) deadline: Option<Millis>,
    pub(crate) spec: TrainSpec,
}

impl Training {
    /// What is wrong with it beyond its types, by the names of the body's fields.
    fn problems(&self) -> impl Iterator<Item = String> {
        let deadline_ms = self.deadline.unwrap_or(TRAIN_DEADLINE);
        let work = WorkSpec::Train(Box::new(self.spec.clone()));
        let job = JobSpec { selector: Selector::default(), deadline_ms, work };
        validate(&job).into_iter().map(|problem| in_body(problem.to_string()))
    }
}

/// A training as far as it can be read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Everything that is wrong with its fields, by their names in the body.
    pub(crate) problems: Vec<String>,
    /// What can be read, with placeholders for the rest; none where nothing can.
    pub(crate) training: Option<Training>,
    /// Which fields are placeholders.
    pub(crate) unread: Unread,
}

impl Reading {
    fn wrong(&mut self, field: &str, text: impl Display) {
        self.problems.push(format!("{field}: {text}"));
        self.unread.add(field);
    }
}

/// Reads the body of a training job; nothing where it is none, or so long that it is none.
pub(crate) fn of_body(body: &[u8]) -> Reading {
    match parsed(body) {
        Some(asked) if asked.get("kind").is_some_and(|kind| kind == "train") => {
            read(&asked, &PLACEHOLDERS, &NEEDED)
        }
        _ => Reading::default(),
    }
}

/// Reads a training job whose fields are side by side with those of its work; nothing where it is
/// none, or so long that it is none.
pub(crate) fn of_members(body: &[u8]) -> Reading {
    let Some(Value::Object(mut spec)) = parsed(body) else { return Reading::default() };
    spec.remove("kind");
    let mut asked = Map::new();
    for name in ["selector", "deadline_ms"] {
        let given = spec.remove(name).filter(|value| !value.is_null());
        asked.extend(given.map(|value| (name.to_owned(), value)));
    }
    asked.insert("spec".to_owned(), Value::Object(spec));
    read(&Value::Object(asked), &PLACEHOLDERS, &NEEDED)
}

fn parsed(body: &[u8]) -> Option<Value> {
    let is_short = body.len() <= TOLD_BYTES_MAX;
    is_short.then(|| serde_json::from_slice(body).ok()).flatten()
}

/// What is wrong with a job, by the names that its body has for its fields.
pub(crate) fn in_body(problem: String) -> String {
    match problem.strip_prefix("work.") {
        Some(field) => format!("spec.{field}"),
        None => problem,
    }
}

/// What is wrong with a training, by the names of fields that are side by side.
pub(crate) fn by_members(error: ApiError) -> ApiError {
    let own_name = |problem: &String| problem.trim_start_matches("spec.").to_owned();
    let errors: Vec<String> = error.errors.iter().map(own_name).collect();
    let detail = if errors.is_empty() { error.detail } else { errors.join("; ") };
    ApiError { detail, errors, hint: error.hint.replace("spec.", ""), ..error }
}

/// Reads what can be read; what cannot is a problem, and left out, or as `defaults` says, which has
/// a value for each of the fields that are needed.
pub(crate) fn read(asked: &Value, defaults: &Value, needed: &[(&str, &str)]) -> Reading {
    let mut reading = Reading::default();
    let mut asked = asked.as_object().cloned().unwrap_or_default();
    for name in asked.keys().filter(|name| !MEMBERS.contains(&name.as_str())) {
        reading.wrong(name, format_args!("unknown field, expected one of {}", MEMBERS.join(", ")));
    }
    match asked.get("kind") {
        Some(kind) if kind != "train" => {
            reading.wrong("kind", format_args!("{kind}, expected \"train\""));
        }
        _ => {}
    }
    let selector = asked.remove("selector").unwrap_or_else(|| json!(""));
    match selector.as_str().map(Selector::parse) {
        Some(Ok(_)) => {}
        Some(Err(error)) => reading.wrong("selector", error),
        None => {
            let expected = "expected text such as \"arch=aarch64\"";
            reading.wrong("selector", format_args!("{selector}, {expected}"));
        }
    }
    let selector = selector.as_str().unwrap_or_default().to_owned();
    let deadline = asked.remove("deadline_ms").filter(|value| !value.is_null());
    let deadline = deadline.and_then(|value| {
        let deadline = Millis::deserialize(&value);
        deadline.map_err(|error| reading.wrong("deadline_ms", error)).ok()
    });
    let mut spec = asked.remove("spec").unwrap_or_default();
    for (name, expected) in needed {
        if spec.get(name).is_none() {
            let field = format!("spec.{name}");
            reading.wrong(&field, format_args!("missing, expected {expected}"));
            put(&mut spec, name, at(defaults, &field).cloned());
        }
    }
    if let Some(spec) = read_spec(spec, defaults, &mut reading) {
        let training = Training { selector, deadline, spec };
        let found = training.problems().filter(|problem| !reading.unread.explains(problem));
        reading.problems.extend(found.collect::<Vec<_>>());
        reading.training = Some(training);
    }
    reading
}

fn read_spec(mut spec: Value, defaults: &Value, reading: &mut Reading) -> Option<TrainSpec> {
    let mut taken = Vec::new();
    for _ in 0..UNREADABLE_MAX {
        let error = match serde_path_to_error::deserialize::<_, TrainSpec>(&spec) {
            Ok(spec) => return Some(spec),
            Err(error) => error,
        };
        let place: Vec<String> = error.path().iter().map_while(field).collect();
        let place = place.join(".");
        // What stands for it cannot be read either.
        if taken.contains(&place) {
            return None;
        }
        let field = format!("spec.{place}");
        let text = error.inner().to_string();
        // What was taken away before is not missing.
        let within = format!("{place}.");
        let known = taken.iter().any(|taken: &String| taken.starts_with(&within));
        if known && text.starts_with("missing field") {
            reading.unread.add(&field);
        } else {
            reading.wrong(field.trim_end_matches('.'), text);
        }
        let default = at(defaults, &field).cloned();
        if place.is_empty() || (at(&spec, &place).is_none() && default.is_none()) {
            return None;
        }
        put(&mut spec, &place, default);
        taken.push(place);
    }
    None
}

/// The name of a field on the way to a value; none where the way goes through a list.
fn field(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Map { key } => Some(key.clone()),
        serde_path_to_error::Segment::Seq { .. }
        | serde_path_to_error::Segment::Enum { .. }
        | serde_path_to_error::Segment::Unknown => None,
    }
}

/// The value of a field, by names with dots between them.
pub(crate) fn at<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(value, |value, name| value.get(name))
}

/// Sets a field, or takes it away; tables that are missing on the way are made. Nothing is done
/// where the way goes through what is no table.
pub(crate) fn put(value: &mut Value, field: &str, new: Option<Value>) {
    let mut place = value;
    let (parents, name) = field.rsplit_once('.').unwrap_or(("", field));
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        let Some(table) = table(place) else { return };
        place = table.entry(parent).or_insert(Value::Null);
    }
    let Some(table) = table(place) else { return };
    match new {
        Some(new) => drop(table.insert(name.to_owned(), new)),
        None => drop(table.remove(name)),
    }
}

fn table(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &Value) -> Vec<String> {
        let problems = of_body(body.to_string().as_bytes()).problems;
        let mut fields: Vec<String> =
            problems.iter().map(|problem| field_of(problem).to_owned()).collect();
        fields.sort();
        fields
    }

    #[test]
    fn all_that_is_wrong_with_members_is_told_by_their_names() {
        let body = json!({"model": "mlp", "rounds": "many", "local": {"epohcs": 3},
            "selector": null, "deadline_ms": 0});
        let reading = of_members(body.to_string().as_bytes());
        let error = ApiError::new(crate::error::ApiCode::InvalidBody, "", "");
        let problems = by_members(ApiError { errors: reading.problems, ..error }).errors;
        let [dataset, epochs, rounds, deadline] = &problems[..] else { panic!("{problems:?}") };
        assert!(dataset.starts_with("dataset: missing"), "{dataset}");
        assert!(rounds.starts_with("rounds: ") && epochs.starts_with("local.epohcs: unknown"));
        assert!(deadline.starts_with("deadline_ms is 0"), "{deadline}");
        assert!(of_members(&vec![b' '; TOLD_BYTES_MAX + 1]).problems.is_empty());
        assert!(of_members(b"[]").problems.is_empty());
    }

    #[test]
    fn all_that_is_wrong_with_a_body_is_told_at_once() {
        let body = json!({"kind": "train", "colour": "red", "selector": 3, "deadline_ms": null,
        "spec": {
            "model": "MLP", "rounds": "many", "evaluate": false, "keep": "best",
            "local": {"epohcs": 3, "learning_rate": -0.5},
            "participation": {"quorum": "two"},
            "strategy": {"name": "fedadam", "tau": "small"},
        }});
        let expected = "colour selector spec.dataset spec.evaluate spec.local.epohcs \
            spec.local.learning_rate spec.model spec.participation.quorum spec.rounds \
            spec.strategy";
        assert_eq!(fields(&body).join(" "), expected);
        let text = json!({"kind": "train", "spec": {"model": "mlp", "dataset": "digits", "rounds": 3,
            "strategy": "fedadam:learning_rate=0.1", "participation": {"selection": "by_loss:0"},
            "privacy": 3}});
        assert_eq!(
            fields(&text),
            [
                "spec.participation.devices",
                "spec.participation.selection.candidates",
                "spec.privacy"
            ]
        );
        let right = json!({"kind": "train",
            "spec": {"model": "mlp", "dataset": "digits", "rounds": 3}});
        assert!(fields(&right).is_empty());
        assert_eq!(
            fields(&json!({"kind": "train"})),
            ["spec.dataset", "spec.model", "spec.rounds"]
        );
        assert!(fields(&json!({"kind": "train", "spec": 7})).contains(&"spec".to_owned()));
        for body in ["{", "[]", "3", "{\"kind\": \"infer\", \"colour\": 3}"] {
            assert!(of_body(body.as_bytes()).problems.is_empty(), "{body}");
        }
        assert!(of_body(&vec![b' '; TOLD_BYTES_MAX + 1]).problems.is_empty());
    }

    #[test]
    fn what_stands_for_a_field_that_cannot_be_read_is_not_judged() {
        let body = json!({"kind": "train", "spec": {"dataset": "digits", "rounds": 0,
            "strategy": "fedsum", "rule": {"name": "krum", "byzantine": 1}, "update": "int9",
            "download": "int8", "participation": {"quorum": 0, "devices": "all",
                "over_selection": 0.5}}});
        let reading = of_body(body.to_string().as_bytes());
        let expected = [
            "spec.model",
            "spec.participation.devices",
            "spec.participation.quorum",
            "spec.rounds",
            "spec.strategy",
            "spec.update",
        ];
        assert_eq!(fields(&body), expected, "{:#?}", reading.problems);
        for unread in ["spec.model", "spec.strategy", "spec.participation"] {
            assert!(reading.unread.touches(unread), "{unread}");
        }
        assert!(!reading.unread.touches("spec.dataset") && !reading.unread.touches("spec.rounds"));
        assert_eq!(reading.training.unwrap().spec.dataset.as_str(), "digits");
    }
}
