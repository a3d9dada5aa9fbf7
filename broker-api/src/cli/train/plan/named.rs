//! What is wrong with a field, by the name under which it was typed.

use super::FIELDS;
use crate::cli::failure::{self, CliError};
use crate::cli::train::Given;
use crate::request::training::in_body;

/// A problem by the flag of its field where that was typed, or where flags are all there is; else by the
/// field's name in a plan.
pub(super) fn named(problem: String, given: &Given) -> String {
    let problem = in_body(problem);
    let flags_alone = given.args.plan.is_none() && given.args.begin_from.is_none();
    let end = problem.find([':', ' ']).unwrap_or(problem.len());
    let (field, rest) = problem.split_at(end);
    let typed = FIELDS.iter().filter(|(flag, _)| flags_alone || given.typed.contains(*flag));
    let found = typed.filter_map(|(flag, known)| {
        let within = field.strip_prefix(known)?;
        (within.is_empty() || within.starts_with('.')).then_some((flag.replace('_', "-"), known))
    });
    let Some((flag, known)) = found.into_iter().next() else { return problem };
    // A flag has a unit of its own.
    let is_flag = *known == field && !known.ends_with("_ms");
    if is_flag {
        return format!("--{flag}{rest}");
    }
    let setting = field.rsplit('.').next().unwrap_or(field);
    format!("--{flag}: {setting}{rest}")
}

/// What the broker says of a job that it refuses, by the names of flags.
pub(in crate::cli::train) fn by_flags(error: CliError, given: &Given) -> CliError {
    if error.errors.is_empty() {
        return error;
    }
    let errors = error.errors.into_iter().map(|problem| named(problem, given));
    let errors: Vec<String> = errors.collect();
    CliError { code: failure::USAGE, detail: failure::listed(&errors), errors, ..error }
}

#[cfg(test)]
mod tests {
    use super::super::tests::given;
    use super::*;

    #[test]
    fn problems_are_told_by_what_was_typed() {
        let quorum = "work.participation.quorum is 1: expected at least 5, because krum";
        for (words, problem, expected) in [
            ("--model m --dataset d", quorum, "--quorum is 1: expected at least 5, because krum"),
            ("--plan x --quorum 1", quorum, "--quorum is 1: expected at least 5, because krum"),
            (
                "--plan x --rounds 1",
                quorum,
                "spec.participation.quorum is 1: expected at least 5, because krum",
            ),
            (
                "--continue j",
                quorum,
                "spec.participation.quorum is 1: expected at least 5, because krum",
            ),
            (
                "--model m --dataset d",
                "work.strategy.learning_rate is -1: expected above 0",
                "--strategy: learning_rate is -1: expected above 0",
            ),
            ("--model m --dataset d", "spec.local.augment: twice", "--augment: twice"),
            (
                "--model m --dataset d",
                "deadline_ms is 0: expected",
                "--deadline: deadline_ms is 0: expected",
            ),
            ("--model m --dataset d", "selector: no", "--selector: no"),
            ("--model m --dataset d", "no device has a data set d", "no device has a data set d"),
        ] {
            assert_eq!(named(problem.to_owned(), &given(words)), expected, "{words}");
        }
    }
}
