//! After the last round: the result becomes a version in the registry.

use std::collections::BTreeSet;

use bytes::Bytes;
use jobs::id::{BlobRef, JobId, ModelRef};
use jobs::report::{Failure, FailureCode};
use jobs::spec::TrainSpec;
use jobs::training::Training;
use link::blobs::Blobs;
use models::artifact::{Lineage, ModelConfig};
use models::params::Parameters;
use models::train::{Sgd, Trainer};

use super::state::Prepared;
use crate::broker::Core;
use crate::broker::register::describe;
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
        let bytes = blob(&self.store.blobs, parameters).await?;
        let graph = blob(&self.store.blobs, &prepared.graph).await?;
        let (inference, trainable, values) = export(graph, bytes).await?;
        let config = ModelConfig {
            description: format!("{} trained on {} by job {job}", spec.model.name, spec.dataset),
            labels: prepared.labels.clone(),
            preprocessing: prepared.preprocessing.clone(),
            parameters: values as u64,
            lineage: Some(lineage(job, spec, training)),
            ..ModelConfig::default()
        };
        let config =
            describe(inference.clone(), config).await.map_err(|error| as_failure(&error))?;
        let added = self.registry.add(name, None, inference, Some(trainable), config).await;
        added.map(|record| record.reference).map_err(|error| as_failure(&error))
    }
}

async fn blob(blobs: &Blobs, blob: &BlobRef) -> Result<Bytes, Failure> {
    let bytes = blobs.get(blob).await;
    bytes.map_err(|error| Failure::new(FailureCode::BlobUnavailable, error.to_string()))
}

/// The model for inference, the model in training form, and its number of values.
async fn export(graph: Bytes, parameters: Bytes) -> Result<(Bytes, Bytes, usize), Failure> {
    let exported = tokio::task::spawn_blocking(move || {
        let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
        let mut trainer = Trainer::new(&graph, sgd).map_err(|error| error.to_string())?;
        let parameters =
            Parameters::from_safetensors(&parameters).map_err(|error| error.to_string())?;
        trainer.set_parameters(&parameters).map_err(|error| error.to_string())?;
        let inference = Bytes::from(trainer.to_inference_onnx());
        Ok((inference, Bytes::from(trainer.to_training_onnx()), parameters.total_len()))
    });
    match exported.await {
        Ok(exported) => exported.map_err(|error: String| {
            Failure::new(
                FailureCode::InvalidModel,
                format!("the result cannot be written: {error}"),
            )
        }),
        Err(_) => Err(Failure::new(
            FailureCode::Internal,
            "writing the result met a fault of the program: see the broker's log",
        )),
    }
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
