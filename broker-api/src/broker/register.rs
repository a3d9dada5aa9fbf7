//! Registering models: what people send is checked before it is stored.

use bytes::Bytes;
use jobs::device::Hello;
use jobs::id::{ModelName, ModelVersion};
use models::artifact::ModelConfig;
use models::engine::{self, EngineError};

use super::Core;
use super::registry::Numbering;
use super::trial::Tried;
use crate::error::{ApiCode, ApiError};
use crate::gateway::internal;
use crate::record::ModelRecord;

/// The engine that answers with models that no other one takes.
const ORT_CPU: &str = "ort-cpu";

impl Core {
    /// See [`super::Broker::register`].
    pub(crate) async fn register(
        &self,
        name: &ModelName,
        version: Option<ModelVersion>,
        onnx: Bytes,
        config: ModelConfig,
    ) -> Result<ModelRecord, ApiError> {
        let max = self.config.body_bytes_max;
        if onnx.len() > max {
            return Err(ApiError::new(
                ApiCode::TooLarge,
                format!("the model has {} bytes, at most {max} are accepted", onnx.len()),
                "raise the broker's limit",
            ));
        }
        if let Some(preprocessing) = &config.preprocessing {
            preprocessing.check().map_err(|error| {
                ApiError::new(
                    ApiCode::InvalidSpec,
                    format!("the model's config: {error}"),
                    "see Preprocessing in /openapi.json",
                )
            })?;
        }
        let config = declared(onnx.clone(), config).await?;
        let engine = match self.trials.load(onnx.clone()).await {
            Ok(Tried::Loaded) => None,
            Ok(Tried::Lacking(_)) if self.has_onnx_runtime() => Some(ORT_CPU),
            Ok(Tried::Lacking(reason)) => {
                let hint = "or have a device with ONNX Runtime, which takes all operators, and send the \
                    model again";
                return Err(ApiError { hint: hint.to_owned(), ..unusable(&reason) });
            }
            Ok(Tried::Refused(reason)) => return Err(unusable(&reason)),
            Err(reason) => return Err(internal(format!("the model was not tried: {reason}"))),
        };
        let numbering = version.map_or(Numbering::Next, Numbering::Exactly);
        self.registry.add(name, numbering, onnx, None, engine, config).await
    }

    /// Whether any device that ever joined has an engine that takes models which ours do not.
    fn has_onnx_runtime(&self) -> bool {
        let mut has = false;
        let mut look = |hello: &Hello| has |= hello.engines.iter().any(|engine| engine == ORT_CPU);
        self.fleet.for_each(|hello, _| look(hello));
        has
    }
}

/// Completes a configuration with what the ONNX file declares.
pub(crate) async fn declared(
    onnx: Bytes,
    mut config: ModelConfig,
) -> Result<ModelConfig, ApiError> {
    let described = tokio::task::spawn_blocking(move || engine::describe(&onnx)).await;
    let description = described
        .map_err(|_| internal("reading the model met a fault of the program".to_owned()))?;
    let description =
        description.map_err(|error| unusable(&EngineError::from(error).to_string()))?;
    config.inputs = description.inputs;
    config.outputs = description.outputs;
    if config.parameters == 0 {
        config.parameters = description.parameters;
    }
    Ok(config)
}

fn unusable(error: &str) -> ApiError {
    ApiError::new(
        ApiCode::Job(jobs::report::FailureCode::InvalidModel),
        format!("the model cannot be used: {error}"),
        "send an ONNX file that checks with onnx.checker",
    )
}
