//! The ONNX project's own tests, through every engine.

use crate::engines::{self, Contender};

mod boundary;
mod collection;
mod constants;
mod outcome;
mod report;
mod selection;
mod tensors;

pub(crate) use collection::{Group, Test};
use outcome::{Form, Outcome};
use report::Counts;

/// Tests of the selection.
const TESTS: usize = 1406 + 132;

/// Names a variable that has a table of the operators written for each engine.
const TABLE: &str = "DUNLIN_CONFORMANCE_TABLE";

#[test]
fn engines_answer_as_the_onnx_project_expects() {
    let collection = collection::read();
    assert_eq!(collection.tests.len(), TESTS, "left out: {:?}", collection.left_out);
    println!("left out: {:?}", collection.left_out);
    println!("{}", report::heading());
    let problems: Vec<String> = engines::all()
        .iter()
        .flat_map(|contender| {
            let mut problems = check(contender, &collection.tests, Form::Folded);
            problems.extend(check(contender, &collection.tests, Form::Fed));
            problems
        })
        .collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Prints what an engine does with the tests; what is worse than it has to be.
fn check(contender: &Contender, tests: &[Test], form: Form) -> Vec<String> {
    let name = contender.engine.name();
    let outcomes = outcome::ask_all(contender, tests, form);
    let results: Vec<(&Test, &Outcome)> = tests.iter().zip(&outcomes).collect();
    let select = |selected: &dyn Fn(&Test) -> bool| {
        Counts::of(results.iter().filter(|(test, _)| selected(test)).map(|(_, it)| *it))
    };
    let floors = contender.floors;
    let selections = match form {
        Form::Folded => vec![
            ("node", floors.node, select(&|test| test.group == Group::Node)),
            ("exports", floors.exports, select(&|test| test.group == Group::Exports)),
            ("vision", floors.vision, select(&|test| test.vision)),
        ],
        Form::Fed => vec![("all, fed", floors.fed, select(&|_| true))],
    };
    let mut problems = Vec::new();
    for (selection, floor, counts) in selections {
        println!("{}", counts.line(name, selection));
        if counts.passed < floor {
            let Counts { passed, tests, .. } = counts;
            problems.push(format!("{name}: {selection}: {passed} of {tests} pass, {floor} did"));
        }
    }
    println!("{name} refused tests of: {}", report::refused(&results));
    for (test, outcome) in &results {
        if matches!(outcome, Outcome::Wrong(_) | Outcome::Crashed(_)) {
            problems
                .push(format!("{name}: {} {form:?} ({}): {outcome:?}", test.name, test.operator));
        }
    }
    if std::env::var_os(TABLE).is_some() {
        println!("{}", report::write(&format!("{name}-{form:?}"), &results).display());
    }
    problems
}
