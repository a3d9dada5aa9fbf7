//! Before the first round: the graph is found, checked, and laid out for devices.

use bytes::Bytes;
use jobs::device::DatasetFacts;
use jobs::id::{BlobRef, JobId, ModelName, ModelRef};
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;
use jobs::spec::{RoundOf, TrainSpec};
use link::blobs::BlobError;
use models::federated::statistics::Statistics;
use models::params::Layout;
use models::train::Definition;

use super::state::{Prepared, parameters_name};
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};
use crate::request::training::Unread;
use crate::store::StoreError;

mod beforehand;
mod carried;
mod checks;
mod facts;
mod resume;

pub(super) use carried::Carried;
pub(super) use facts::{eligible, fits, unfit, unjudged};

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

/// A training that can begin.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) prepared: Prepared,
    pub(super) parameters: BlobRef,
    pub(super) carried: Carried,
    pub(super) model: Model,
}

/// Why a training does not begin.
#[derive(Debug)]
pub(super) enum Unprepared {
    /// It never will.
    Failed(Failure),
    /// No device with the data set is online, or none is known.
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
    ) -> Result<Ready, Unprepared> {
        let devices = self.fleet.matching(selector, Some(&spec.dataset));
        let facts = facts::agreed(&devices, &spec.dataset)?.ok_or(Unprepared::Nobody)?;
        facts::check_augment(&spec.local.augment, &facts)?;
        let normalization = facts::normalization(&spec.local.normalization, &devices, &facts)?;
        let (onnx, registered) = self.graph(spec, Some(&facts)).await?;
        let begin_from = match &spec.begin_from {
            Some(from) => Some(self.parameters_of(from).await?),
            None => None,
        };
        let from = begin_from.as_ref().map(|(from, _)| from.clone());
        let (facts_of, asked) = (facts.clone(), spec.clone());
        let checked = read_blocking(move || {
            let read = Definition::read_with_parameters(&onnx);
            let (definition, parameters) = read.map_err(|error| checks::untrainable(&error))?;
            let begin_from = begin_from.as_ref();
            let asked = checks::Asked { spec: &asked, unread: &Unread::default() };
            checks::all(checks::of_model(&definition, asked, Some(&facts_of), begin_from))?;
            let parameters = match begin_from {
                None => parameters.into(),
                Some((_, parameters)) => parameters.clone(),
            };
            let layout = Layout::of_whole(&parameters);
            let is_same = layout.is_ok_and(|it| it.spans() == definition.layout().spans());
            Ok((parameters, is_same, Model::of(&definition), definition.to_bare_onnx()))
        });
        let (parameters, is_same, model, bare) = checked.await?;
        let blobs = &self.store.blobs;
        let name = parameters_name(job, 0, term);
        let parameters = blobs.put_named(name, parameters).await;
        let parameters = parameters.map_err(StoreError::from)?;
        let began_with = began_with(spec, from.as_ref(), registered.as_ref());
        let carried = match &from {
            None => {
                Carried::noting(registered.as_ref().map(|_| format!("begins with {began_with}")))
            }
            Some(from) => self.carried(spec, from, (&model.layout, is_same), (job, term)).await?,
        };
        // Last, since it stays only if it is referred to soon.
        let graph = blobs.put(bare.into()).await.map_err(StoreError::from)?;
        let prepared = Prepared {
            graph,
            began_with: Some(began_with),
            shape: facts.shape.clone(),
            classes: facts.classes,
            labels: facts.labels.clone(),
            columns: facts.columns.clone(),
            preprocessing: facts::preprocessing(&facts, &normalization),
            normalization,
        };
        Ok(Ready { prepared, parameters, carried, model })
    }

    /// A blob without which a training neither begins nor goes on: to wait brings back none that is
    /// gone.
    async fn needed(&self, blob: &BlobRef) -> Result<Bytes, Unprepared> {
        let blobs = &self.store.blobs;
        match blobs.get(blob).await {
            Err(error @ BlobError::NotFound { .. })
                if !blobs.is_stored(&blob.digest).await.map_err(StoreError::from)? =>
            {
                Err(failed(error.code(), error.to_string()))
            }
            bytes => Ok(bytes.map_err(StoreError::from)?),
        }
    }

    /// The graph in training form: a registered model's, which is named, or a built-in family's, which
    /// is built for a data set.
    async fn graph(
        &self,
        spec: &TrainSpec,
        facts: Option<&DatasetFacts>,
    ) -> Result<(Bytes, Option<ModelRef>), Unprepared> {
        if let Some(record) = self.registry.look_up(&spec.model).await? {
            let blob = record.training.as_ref().unwrap_or(&record.onnx);
            return Ok((self.needed(blob).await?, Some(record.reference.clone())));
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
        let facts = facts.ok_or(Unprepared::Nobody)?;
        let shape = family_shape(&spec.model.name, facts, self.config.body_bytes_max)?;
        let (family, classes, seed) =
            (spec.model.name.to_string(), facts.classes as usize, spec.seed);
        let built =
            tokio::task::spawn_blocking(move || models::zoo::build(&family, shape, classes, seed));
        let built = built.await.map_err(|_| {
            failed(FailureCode::Internal, "building the graph met a fault of the program")
        })?;
        built.map(|onnx| (Bytes::from(onnx), None)).ok_or_else(unknown)
    }
}

/// What the first parameters of a training are, in words.
fn began_with(spec: &TrainSpec, from: Option<&RoundOf>, registered: Option<&ModelRef>) -> String {
    match (from, registered) {
        (Some(from), _) => format!("round {from}"),
        (None, Some(model)) => format!("model {}:{}", model.name, model.version),
        (None, None) => format!("the built-in family {}, seed {}", spec.model.name, spec.seed),
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

/// Looks into a graph, on a thread that may take its time.
async fn read_blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Unprepared> {
    let read = tokio::task::spawn_blocking(read).await;
    let fault = |_| failed(FailureCode::Internal, "reading the graph met a fault of the program");
    read.map_err(fault)?.map_err(Unprepared::Failed)
}

/// The model of a training that is taken over, from its graph.
pub(super) async fn model_of(core: &Core, prepared: &Prepared) -> Result<Model, Unprepared> {
    let onnx = core.needed(&prepared.graph).await?;
    let read = read_blocking(move || {
        let definition = Definition::read(&onnx).map_err(|error| checks::untrainable(&error))?;
        Ok(Model::of(&definition))
    });
    read.await
}

#[cfg(test)]
mod tests {
    use super::*;

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
