//! Which fields of a training cannot be read, and what is not said of the others for that.

/// What is wrong with the first may come from what stands for one of the others.
const RESTS_ON: [(&str, &[&str]); 4] = [
    ("spec.rule", &["spec.strategy"]),
    ("spec.participation.quarantine.left_out", &["spec.strategy", "spec.rule"]),
    ("spec.download", &["spec.update"]),
    (
        "spec.participation.over_selection",
        &["spec.participation.devices", "spec.participation.selection", "spec.privacy"],
    ),
];

/// Fields of a body that are missing or cannot be read: what stands for them is not what was meant, so
/// it is never judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unread(Vec<String>);

impl Unread {
    /// Adds a field, by its name in a body.
    pub(crate) fn add(&mut self, field: &str) {
        self.0.push(field.to_owned());
    }

    /// Adds others.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether a field is one of them, or within one.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.iter().any(|unread| is_within(field, unread))
    }

    /// Whether a field is one of them, within one, or has one within.
    pub(crate) fn touches(&self, field: &str) -> bool {
        self.has(field) || self.0.iter().any(|unread| is_within(unread, field))
    }

    /// Whether a problem that was found may be none when all fields can be read.
    pub(super) fn explains(&self, problem: &str) -> bool {
        let field = field_of(problem);
        let rests_on = RESTS_ON.iter().filter(|(resting, _)| *resting == field);
        self.touches(field)
            || rests_on.flat_map(|(_, others)| *others).any(|other| self.touches(other))
    }
}

/// The field with whose name a problem begins.
pub(crate) fn field_of(problem: &str) -> &str {
    problem.split([':', ' ']).next().unwrap_or(problem)
}

/// Whether a field is another one or within it.
fn is_within(field: &str, other: &str) -> bool {
    let rest = field.strip_prefix(other);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_unread_with_all_that_is_within() {
        let unread = Unread(vec!["spec.local.loss".to_owned(), "spec.model".to_owned()]);
        assert!(unread.has("spec.model") && unread.has("spec.model.name"));
        assert!(!unread.has("spec.models") && !unread.has("spec.local"));
        assert!(unread.touches("spec.local") && !unread.touches("spec.local.losses"));
        assert!(!Unread::default().touches("spec"));
    }

    #[test]
    fn what_comes_from_a_placeholder_is_explained_by_it() {
        let unread = Unread(vec!["spec.strategy".to_owned()]);
        for (problem, explained) in [
            ("spec.strategy is fedavg: expected another", true),
            ("spec.rule is krum: expected absent", true),
            ("spec.rule.byzantine is 0: expected 1", false),
            ("spec.participation.quarantine.left_out is true: expected false", true),
            ("spec.download is int8: expected plain", false),
            ("spec.rounds is 0: expected 1 to 10000", false),
        ] {
            assert_eq!(unread.explains(problem), explained, "{problem}");
        }
    }
}
