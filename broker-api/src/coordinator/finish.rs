//! After the last round: the result becomes a version in the registry.

use std::collections::BTreeSet;

use bytes::Bytes;
use jobs::id::{BlobRef, JobId, ModelRef};
use jobs::report::{Failure, FailureCode};
use jobs::spec::TrainSpec;
use jobs::training::Training;
use link::blobs::BlobError;
use models::artifact::{Lineage, ModelConfig};
use models::params::Parameters;
use models::train::{Sgd, Trainer};

use super::state::Prepared;
use crate::broker::Core;
use crate::broker::register::declared;
use crate::broker::work::as_failure;

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
    ) -> Result<ModelRef, Failure> {
        let name = spec.register_as.as_ref().unwrap_or(&spec.model.name);
        let made = |record: &crate::record::ModelRecord| {
            record.config.lineage.as_ref().is_some_and(|lineage| lineage.job == job.as_str())
        };
        if let Some(record) = self.registry.list().into_iter().find(made) {
            return Ok(record.reference);
        }
        // One form after the other, so that there are never many copies of a large model.
        let (trainable, values) = self.export(prepared, parameters, Form::Training).await?;
        let trainable = self.store.blobs.put(trainable).await.map_err(|e| unavailable(&e))?;
        let (inference, _) = self.export(prepared, parameters, Form::Inference).await?;
        let config = ModelConfig {
            description: format!("{} trained on {} by job {job}", spec.model.name, spec.dataset),
            labels: prepared.labels.clone(),
            preprocessing: prepared.preprocessing.clone(),
            parameters: values as u64,
            lineage: Some(lineage(job, spec, training)),
            ..ModelConfig::default()
        };
        let config =
            declared(inference.clone(), config).await.map_err(|error| as_failure(&error))?;
        let added = self.registry.add(name, None, inference, Some(trainable), config).await;
        added.map(|record| record.reference).map_err(|error| as_failure(&error))
    }

    async fn export(
        &self,
        prepared: &Prepared,
        parameters: &BlobRef,
        form: Form,
    ) -> Result<(Bytes, usize), Failure> {
        let blobs = &self.store.blobs;
        let parameters = blobs.get(parameters).await.map_err(|error| unavailable(&error))?;
        let graph = blobs.get(&prepared.graph).await.map_err(|error| unavailable(&error))?;
        let exported = tokio::task::spawn_blocking(move || export(graph, parameters, form)).await;
        let fault = "writing the result met a fault of the program: see the broker's log";
        exported.map_err(|_| Failure::new(FailureCode::Internal, fault))?.map_err(|error| {
            let text = format!("the result cannot be written: {error}");
            Failure::new(FailureCode::InvalidModel, text)
        })
    }
}

/// What a model is exported for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Training,
    Inference,
}

fn unavailable(error: &BlobError) -> Failure {
    Failure::new(FailureCode::BlobUnavailable, error.to_string())
}

/// The model as an ONNX file, and its number of values.
fn export(graph: Bytes, parameters: Bytes, form: Form) -> Result<(Bytes, usize), String> {
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let mut trainer = Trainer::new(&graph, sgd).map_err(|error| error.to_string())?;
    drop(graph);
    let values = Parameters::from_safetensors(&parameters).map_err(|error| error.to_string())?;
    drop(parameters);
    trainer.set_parameters(&values).map_err(|error| error.to_string())?;
    let length = values.total_len();
    drop(values);
    let onnx = match form {
        Form::Training => trainer.to_training_onnx(),
        Form::Inference => trainer.to_inference_onnx(),
    };
    Ok((onnx.into(), length))
}

fn lineage(job: &JobId, spec: &TrainSpec, training: &Training) -> Lineage {
    let made = training.history().iter().filter(|outcome| outcome.failure.is_none());
    let devices: BTreeSet<String> = made
        .flat_map(|outcome| outcome.updates.iter().map(|(device, _)| device.to_string()))
        .collect();
    Lineage {
        job: job.to_string(),
        dataset: spec.dataset.to_string(),
        rounds: training.rounds_done(),
        devices: devices.into_iter().collect(),
        accuracy: training.accuracy(),
    }
}
