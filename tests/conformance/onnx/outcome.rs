//! Asks an engine, and judges what it says.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use models::tensor::Tensor;
use rayon::prelude::*;

use super::boundary::inside;
use super::collection::{Model, Test};
use crate::engines::Contender;

/// Expected outputs by their names.
type Outputs = BTreeMap<String, Tensor>;

/// Name of the threads on which an engine's panic is an outcome and no message.
const THREAD: &str = "asks an engine";

/// What became of a test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    /// The engine says that it cannot do it.
    Refused(String),
    /// The engine answers something else.
    Wrong(String),
    /// The engine ends with a panic that it does not hold itself.
    Crashed(String),
}

/// How the inputs of a test come to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// What a model would hold as constants is part of the model.
    Folded,
    /// Everything is fed, where something could be folded.
    Fed,
    /// One input, one output of two axes.
    Classifier,
}

/// The outcome of every test that has this form.
pub(crate) fn ask_all<'t>(
    contender: &Contender,
    tests: &'t [Test],
    form: Form,
) -> Vec<(&'t Test, Outcome)> {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(THREAD) {
            print(panic);
        }
    }));
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|_| THREAD.to_owned()).build().unwrap();
    let asked = |test: &'t Test| {
        let (model, expected) = question(test, form)?;
        Some((test, ask(contender, test, model, expected)))
    };
    pool.install(|| tests.par_iter().filter_map(asked).collect())
}

/// The outcome of every test with every input fed, after those with constants folded. One with
/// nothing to fold is the same in both forms, and is not asked again.
pub(crate) fn ask_fed<'t>(
    contender: &Contender,
    tests: &'t [Test],
    folded: &[(&'t Test, Outcome)],
) -> Vec<(&'t Test, Outcome)> {
    let fed = ask_all(contender, tests, Form::Fed);
    let fed: BTreeMap<&str, Outcome> =
        fed.into_iter().map(|(test, outcome)| (test.name.as_str(), outcome)).collect();
    let same = |(test, outcome): &(&'t Test, Outcome)| {
        (*test, fed.get(test.name.as_str()).unwrap_or(outcome).clone())
    };
    folded.iter().map(same).collect()
}

/// A test in a form, if it has it.
fn question(test: &Test, form: Form) -> Option<(&Model, &Outputs)> {
    match form {
        Form::Folded => Some((&test.folded, &test.outputs)),
        Form::Fed => test.fed.as_ref().map(|model| (model, &test.outputs)),
        Form::Classifier => test.classifier.as_ref().map(|(model, outputs)| (model, outputs)),
    }
}

fn ask(contender: &Contender, test: &Test, model: &Model, expected: &Outputs) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| answer(contender, model))) {
        Err(panic) => Outcome::Crashed(format!("{:?}", panic.downcast_ref::<String>())),
        Ok(Err(reason)) => Outcome::Refused(reason),
        Ok(Ok(outputs)) => judge(contender, test, &outputs, expected),
    }
}

/// The outputs with their names.
fn answer(contender: &Contender, model: &Model) -> Result<Vec<(String, Tensor)>, String> {
    let session = contender.engine.load(&model.onnx).map_err(|error| error.to_string())?;
    let names = session.inputs().iter().map(|info| inside(&info.name));
    let inputs: Vec<Tensor> = names.map(|name| model.inputs[name].clone()).collect();
    let outputs = session.run(&inputs).map_err(|error| error.to_string())?;
    let names = session.outputs().iter().map(|info| inside(&info.name).to_owned());
    Ok(names.zip(outputs).collect())
}

fn judge(
    contender: &Contender,
    test: &Test,
    outputs: &[(String, Tensor)],
    expected: &Outputs,
) -> Outcome {
    if outputs.len() != expected.len() {
        return Outcome::Wrong(format!("{} outputs, not {}", outputs.len(), expected.len()));
    }
    let tolerance = contender.tolerance.of(&test.operator, test.half);
    let differences = outputs.iter().filter_map(|(name, found)| {
        let difference = tolerance.difference(found, &expected[name])?;
        Some(format!("output {name:?}: {difference}"))
    });
    let differences: Vec<String> = differences.collect();
    if differences.is_empty() { Outcome::Passed } else { Outcome::Wrong(differences.join("; ")) }
}
