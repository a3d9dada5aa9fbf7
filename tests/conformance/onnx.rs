//! The ONNX project's own tests, through every engine.

use crate::engines::{self, Contender};

mod boundary;
mod classifier;
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
fn tract_answers_as_the_onnx_project_expects() {
    check(&engines::tract());
}

#[test]
fn native_answers_as_the_onnx_project_expects() {
    check(&engines::native());
}

#[test]
fn onnx_runtime_answers_as_the_onnx_project_expects() {
    check(&engines::onnx_runtime());
}

#[test]
fn cuda_answers_as_the_onnx_project_expects() {
    engines::cuda().iter().for_each(check);
}

#[test]
fn webgpu_answers_as_the_onnx_project_expects() {
    engines::webgpu().iter().for_each(check);
}

/// Asks an engine everything, in every form.
fn check(contender: &Contender) {
    let collection = collection::read();
    assert_eq!(collection.tests.len(), TESTS, "left out: {:?}", collection.left_out);
    println!("left out: {:?}", collection.left_out);
    println!("{}", report::heading());
    let tests = &collection.tests;
    let folded = outcome::ask_all(contender, tests, Form::Folded);
    let mut problems = check_form(contender, Form::Folded, &folded);
    let classifiers = outcome::ask_all(contender, tests, Form::Classifier);
    problems.extend(check_form(contender, Form::Classifier, &classifiers));
    let fed = outcome::ask_fed(contender, tests, &folded);
    problems.extend(check_form(contender, Form::Fed, &fed));
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Prints what an engine does with the tests; what is worse than it has to be.
fn check_form(contender: &Contender, form: Form, outcomes: &[(&Test, Outcome)]) -> Vec<String> {
    let name = contender.engine.name();
    let results: Vec<(&Test, &Outcome)> = outcomes.iter().map(|(test, it)| (*test, it)).collect();
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
        Form::Classifier => vec![("as classifiers", floors.classifiers, select(&|_| true))],
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
