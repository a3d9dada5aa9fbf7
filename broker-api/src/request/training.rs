//! A training as it is asked for, read field by field, so that everything that cannot be read is told
//! at once.

use std::sync::LazyLock;

use jobs::id::Millis;
use jobs::selector::Selector;
use jobs::spec::{JobSpec, TrainSpec, WorkSpec, validate};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use super::TRAIN_DEADLINE;

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
    pub(crate) fn problems(&self) -> Vec<String> {
        let deadline_ms = self.deadline.unwrap_or(TRAIN_DEADLINE);
        let work = WorkSpec::Train(Box::new(self.spec.clone()));
        let job = JobSpec { selector: Selector::default(), deadline_ms, work };
        validate(&job).iter().map(|problem| in_body(problem.to_string())).collect()
    }
}

/// Everything that is wrong with the body of a training job; nothing where it is no JSON, or so long
/// that it is none.
pub(crate) fn problems(body: &[u8]) -> Vec<String> {
    if body.len() > TOLD_BYTES_MAX {
        return Vec::new();
    }
    let Ok(asked) = serde_json::from_slice(body) else { return Vec::new() };
    let mut problems = Vec::new();
    let read = read(&asked, &PLACEHOLDERS, &NEEDED, &mut problems);
    problems.extend(read.iter().flat_map(Training::problems));
    problems
}

/// The same of the fields of a training alone, by their own names; `length` of the body that they
/// came in.
pub(crate) fn problems_of_fields(spec: &Value, length: usize) -> Vec<String> {
    if length > TOLD_BYTES_MAX {
        return Vec::new();
    }
    let (asked, mut problems) = (json!({ "spec": spec }), Vec::new());
    let read = read(&asked, &PLACEHOLDERS, &NEEDED, &mut problems);
    problems.extend(read.iter().flat_map(Training::problems));
    let own_name = |problem: String| problem.trim_start_matches("spec.").to_owned();
    problems.into_iter().map(own_name).collect()
}

/// What is wrong with a job, by the names that its body has for its fields.
pub(crate) fn in_body(problem: String) -> String {
    match problem.strip_prefix("work.") {
        Some(field) => format!("spec.{field}"),
        None => problem,
    }
}

/// Reads what can be read; what cannot is a problem, and left out, or as `defaults` says, which has
/// a value for each of the fields that are needed.
pub(crate) fn read(
    asked: &Value,
    defaults: &Value,
    needed: &[(&str, &str)],
    problems: &mut Vec<String>,
) -> Option<Training> {
    let mut wrong = |field: &str, text: String| problems.push(format!("{field}: {text}"));
    let mut asked = asked.as_object().cloned().unwrap_or_default();
    for name in asked.keys().filter(|name| !MEMBERS.contains(&name.as_str())) {
        wrong(name, format!("unknown field, expected one of {}", MEMBERS.join(", ")));
    }
    match asked.get("kind") {
        Some(kind) if kind != "train" => wrong("kind", format!("{kind}, expected \"train\"")),
        _ => {}
    }
    let selector = asked.remove("selector").unwrap_or_else(|| json!(""));
    match selector.as_str().map(Selector::parse) {
        Some(Ok(_)) => {}
        Some(Err(error)) => wrong("selector", error.to_string()),
        None => wrong("selector", format!("{selector}, expected text such as \"arch=aarch64\"")),
    }
    let selector = selector.as_str().unwrap_or_default().to_owned();
    let deadline = asked.remove("deadline_ms").filter(|value| !value.is_null());
    let deadline = deadline.and_then(|value| {
        let deadline = Millis::deserialize(&value);
        deadline.map_err(|error| wrong("deadline_ms", error.to_string())).ok()
    });
    let mut spec = asked.remove("spec").unwrap_or_default();
    for (name, expected) in needed {
        if spec.get(name).is_none() {
            wrong(&format!("spec.{name}"), format!("missing, expected {expected}"));
            put(&mut spec, name, at(defaults, &format!("spec.{name}")).cloned());
        }
    }
    let spec = read_spec(spec, defaults, &mut wrong)?;
    Some(Training { selector, deadline, spec })
}

fn read_spec(
    mut spec: Value,
    defaults: &Value,
    wrong: &mut impl FnMut(&str, String),
) -> Option<TrainSpec> {
    let mut taken = Vec::new();
    for _ in 0..UNREADABLE_MAX {
        let error = match serde_path_to_error::deserialize::<_, TrainSpec>(&spec) {
            Ok(spec) => return Some(spec),
            Err(error) => error,
        };
        let place: Vec<String> = error.path().iter().map_while(field).collect();
        let place = place.join(".");
        let field = format!("spec.{place}");
        let text = error.inner().to_string();
        // What was taken away before is not missing.
        let within = format!("{place}.");
        let known = taken.iter().any(|taken: &String| taken.starts_with(&within));
        if !(known && text.starts_with("missing field")) {
            wrong(field.trim_end_matches('.'), text);
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
        let problems = problems(body.to_string().as_bytes());
        let field = |problem: &String| problem.split([':', ' ']).next().unwrap().to_owned();
        let mut fields: Vec<String> = problems.iter().map(field).collect();
        fields.sort();
        fields
    }

    #[test]
    fn all_that_is_wrong_with_fields_alone_is_told_by_their_names() {
        let fields = json!({"model": "mlp", "rounds": "many", "local": {"epohcs": 3}});
        let problems = problems_of_fields(&fields, 70);
        let [dataset, epochs, rounds] = &problems[..] else { panic!("{problems:?}") };
        assert!(dataset.starts_with("dataset: missing"), "{dataset}");
        assert!(rounds.starts_with("rounds: ") && epochs.starts_with("local.epohcs: unknown"));
        assert!(problems_of_fields(&fields, TOLD_BYTES_MAX + 1).is_empty());
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
        for body in ["[]", "3", "{\"spec\": 7}"] {
            assert!(!problems(body.as_bytes()).is_empty(), "{body}");
        }
        assert!(problems(b"{").is_empty());
        assert!(problems(&vec![b' '; TOLD_BYTES_MAX + 1]).is_empty());
    }
}
