//! What a plan asks of a model, beyond what it says by itself; pure.

use bytes::Bytes;
use jobs::device::DatasetFacts;
use jobs::report::{Failure, FailureCode};
use jobs::spec::{LocalTraining, Loss, RoundOf, TrainSpec};
use models::params::{Layout, is_named};
use models::train::{Definition, TrainError};

use super::resume;
use crate::request::training::Unread;

/// A plan, and which of its fields are placeholders.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) spec: &'a TrainSpec,
    pub(super) unread: &'a Unread,
}

/// Everything in which a plan and a model do not fit, as far as the data set is known. `begin_from`
/// are the parameters (safetensors) to begin with.
pub(super) fn of_model(
    definition: &Definition,
    Asked { spec, unread }: Asked<'_>,
    facts: Option<&DatasetFacts>,
    begin_from: Option<&(RoundOf, Bytes)>,
) -> Vec<Failure> {
    // Any of these may be the one that was meant by a name that is not known.
    let is_whole = !unread.touches("spec.local");
    let mut found = Vec::new();
    let loss = is_whole.then_some(spec.local.loss);
    found.extend(facts.and_then(|facts| fit(definition, facts, loss).err()));
    found.extend(patterns(&spec.local, definition.layout()));
    if spec.privacy.is_some() && is_whole {
        found.extend(statistics(&spec.local, definition).err());
    }
    if let Some((from, parameters)) = begin_from
        && let Err(why) = resume::check_like(parameters, definition.layout())
    {
        let message = format!("spec.begin_from {from} has another model: {why}");
        found.push(Failure::new(FailureCode::InvalidSpec, message));
    }
    found
}

/// Several failures in one, with the code of the first.
pub(super) fn all(failures: Vec<Failure>) -> Result<(), Failure> {
    let messages: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
    let message = messages.join("; ");
    match failures.into_iter().next() {
        Some(first) => Err(Failure { message, ..first }),
        None => Ok(()),
    }
}

/// Why a graph is none that can be trained.
pub(super) fn untrainable(error: &TrainError) -> Failure {
    use models::graph::GraphError;
    let code = match error {
        TrainError::Graph(GraphError::Operator { .. }) => FailureCode::UnsupportedOperator,
        TrainError::Graph(GraphError::Shape { .. }) => FailureCode::ShapeMismatch,
        TrainError::Graph(_)
        | TrainError::Parameters(_)
        | TrainError::Label { .. }
        | TrainError::Batch { .. }
        | TrainError::State(_)
        | TrainError::Diverged { .. } => FailureCode::InvalidModel,
    };
    Failure::new(code, format!("the model cannot be trained: {error}"))
}

/// Examples and classes of a model and a data set; classes only if the loss is known.
fn fit(definition: &Definition, facts: &DatasetFacts, loss: Option<Loss>) -> Result<(), Failure> {
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let shape: Vec<usize> = facts.shape.iter().map(|extent| *extent as usize).collect();
    let expected = definition.example_shape();
    // Either side may be a plain vector.
    let flat = expected.len() == 1 || shape.len() == 1;
    if expected != shape && !(flat && values(expected) == values(&shape)) {
        return Err(Failure::new(
            FailureCode::ShapeMismatch,
            format!(
                "the model takes examples of shape {expected:?}, data set {} has {shape:?}",
                facts.name
            ),
        ));
    }
    // One output tells two classes apart when the loss is binary.
    let Some(loss) = loss else { return Ok(()) };
    let binary = loss == Loss::Bce && definition.classes() == 1;
    if !(binary && facts.classes == 2) && definition.classes() < facts.classes as usize {
        return Err(Failure::new(
            FailureCode::ShapeMismatch,
            format!(
                "the model has {} classes, data set {} has {}",
                definition.classes(),
                facts.name,
                facts.classes
            ),
        ));
    }
    Ok(())
}

/// Patterns name parameters, and some parameter is shared.
fn patterns(local: &LocalTraining, layout: &Layout) -> Vec<Failure> {
    let names = || layout.spans().iter().map(|span| span.name.as_str());
    let of_none = |pattern: &&String| {
        let pattern = std::slice::from_ref(*pattern);
        !names().any(|name| is_named(pattern, name))
    };
    let mut messages = Vec::new();
    for (what, patterns) in [("frozen", &local.frozen), ("kept_local", &local.kept_local)] {
        messages.extend(patterns.iter().filter(of_none).map(|pattern| {
            let some: Vec<&str> = names().take(3).collect();
            format!(
                "spec.local.{what}: no parameter has a name like {pattern:?}; the model's are {}, \
                 ...",
                some.join(", ")
            )
        }));
    }
    let nowhere = [&local.frozen[..], &local.kept_local].concat();
    if names().all(|name| is_named(&nowhere, name)) {
        let by: Vec<&str> = [("frozen", &local.frozen), ("kept_local", &local.kept_local)]
            .into_iter()
            .filter_map(|(what, patterns)| (!patterns.is_empty()).then_some(what))
            .collect();
        messages.push(format!(
            "spec.local.{} names every parameter: none would be learnt together",
            by.join(" or spec.local.")
        ));
    }
    let failure = |message| Failure::new(FailureCode::InvalidSpec, message);
    messages.into_iter().map(failure).collect()
}

/// Noise gets into no running statistic: a variance below 0 spoils a model.
fn statistics(local: &LocalTraining, definition: &Definition) -> Result<(), Failure> {
    let fixed = [&local.frozen[..], &local.kept_local].concat();
    let Some(name) = definition.statistics_names().find(|name| !is_named(&fixed, name)) else {
        return Ok(());
    };
    let message = format!(
        "spec.privacy: noise would spoil {name:?}, a running statistic of a batch normalisation: \
         take a model without, or name these in spec.local.kept_local or spec.local.frozen"
    );
    Err(Failure::new(FailureCode::InvalidSpec, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_statistics_get_no_noise() {
        let check = |family: &str, kept: &[&str]| {
            let onnx = models::zoo::build(family, [1, 8, 8], 3, 1).unwrap();
            let kept_local = kept.iter().map(|pattern| (*pattern).to_owned()).collect();
            let local = LocalTraining { kept_local, ..LocalTraining::default() };
            statistics(&local, &Definition::read(&onnx.into()).unwrap())
        };
        assert_eq!(check("lenet", &[]), Ok(()));
        let failure = check("resnet8", &[]).unwrap_err();
        assert!(failure.message.contains("running statistic"), "{failure:?}");
        assert_eq!(check("resnet8", &["*norm*"]), Ok(()));
    }

    #[test]
    fn something_is_learnt_together() {
        let onnx = models::zoo::build("mlp", [1, 2, 2], 2, 1).unwrap();
        let definition = Definition::read(&onnx.into()).unwrap();
        let check = |frozen: &[&str], kept_local: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let (frozen, kept_local) = (owned(frozen), owned(kept_local));
            let local = LocalTraining { frozen, kept_local, ..LocalTraining::default() };
            let found = patterns(&local, definition.layout());
            found.into_iter().map(|failure| failure.message).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(check(&[], &[]), "");
        assert_eq!(
            check(&["*weight"], &["*bias"]),
            "spec.local.frozen or spec.local.kept_local names every parameter: none would be learnt \
             together"
        );
        assert_eq!(check(&["*weight"], &[]), "");
        assert!(check(&["*"], &[]).starts_with("spec.local.frozen names every"));
        assert!(check(&[], &["*"]).starts_with("spec.local.kept_local names every"));
    }

    #[test]
    fn one_output_is_enough_for_two_classes_when_the_loss_is_binary() {
        let onnx = models::zoo::build("mlp", [1, 2, 2], 1, 1).unwrap();
        let definition = Definition::read(&onnx.into()).unwrap();
        let facts = |classes| {
            let facts = serde_json::json!({"name": "d", "format": "idx", "shape": [1, 2, 2],
                "classes": classes, "train_examples": 1, "test_examples": 1,
                "train_class_counts": [1], "labels": [], "mean": [0.5], "std": [0.5]});
            serde_json::from_value::<DatasetFacts>(facts).unwrap()
        };
        assert_eq!(fit(&definition, &facts(2), Some(Loss::Bce)), Ok(()));
        for (classes, loss) in [(3, Loss::Bce), (2, Loss::CrossEntropy), (2, Loss::Mse)] {
            let failure = fit(&definition, &facts(classes), Some(loss)).unwrap_err();
            assert_eq!(failure.code, FailureCode::ShapeMismatch);
            assert_eq!(fit(&definition, &facts(classes), None), Ok(()), "any loss may be meant");
        }
    }
}
