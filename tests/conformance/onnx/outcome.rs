//! Asks an engine, and judges what it says.

use std::panic::{AssertUnwindSafe, catch_unwind};

use models::tensor::Tensor;
use rayon::prelude::*;

use super::boundary::inside;
use super::collection::{Model, Test};
use crate::engines::Contender;

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
    /// Everything is fed.
    Fed,
}

/// The outcome of every test, in their order; a test that has not this form has the other.
pub(crate) fn ask_all(contender: &Contender, tests: &[Test], form: Form) -> Vec<Outcome> {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(THREAD) {
            print(panic);
        }
    }));
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|_| THREAD.to_owned()).build().unwrap();
    pool.install(|| tests.par_iter().map(|test| ask(contender, test, model(test, form))).collect())
}

fn model(test: &Test, form: Form) -> &Model {
    match (form, &test.fed) {
        (Form::Fed, Some(model)) => model,
        (Form::Fed, None) | (Form::Folded, _) => &test.folded,
    }
}

fn ask(contender: &Contender, test: &Test, model: &Model) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| answer(contender, model))) {
        Err(panic) => Outcome::Crashed(format!("{:?}", panic.downcast_ref::<String>())),
        Ok(Err(reason)) => Outcome::Refused(reason),
        Ok(Ok(outputs)) => judge(contender, test, &outputs),
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

fn judge(contender: &Contender, test: &Test, outputs: &[(String, Tensor)]) -> Outcome {
    if outputs.len() != test.outputs.len() {
        return Outcome::Wrong(format!("{} outputs, not {}", outputs.len(), test.outputs.len()));
    }
    let tolerance = contender.tolerance.of(&test.operator, test.half);
    let differences = outputs.iter().filter_map(|(name, found)| {
        let difference = tolerance.difference(found, &test.outputs[name])?;
        Some(format!("output {name:?}: {difference}"))
    });
    let differences: Vec<String> = differences.collect();
    if differences.is_empty() { Outcome::Passed } else { Outcome::Wrong(differences.join("; ")) }
}
