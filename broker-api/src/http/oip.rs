//! Shapes of the Open Inference Protocol V2: requests become specifications, answers responses.
//!
//! Source: Open Inference Protocol V2, REST, with the binary tensor data extension.

use bytes::Bytes;
use jobs::id::{Bytes as Size, Millis};
use jobs::spec::{InferInput, InferSpec, ModelQuery, TensorHeader};
use serde::Deserialize;
use serde_json::json;

use crate::broker::Answer;
use crate::error::{ApiCode, ApiError};
use crate::request::nested::{self, Nested};
use crate::request::{self, InferRequest};

/// The name of the extension, in the server's metadata.
pub(super) const BINARY_EXTENSION: &str = "binary_tensor_data";

const HINT: &str = "such as {\"inputs\": [{\"name\": \"x\", \"shape\": [1, 2], \
     \"datatype\": \"FP32\", \"data\": [0.1, 0.2]}]}";

/// A request in JSON; binary data follows it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestForm {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: RequestParameters,
    inputs: Vec<InputForm>,
    #[serde(default)]
    outputs: Vec<OutputForm>,
}

/// Parameters that are known here; others are for other servers, and are skipped unread.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestParameters {
    engine: Option<String>,
    selector: Option<String>,
    deadline_ms: Option<u64>,
    binary_data_output: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputForm {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: InputParameters,
    #[serde(default)]
    data: Option<Nested>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InputParameters {
    binary_data_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputForm {
    name: String,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutputParameters {
    binary_data: Option<bool>,
}

/// A request: what is asked of the model, and how the answer is to look.
#[derive(Debug)]
pub(super) struct OipRequest {
    pub(super) ask: InferRequest,
    pub(super) form: AnswerForm,
}

/// How an answer is to look.
#[derive(Debug, Default)]
pub(super) struct AnswerForm {
    id: Option<String>,
    binary: bool,
    outputs: Vec<(String, Option<bool>)>,
}

/// Parses a request whose JSON is `json_length` bytes long; the rest is binary data.
///
/// # Errors
/// [`ApiCode::InvalidBody`] or [`ApiCode::InvalidSpec`], naming the member.
pub(super) fn parse(
    model: ModelQuery,
    body: &Bytes,
    json_length: Option<usize>,
) -> Result<OipRequest, ApiError> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(body_error(format!(
            "Inference-Header-Content-Length is {length}, the body has {} bytes",
            body.len()
        )));
    }
    let form: RequestForm = serde_json::from_slice(&body[..length])
        .map_err(|error| body_error(format!("the body is not an inference request: {error}")))?;
    let (input, binary) = inputs(form.inputs, body.slice(length..))?;
    let parameters = form.parameters;
    let engine = request::engine(parameters.engine.as_deref())?;
    let spec = InferSpec { model, input, top: 0, engine };
    let deadline = parameters.deadline_ms.map(Millis);
    let ask = InferRequest {
        spec,
        binary,
        selector: request::selector(parameters.selector.as_deref())?,
        deadline: deadline.map(request::checked_deadline).transpose()?,
    };
    let outputs =
        form.outputs.into_iter().map(|output| (output.name, output.parameters.binary_data));
    let binary = parameters.binary_data_output.unwrap_or(false);
    let form = AnswerForm { id: form.id, binary, outputs: outputs.collect() };
    Ok(OipRequest { ask, form })
}

/// Puts the tensors one after another, wherever they came from.
fn inputs(inputs: Vec<InputForm>, mut rest: Bytes) -> Result<(InferInput, Bytes), ApiError> {
    if inputs.is_empty() {
        return Err(spec_error("inputs is empty", "give one tensor for each input of the model"));
    }
    let only_binary = inputs.iter().all(|input| input.data.is_none());
    let whole = rest.clone();
    let mut joined = Vec::new();
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let bytes = input_bytes(&input, &mut rest)?;
        let header = TensorHeader {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape,
            size: Size(bytes.len() as u64),
        };
        request::check_header(&header)?;
        tensors.push(header);
        if !only_binary {
            joined.extend_from_slice(&bytes);
        }
    }
    if !rest.is_empty() {
        return Err(spec_error(
            format!("{} bytes follow the last binary tensor", rest.len()),
            "give each its length as parameters.binary_data_size",
        ));
    }
    // Binary tensors already lie one after another.
    let binary = if only_binary { whole } else { joined.into() };
    Ok((InferInput::Tensors { tensors }, binary))
}

fn input_bytes(input: &InputForm, rest: &mut Bytes) -> Result<Bytes, ApiError> {
    let name = &input.name;
    let size = input.parameters.binary_data_size;
    match (&input.data, size) {
        (Some(data), None) => {
            data.to_le_bytes(&input.datatype).map(Bytes::from).map_err(|problem| {
                spec_error(format!("input {name:?}: {problem}"), "see datatype and data")
            })
        }
        (None, Some(size)) => match usize::try_from(size) {
            Ok(length) if length <= rest.len() => Ok(rest.split_to(length)),
            _ => Err(spec_error(
                format!(
                    "input {name:?}: binary_data_size is {size}, {} bytes are left",
                    rest.len()
                ),
                "send the tensors after the JSON, whose length is in the header \
                     Inference-Header-Content-Length",
            )),
        },
        (None, None) => Err(spec_error(
            format!("input {name:?} has no data"),
            "give its elements as 'data', or after the JSON with parameters.binary_data_size",
        )),
        (Some(_), Some(_)) => Err(spec_error(
            format!("input {name:?} has both data and binary_data_size"),
            "keep one of them",
        )),
    }
}

/// A response: JSON, and binary tensors behind it.
#[derive(Debug)]
pub(super) struct OipResponse {
    pub(super) body: Vec<u8>,
    /// The length of the JSON when binary tensors follow.
    pub(super) json_length: Option<usize>,
}

/// Makes the response of an answer.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] for an output that the model does not have.
pub(super) fn respond(answer: &Answer, form: &AnswerForm) -> Result<OipResponse, ApiError> {
    let tensors = split(answer)?;
    let mut wanted = Vec::new();
    if form.outputs.is_empty() {
        wanted.extend(tensors.iter().map(|tensor| (tensor, form.binary)));
    }
    for (name, binary) in &form.outputs {
        let tensor = tensors.iter().find(|(header, _)| header.name == *name).ok_or_else(|| {
            let names: Vec<&str> = tensors.iter().map(|(header, _)| header.name.as_str()).collect();
            spec_error(
                format!("the model has no output {name:?}"),
                format!("its outputs are: {}", names.join(", ")),
            )
        })?;
        wanted.push((tensor, binary.unwrap_or(form.binary)));
    }
    let mut outputs = Vec::with_capacity(wanted.len());
    let mut tail = Vec::new();
    for ((header, bytes), binary) in wanted {
        let mut output = json!({
            "name": header.name,
            "datatype": header.datatype,
            "shape": header.shape,
        });
        if binary {
            output["parameters"] = json!({ "binary_data_size": bytes.len() });
            tail.extend_from_slice(bytes);
        } else {
            output["data"] = nested::numbers(&header.datatype, bytes).into();
        }
        outputs.push(output);
    }
    let report = &answer.report;
    let mut value = json!({
        "model_name": report.model.name,
        "model_version": report.model.version,
        "parameters": {
            "device": answer.device,
            "engine": report.engine,
            "engine_us": report.engine_us,
        },
        "outputs": outputs,
    });
    if !report.refused_engines.is_empty() {
        let reasons = report.refused_engines.iter();
        let reasons: Vec<String> =
            reasons.map(|refused| format!("{}: {}", refused.engine, refused.reason)).collect();
        value["parameters"]["refused_engines"] = json!(reasons.join("; "));
    }
    if let Some(id) = &form.id {
        value["id"] = json!(id);
    }
    let mut body = serde_json::to_vec(&value).expect("JSON values are JSON");
    let json_length = (!tail.is_empty()).then_some(body.len());
    body.append(&mut tail);
    Ok(OipResponse { body, json_length })
}

/// The outputs with their bytes.
fn split(answer: &Answer) -> Result<Vec<(&TensorHeader, &[u8])>, ApiError> {
    let mut rest = &answer.outputs[..];
    let mut tensors = Vec::with_capacity(answer.report.outputs.len());
    for header in &answer.report.outputs {
        let size = usize::try_from(header.size.0).unwrap_or(usize::MAX);
        let (bytes, after) = rest.split_at_checked(size).ok_or_else(|| {
            ApiError::new(
                ApiCode::Internal,
                format!("device {} sent too few bytes for {:?}", answer.device, header.name),
                "update its agent",
            )
        })?;
        tensors.push((header, bytes));
        rest = after;
    }
    Ok(tensors)
}

fn body_error(detail: String) -> ApiError {
    ApiError::new(ApiCode::InvalidBody, detail, HINT)
}

fn spec_error(detail: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::new(ApiCode::InvalidSpec, detail, hint)
}

#[cfg(test)]
mod tests;
