//! Tables of what an engine does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::collection::Test;
use super::outcome::Outcome;

/// Outcomes of some tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) tests: usize,
    pub(crate) passed: usize,
    pub(crate) refused: usize,
    pub(crate) wrong: usize,
    pub(crate) crashed: usize,
}

impl Counts {
    pub(crate) fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes {
            counts.tests += 1;
            match outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Refused(_) => counts.refused += 1,
                Outcome::Wrong(_) => counts.wrong += 1,
                Outcome::Crashed(_) => counts.crashed += 1,
            }
        }
        counts
    }

    /// One line of a table.
    pub(crate) fn line(&self, engine: &str, selection: &str) -> String {
        let Self { tests, passed, refused, wrong, crashed } = self;
        format!(
            "{engine:<8} {selection:<15} {tests:>6} {passed:>7} {refused:>8} {wrong:>6} {crashed:>8}"
        )
    }
}

/// The heading over [`Counts::line`].
pub(crate) fn heading() -> String {
    format!(
        "{:<8} {:<15} {:>6} {:>7} {:>8} {:>6} {:>8}",
        "engine", "tests", "all", "passed", "refused", "wrong", "crashed"
    )
}

/// Operators with the number of tests that were refused, the most first.
pub(crate) fn refused(results: &[(&Test, &Outcome)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (test, outcome) in results {
        if matches!(outcome, Outcome::Refused(_)) {
            *counts.entry(&test.operator).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let parts: Vec<String> =
        counts.iter().map(|(operator, count)| format!("{operator} {count}")).collect();
    parts.join(", ")
}

/// Writes a table of the operators, and every test that did not pass with what was said.
pub(crate) fn write(engine: &str, results: &[(&Test, &Outcome)]) -> PathBuf {
    let mut operators: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for (test, outcome) in results {
        operators.entry(&test.operator).or_default().push(outcome);
    }
    let mut text = format!("# {engine}\n\n");
    text +=
        "| operator | tests | passed | refused | wrong | crashed |\n|---|--:|--:|--:|--:|--:|\n";
    for (operator, outcomes) in operators {
        let Counts { tests, passed, refused, wrong, crashed } = Counts::of(outcomes.into_iter());
        let line = format!("{operator} | {tests} | {passed} | {refused} | {wrong} | {crashed}");
        writeln!(text, "| {line} |").unwrap();
    }
    text += "\n| test | operator | outcome |\n|---|---|---|\n";
    for (test, outcome) in results {
        if **outcome != Outcome::Passed {
            let outcome = format!("{outcome:?}").replace('|', "\\|");
            writeln!(text, "| {} | {} | {outcome} |", test.name, test.operator).unwrap();
        }
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("conformance-{engine}.md"));
    std::fs::write(&path, text).unwrap();
    path
}
