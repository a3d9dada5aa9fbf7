//! After the last round: the result becomes a version in the registry.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{BlobRef, JobId, ModelRef};
use jobs::report::{Failure, FailureCode};
use jobs::spec::{Normalization, TrainSpec};
use jobs::training::Training;
use link::blobs::BlobError;
use models::artifact::{Lineage, ModelConfig};
use models::train::Definition;

use super::state::Prepared;
use crate::broker::Core;
use crate::broker::register::declared;
use crate::broker::registry::Numbering;
use crate::broker::work::as_failure;
use crate::error::{ApiCode, ApiError};
use crate::store::StoreError;

/// Why the result of a training is not registered.
#[derive(Debug)]
pub(super) enum Unregistered {
    /// It never will be.
    Failed(Failure),
    /// The store does not answer, which may pass.
    Unavailable(ApiError),
}

impl From<ApiError> for Unregistered {
    fn from(error: ApiError) -> Self {
        if error.code == ApiCode::Unavailable {
            Self::Unavailable(error)
        } else {
            Self::Failed(as_failure(&error))
        }
    }
}

impl From<StoreError> for Unregistered {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<BlobError> for Unregistered {
    fn from(error: BlobError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<Failure> for Unregistered {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Core {
    /// Registers the parameters as a version of the model; once for each job, however often it
    /// is called.
    pub(super) async fn register_result(
        &self,
        job: &JobId,
        spec: &TrainSpec,
        prepared: &Prepared,
        parameters: &BlobRef,
        training: &Training,
    ) -> Result<ModelRef, Unregistered> {
        let name = spec.register_as.as_ref().unwrap_or(&spec.model.name);
        if let Some(record) = self.registry.made_by(job).await? {
            return Ok(record.reference.clone());
        }
        let definition = Arc::new(self.definition(prepared).await?);
        let blobs = &self.store.blobs;
        let parameters = blobs.get(parameters).await?;
        // One form after the other, so that there are never many copies of a large model.
        let trainable = export(&definition, &parameters, Form::Training).await?;
        let trainable = blobs.put(trainable).await?;
        let inference = export(&definition, &parameters, Form::Inference).await?;
        drop(parameters);
        let inference = with_normalization(inference, prepared).await?;
        let config = ModelConfig {
            description: format!("{} trained on {} by job {job}", spec.model.name, spec.dataset),
            labels: prepared.labels.clone(),
            preprocessing: prepared.preprocessing.clone(),
            parameters: definition.layout().total_len() as u64,
            lineage: Some(self.lineage(job, spec, prepared, training).await?),
            ..ModelConfig::default()
        };
        let config = declared(inference.clone(), config).await?;
        // Another owner may have registered it meanwhile.
        let once = Numbering::OnceFor(job);
        Ok(self.registry.add(name, once, inference, Some(trainable), None, config).await?.reference)
    }

    /// From which data, in which rounds, on which devices the result was made.
    async fn lineage(
        &self,
        job: &JobId,
        spec: &TrainSpec,
        prepared: &Prepared,
        training: &Training,
    ) -> Result<Lineage, StoreError> {
        let result = training.result();
        let mut devices = BTreeSet::new();
        let mut outcomes = self.outcomes(job);
        while let Some(outcome) = outcomes.next().await {
            let outcome = outcome?;
            if outcome.failure.is_none() && outcome.round <= result.round {
                devices.extend(outcome.updates.iter().map(|(device, _)| device.to_string()));
            }
        }
        Ok(Lineage {
            job: job.to_string(),
            dataset: spec.dataset.to_string(),
            began_with: prepared.began_with.clone(),
            rounds: result.rounds_done,
            devices: devices.into_iter().collect(),
            accuracy: result.accuracy,
        })
    }

    /// What was trained; the file is let go of.
    async fn definition(&self, prepared: &Prepared) -> Result<Definition, Unregistered> {
        let onnx = self.store.blobs.get(&prepared.graph).await?;
        let read = move || Definition::read(&onnx).map_err(|error| unwritable(&error));
        Ok(blocking(read).await?)
    }
}

/// What a model is exported for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Training,
    Inference,
}

/// The model as an ONNX file.
async fn export(
    definition: &Arc<Definition>,
    parameters: &Bytes,
    form: Form,
) -> Result<Bytes, Failure> {
    let (definition, parameters) = (definition.clone(), parameters.clone());
    blocking(move || {
        let onnx = match form {
            Form::Training => definition.to_training_onnx(&parameters),
            Form::Inference => definition.to_inference_onnx(&parameters),
        };
        onnx.map(Bytes::from).map_err(|error| unwritable(&error))
    })
    .await
}

/// The model with its normalisation inside, unless that is a part of how pictures are read: who
/// asks gives the numbers of a table as they are.
async fn with_normalization(onnx: Bytes, prepared: &Prepared) -> Result<Bytes, Failure> {
    let (None, Normalization::Fixed { mean, std }) =
        (&prepared.preprocessing, prepared.normalization.clone())
    else {
        return Ok(onnx);
    };
    blocking(move || {
        let model = models::onnx::parse_shared(&onnx);
        let mut model = model.map_err(|error| unwritable(&error))?;
        model.normalize_input(&mean, &std).map_err(|error| unwritable(&error))?;
        Ok(Bytes::from(model.to_bytes()))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let fault = "writing the result met a fault of the program: see the broker's log";
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Failure::new(FailureCode::Internal, fault))?
}

fn unwritable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidModel, format!("the result cannot be written: {error}"))
}
