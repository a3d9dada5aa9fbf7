//! Before the first round: the graph is found, checked, and laid out for devices.

use bytes::Bytes;
use jobs::device::DatasetFacts;
use jobs::id::{BlobRef, JobId, ModelName};
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;
use jobs::spec::{LocalTraining, Loss, TrainSpec};
use models::federated::statistics::Statistics;
use models::params::{Layout, is_named};
use models::train::{Definition, TrainError};

use super::state::{Prepared, parameters_name};
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};
use crate::store::StoreError;

mod facts;
mod resume;

pub(super) use facts::{eligible, fits};

/// Values of an example, at most, and classes: devices declare them, and sizes follow from them.
const VALUES_MAX: usize = 1 << 26;
const CLASSES_MAX: u32 = 1 << 20;

/// What is trained, as far as updates of it are combined.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) layout: Layout,
    pub(super) statistics: Statistics,
}

impl Model {
    fn of(definition: &Definition) -> Self {
        Self { layout: definition.layout().clone(), statistics: definition.statistics() }
    }
}

/// Why a training does not begin.
#[derive(Debug)]
pub(super) enum Unprepared {
    /// It never will.
    Failed(Failure),
    /// No device with the data set is online.
    Nobody,
    /// The store does not answer.
    Store(StoreError),
}

impl From<StoreError> for Unprepared {
    fn from(error: StoreError) -> Self {
        Unprepared::Store(error)
    }
}

fn failed(code: FailureCode, message: impl Into<String>) -> Unprepared {
    Unprepared::Failed(Failure::new(code, message))
}

impl Core {
    /// Whether a model can be trained as far as its name tells.
    pub(crate) async fn check_trainable(&self, spec: &TrainSpec) -> Result<(), ApiError> {
        if is_family(spec) {
            return Ok(());
        }
        match self.registry.find(&spec.model).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == ApiCode::UnknownModel => {
                let families = models::zoo::FAMILIES.join(", ");
                let hint = format!("{}; built-in families are: {families}", error.hint);
                Err(ApiError { hint, ..error })
            }
            Err(error) => Err(error),
        }
    }

    /// Finds the graph, checks it, and stores it with its first parameters.
    pub(super) async fn prepare(
        &self,
        job: &JobId,
        spec: &TrainSpec,
        selector: &Selector,
        term: u64,
    ) -> Result<(Prepared, BlobRef, Model), Unprepared> {
        let devices = self.fleet.matching(selector, Some(&spec.dataset));
        let facts = facts::agreed(&devices, &spec.dataset)?.ok_or(Unprepared::Nobody)?;
        facts::check_augment(&spec.local.augment, &facts)?;
        let normalization = facts::normalization(&spec.local.normalization, &devices, &facts)?;
        let onnx = self.graph(spec, &facts).await?;
        let begin_from = match &spec.begin_from {
            Some(from) => Some((from.clone(), self.parameters_of(from).await?)),
            None => None,
        };
        let (facts_of, local) = (facts.clone(), spec.local.clone());
        let is_private = spec.privacy.is_some();
        let checked = tokio::task::spawn_blocking(move || {
            let read = Definition::read_with_parameters(&onnx);
            let (definition, parameters) = read.map_err(|error| untrainable(&error))?;
            check_fits(&definition, &facts_of, local.loss)?;
            check_patterns(&local, definition.layout())?;
            if is_private {
                check_statistics(&local, &definition)?;
            }
            let parameters = match begin_from {
                None => parameters.into(),
                Some((from, parameters)) => {
                    resume::check_like(&parameters, definition.layout()).map_err(|why| {
                        let message = format!("begin_from {from} has another model: {why}");
                        Failure::new(FailureCode::InvalidSpec, message)
                    })?;
                    parameters
                }
            };
            Ok((parameters, Model::of(&definition), definition.to_bare_onnx()))
        });
        let checked = checked.await.map_err(|_| {
            failed(FailureCode::Internal, "checking the graph met a fault of the program")
        })?;
        let (parameters, model, bare) = checked.map_err(Unprepared::Failed)?;
        let blobs = &self.store.blobs;
        let name = parameters_name(job, 0, term);
        let parameters = blobs.put_named(name, parameters).await;
        let parameters = parameters.map_err(StoreError::from)?;
        // Last, since it stays only if it is referred to soon.
        let graph = blobs.put(bare.into()).await.map_err(StoreError::from)?;
        let prepared = Prepared {
            graph,
            shape: facts.shape.clone(),
            classes: facts.classes,
            labels: facts.labels.clone(),
            columns: facts.columns.clone(),
            preprocessing: facts::preprocessing(&facts, &normalization),
            normalization,
        };
        Ok((prepared, parameters, model))
    }

    /// The graph in training form: a registered model's, or a built-in family's.
    async fn graph(&self, spec: &TrainSpec, facts: &DatasetFacts) -> Result<Bytes, Unprepared> {
        if let Some(record) = self.registry.look_up(&spec.model).await? {
            let blob = record.training.as_ref().unwrap_or(&record.onnx);
            let bytes = self.store.blobs.get(blob).await;
            return Ok(bytes.map_err(StoreError::from)?);
        }
        let unknown = || {
            let families = models::zoo::FAMILIES.join(", ");
            let text = format!(
                "no model {} is registered, and the built-in families are: {families}",
                spec.model.name
            );
            failed(FailureCode::UnknownModel, text)
        };
        if !is_family(spec) {
            return Err(unknown());
        }
        let shape = family_shape(&spec.model.name, facts, self.config.body_bytes_max)?;
        let (family, classes, seed) =
            (spec.model.name.to_string(), facts.classes as usize, spec.seed);
        let built =
            tokio::task::spawn_blocking(move || models::zoo::build(&family, shape, classes, seed));
        let built = built.await.map_err(|_| {
            failed(FailureCode::Internal, "building the graph met a fault of the program")
        })?;
        built.map(Bytes::from).ok_or_else(unknown)
    }
}

/// The shape `[c, h, w]` that a built-in family is built for, as devices declare it. Its weights
/// have `most` bytes at most.
fn family_shape(
    family: &ModelName,
    facts: &DatasetFacts,
    most: usize,
) -> Result<[usize; 3], Unprepared> {
    let unfit = |problem: String| {
        let text = format!(
            "data set {} has examples of shape {:?} and {} classes{problem}",
            facts.name, facts.shape, facts.classes
        );
        failed(FailureCode::ShapeMismatch, text)
    };
    let extents: Vec<usize> = facts.shape.iter().map(|extent| *extent as usize).collect();
    let shape = match extents[..] {
        // A row of a table, or a text's characters.
        [values] => [1, 1, values],
        [c, h, w] => [c, h, w],
        _ => return Err(unfit(", expected [c, h, w] or [d]".to_owned())),
    };
    let values = shape.iter().try_fold(1_usize, |values, extent| values.checked_mul(*extent));
    if values.is_none_or(|values| values > VALUES_MAX) || facts.classes > CLASSES_MAX {
        let most = format!(": at most {VALUES_MAX} values and {CLASSES_MAX} classes can be learnt");
        return Err(unfit(most));
    }
    match models::zoo::cost(family.as_str(), shape, facts.classes as usize) {
        Some(cost) if cost.bytes > most as u64 => Err(unfit(format!(
            ", for which {family} has {} bytes of parameters, more than the {most} that a model may \
             have: take a smaller family, smaller examples, or a broker with a larger \
             --body-bytes-max",
            cost.bytes
        ))),
        _ => Ok(shape),
    }
}

fn is_family(spec: &TrainSpec) -> bool {
    spec.model.version.is_none() && models::zoo::FAMILIES.contains(&spec.model.name.as_str())
}

fn untrainable(error: &TrainError) -> Failure {
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

fn check_fits(definition: &Definition, facts: &DatasetFacts, loss: Loss) -> Result<(), Failure> {
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
fn check_patterns(local: &LocalTraining, layout: &Layout) -> Result<(), Failure> {
    let names = || layout.spans().iter().map(|span| span.name.as_str());
    let of_none = |pattern: &&String| {
        let pattern = std::slice::from_ref(*pattern);
        !names().any(|name| is_named(pattern, name))
    };
    for (what, patterns) in [("frozen", &local.frozen), ("kept_local", &local.kept_local)] {
        if let Some(pattern) = patterns.iter().find(of_none) {
            let some: Vec<&str> = names().take(3).collect();
            let message = format!(
                "local.{what}: no parameter has a name like {pattern:?}; the model's are {}, ...",
                some.join(", ")
            );
            return Err(Failure::new(FailureCode::InvalidSpec, message));
        }
    }
    if !local.kept_local.is_empty() && names().all(|name| is_named(&local.kept_local, name)) {
        let message = "local.kept_local names every parameter: none would be learnt together";
        return Err(Failure::new(FailureCode::InvalidSpec, message));
    }
    Ok(())
}

/// Noise gets into no running statistic: a variance below 0 spoils a model.
fn check_statistics(local: &LocalTraining, definition: &Definition) -> Result<(), Failure> {
    let fixed = [&local.frozen[..], &local.kept_local].concat();
    let Some(name) = definition.statistics_names().find(|name| !is_named(&fixed, name)) else {
        return Ok(());
    };
    let message = format!(
        "privacy: noise would spoil {name:?}, a running statistic of a batch normalisation: take a \
         model without, or name these in local.kept_local or local.frozen"
    );
    Err(Failure::new(FailureCode::InvalidSpec, message))
}

/// The model of a training that is taken over, from its graph.
pub(super) async fn model_of(core: &Core, prepared: &Prepared) -> Result<Model, Unprepared> {
    let onnx = core.store.blobs.get(&prepared.graph).await.map_err(StoreError::from)?;
    let model = tokio::task::spawn_blocking(move || {
        Definition::read(&onnx).map(|definition| Model::of(&definition))
    });
    match model.await {
        Ok(Ok(model)) => Ok(model),
        Ok(Err(error)) => Err(Unprepared::Failed(untrainable(&error))),
        Err(_) => {
            Err(failed(FailureCode::Internal, "reading the graph met a fault of the program"))
        }
    }
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
            check_statistics(&local, &Definition::read(&onnx.into()).unwrap())
        };
        assert_eq!(check("lenet", &[]), Ok(()));
        let failure = check("resnet8", &[]).unwrap_err();
        assert!(failure.message.contains("running statistic"), "{failure:?}");
        assert_eq!(check("resnet8", &["*norm*"]), Ok(()));
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
        assert_eq!(check_fits(&definition, &facts(2), Loss::Bce), Ok(()));
        for (classes, loss) in [(3, Loss::Bce), (2, Loss::CrossEntropy), (2, Loss::Mse)] {
            let failure = check_fits(&definition, &facts(classes), loss).unwrap_err();
            assert_eq!(failure.code, FailureCode::ShapeMismatch);
        }
    }

    #[test]
    fn what_devices_declare_makes_no_model_that_is_too_large() {
        let family = |name| ModelName::parse(name).unwrap();
        let shape_of = |shape: &[u32], classes: u32| {
            let facts = serde_json::json!({"name": "d", "format": "idx", "shape": shape,
                "classes": classes, "train_examples": 1, "test_examples": 1});
            let facts = serde_json::from_value::<DatasetFacts>(facts).unwrap();
            match family_shape(&family("mlp"), &facts, 1 << 20) {
                Err(Unprepared::Failed(failure)) => Err(failure.message),
                other => Ok(other.unwrap()),
            }
        };
        assert_eq!(shape_of(&[3, 32, 32], 10), Ok([3, 32, 32]));
        assert_eq!(shape_of(&[7], 10), Ok([1, 1, 7]));
        for (shape, classes, problem) in [
            (&[3, 3000, 4000][..], 10, "bytes of parameters, more than the 1048576 that a model"),
            (&[u32::MAX; 3], 10, "at most 67108864 values and 1048576 classes"),
            (&[4_000_000_000], 10, "at most 67108864 values"),
            (&[3, 32, 32], u32::MAX, "at most 67108864 values and 1048576 classes"),
            (&[32, 32], 10, "expected [c, h, w] or [d]"),
        ] {
            let error = shape_of(shape, classes).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
