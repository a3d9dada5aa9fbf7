//! Answers one request to a model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jobs::id::Bytes as Size;
use jobs::report::{Class, Failure, FailureCode, InferReport, ReportBody};
use jobs::spec::{InferInput, InferTask, TensorHeader};
use models::engine::classify::top_classes;
use models::picture::{self, PictureError};
use models::tensor::Tensor;

use super::compute::Seat;
use super::sessions::Ready;
use super::sessions::loaded::Answered;
use super::{Outcome, Run, answer};

/// The most that a report has of the time for its way.
const WAY_MAX: Duration = Duration::from_secs(1);

impl Run {
    /// Runs the model on the input; answers the client itself when the task says where.
    pub(super) async fn infer(&self, task: InferTask, input: Bytes) -> Result<Outcome, Failure> {
        let (device, sessions) = (&self.executor.device, &self.executor.sessions);
        let until = self.until();
        let getting = sessions.get(&task.model.digest, device, until.into());
        let ready = tokio::time::timeout_at(until.into(), getting).await.map_err(|_| {
            let limit = until.saturating_duration_since(self.arrived);
            let message = format!("the model was not ready within {limit:?}: it is being loaded");
            Failure::new(FailureCode::EngineUnavailable, message)
        })??;
        let task = Arc::new(task);
        let mut answered = self.answer(&ready, &task, &input).await;
        let unavailable = |failure: &Failure| failure.code == FailureCode::EngineUnavailable;
        if answered.as_ref().is_err_and(unavailable) && Instant::now() < until {
            // The last engine failed, perhaps by another request's fault: once more.
            answered = self.answer(&ready, &task, &input).await;
        }
        let (answered, classes) = answered?;
        if !answered.again.is_empty() {
            let (ready, device, again) = (ready.clone(), device.clone(), answered.again.clone());
            tokio::spawn(async move { ready.try_again(again, device).await });
        }
        let report = InferReport {
            model: task.model.clone(),
            engine: answered.engine.to_owned(),
            engine_us: u64::try_from(answered.took.as_micros()).unwrap_or(u64::MAX),
            refused_engines: answered.refused,
            outputs: headers(&ready, &answered.outputs),
            classes,
        };
        if let Some(inbox) = &task.answer_to {
            answer::send(device, inbox, &report, &answered.outputs).await?;
            let report = InferReport { outputs: Vec::new(), ..report };
            return Ok(ReportBody::Inferred(report).into());
        }
        let outputs: Vec<&[u8]> = answered.outputs.iter().map(Tensor::le_bytes).collect();
        let outputs = outputs.concat();
        Ok(Outcome { body: ReportBody::Inferred(report), outputs: outputs.into() })
    }

    /// Makes an engine ready that the task allows, and runs the model.
    async fn answer(
        &self,
        ready: &Arc<Ready>,
        task: &Arc<InferTask>,
        input: &Bytes,
    ) -> Result<(Answered, Vec<Vec<Class>>), Failure> {
        let (device, until) = (&self.executor.device, self.until());
        ready.provide(|engine| task.engine.allows(engine), device, until.into()).await?;
        let (ready, task, input) = (ready.clone(), task.clone(), input.clone());
        let run = move |seat: &mut Seat| {
            let inputs = inputs(&ready, &task.input, &input)?.into();
            let answered = ready.model.answer(&inputs, &task.engine, until, seat)?;
            let classes = classes(&answered.outputs, &ready.config.labels, task.top);
            Ok((answered, classes))
        };
        self.executor.compute.infer(until, run).await
    }

    /// When engines are to have answered: the report has a way to go.
    fn until(&self) -> Instant {
        let way = (self.timeout / 16).min(WAY_MAX);
        self.arrived + self.timeout.saturating_sub(way)
    }
}

fn inputs(ready: &Ready, wanted: &InferInput, input: &Bytes) -> Result<Vec<Tensor>, Failure> {
    match wanted {
        InferInput::Picture => Ok(vec![picture_input(ready, input)?]),
        InferInput::Tensors { tensors } => tensor_inputs(ready, tensors, input),
    }
}

/// The best classes of each example, where the first output is a classifier's: not when it has
/// another number of classes than there are labels.
fn classes(outputs: &[Tensor], labels: &[String], top: u32) -> Vec<Vec<Class>> {
    let Some(rows) = outputs.first().and_then(|output| top_classes(output, usize::MAX)) else {
        return Vec::new();
    };
    if !labels.is_empty() && rows.iter().any(|row| row.len() != labels.len()) {
        return Vec::new();
    }
    let named = |class: models::engine::classify::Class| Class {
        index: u32::try_from(class.index).unwrap_or(u32::MAX),
        label: labels.get(class.index).cloned(),
        probability: class.probability,
    };
    rows.into_iter().map(|row| row.into_iter().take(top as usize).map(named).collect()).collect()
}

fn picture_input(ready: &Ready, input: &[u8]) -> Result<Tensor, Failure> {
    let Some(preprocessing) = &ready.config.preprocessing else {
        let message =
            "the model takes no pictures: send tensors, or register it with preprocessing";
        return Err(invalid(message));
    };
    picture::to_tensor(input, preprocessing).map_err(|error| match error {
        PictureError::Decode(_) | PictureError::TooLarge { .. } | PictureError::TooWide { .. } => {
            invalid(error.to_string())
        }
        PictureError::Preprocessing(_) => {
            Failure::new(FailureCode::InvalidModel, error.to_string())
        }
    })
}

/// The tensors of the binary part, in the order of the model's inputs.
fn tensor_inputs(
    ready: &Ready,
    headers: &[TensorHeader],
    input: &[u8],
) -> Result<Vec<Tensor>, Failure> {
    let declared = ready.model.inputs();
    let names: Vec<&str> = declared.iter().map(|info| info.name.as_str()).collect();
    if headers.len() != declared.len() {
        let message = format!("the model has inputs {names:?}, the request has {}", headers.len());
        return Err(invalid(message));
    }
    let mut found: Vec<Option<Tensor>> = vec![None; declared.len()];
    let mut rest = input;
    for header in headers {
        let size = usize::try_from(header.size.0).unwrap_or(usize::MAX);
        let Some((bytes, behind)) = rest.split_at_checked(size) else {
            let message = format!(
                "input {:?}: {} bytes are announced, {} are left",
                header.name,
                header.size,
                rest.len()
            );
            return Err(invalid(message));
        };
        rest = behind;
        let index = match names.iter().position(|name| *name == header.name) {
            Some(index) => index,
            None if header.name.is_empty() && names.len() == 1 => 0,
            None => {
                let message = format!("input {:?} is none of {names:?}", header.name);
                return Err(invalid(message));
            }
        };
        let shape: Option<Vec<usize>> =
            header.shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
        let shape = shape.filter(|shape| elements(shape).is_some()).ok_or_else(|| {
            invalid(format!("input {:?}: shape {:?} is too large", header.name, header.shape))
        })?;
        let tensor = Tensor::from_le_bytes(&header.datatype, &shape, bytes)
            .map_err(|error| invalid(format!("input {:?}: {error}", header.name)))?;
        if found[index].replace(tensor).is_some() {
            return Err(invalid(format!("input {:?} is there twice", names[index])));
        }
    }
    found
        .into_iter()
        .zip(&names)
        .map(|(tensor, name)| tensor.ok_or_else(|| invalid(format!("input {name:?} is missing"))))
        .collect()
}

/// The number of elements, unless it is absurd.
fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent))
}

fn headers(ready: &Ready, outputs: &[Tensor]) -> Vec<TensorHeader> {
    let declared = ready.model.outputs();
    let header = |(index, tensor): (usize, &Tensor)| TensorHeader {
        name: declared.get(index).map(|info| info.name.clone()).unwrap_or_default(),
        datatype: tensor.data().datatype().to_owned(),
        shape: tensor.shape().iter().map(|extent| *extent as u64).collect(),
        size: Size(tensor.size() as u64),
    };
    outputs.iter().enumerate().map(header).collect()
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureCode::InvalidInput, message)
}
