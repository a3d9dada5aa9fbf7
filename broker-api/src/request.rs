//! Requests as people write them (JSON, tensors, pictures) become specifications; pure.
//!
//! The NATS front door and the HTTP face share these forms. Nothing here asks the registry or a
//! device; [`fit()`] compares tensors with a model's declared inputs that the caller looked up.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jobs::engine::{EnginePolicy, EnginePolicyError};
use jobs::id::{Bytes as Size, Millis};
use jobs::selector::Selector;
use jobs::spec::{
    InferInput, InferSpec, JobKind, JobSpec, ModelQuery, TensorHeader, TrainSpec, WorkSpec,
};
use models::tensor::width;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiCode, ApiError};

mod answer;
mod fit;
pub mod nested;
pub(crate) mod training;

pub use answer::answer_json;
pub use fit::fit;
use nested::Nested;

/// Time for a request that names none.
pub const REQUEST_DEADLINE: Millis = Millis(10_000);
/// Time for a training job that names none: a week.
pub const TRAIN_DEADLINE: Millis = Millis(7 * 24 * 3_600_000);
/// Time for a job that nobody waits for and that names none: a day.
pub const QUEUED_DEADLINE: Millis = Millis(24 * 3_600_000);
/// The longest deadline that is accepted: thirty days.
pub const DEADLINE_MAX: Millis = Millis(30 * 24 * 3_600_000);
/// Classes named in an answer when the request does not say.
pub const TOP_DEFAULT: u32 = 5;
/// Classes named in an answer, at most.
pub const TOP_MAX: u32 = 1000;

/// An inference request, ready to be placed.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// What is asked.
    pub spec: InferSpec,
    /// The input's bytes, as `spec.input` describes them.
    pub binary: Bytes,
    /// Who may answer.
    pub selector: Selector,
    /// How long the answer is of use; absent when the request does not say.
    pub deadline: Option<Millis>,
}

/// A tensor of an Open Inference Protocol V2 request in JSON.
#[derive(Debug, Clone, Deserialize)]
pub struct OipTensor {
    /// The input's name; empty means the only one.
    #[serde(default)]
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<u64>,
    /// `FP32`, `FP64`, `INT64`, `INT32`, `INT8`, `UINT8` or `BOOL`.
    pub datatype: String,
    /// The elements, nested or flat.
    #[serde(default)]
    pub data: Option<Nested>,
    /// Instead of `data`: little-endian elements in base64.
    #[serde(default)]
    pub base64: Option<String>,
}

/// The JSON form of an inference request, see [`infer`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferForm {
    model: ModelQuery,
    #[serde(default)]
    inputs: Option<Vec<OipTensor>>,
    #[serde(default)]
    input: Option<Nested>,
    #[serde(default)]
    picture: Option<String>,
    #[serde(default)]
    top: Option<u32>,
    #[serde(default)]
    selector: Option<String>,
    #[serde(default)]
    engine: Option<String>,
    #[serde(default)]
    deadline_ms: Option<Millis>,
    #[serde(default, rename = "kind")]
    _kind: Option<JobKind>,
}

/// Parses the JSON form of an inference request.
///
/// # Errors
/// [`ApiCode::InvalidBody`] when it is not JSON or has unknown members,
/// [`ApiCode::InvalidSpec`] when a value cannot be used; both name the member.
pub fn infer(body: &[u8]) -> Result<InferRequest, ApiError> {
    parse::<InferForm>(body, INFER_HINT)?.into_request()
}

impl InferForm {
    /// Checks the form and lays the input out as bytes.
    ///
    /// # Errors
    /// As [`infer`].
    pub fn into_request(self) -> Result<InferRequest, ApiError> {
        let (input, binary) = match (self.inputs, self.input, self.picture) {
            (Some(tensors), None, None) => tensors_from_oip(&tensors)?,
            (None, Some(nested), None) => tensor_from_nested(&nested)?,
            (None, None, Some(text)) => (InferInput::Picture, decode_base64("picture", &text)?),
            (None, None, None) => {
                return Err(invalid("the request has no input", INFER_HINT));
            }
            _ => {
                return Err(invalid(
                    "the request has more than one of 'inputs', 'input' and 'picture'",
                    "keep one of them",
                ));
            }
        };
        let top = checked_top(self.top.unwrap_or(TOP_DEFAULT))?;
        Ok(InferRequest {
            spec: InferSpec {
                model: self.model,
                input,
                top,
                engine: engine(self.engine.as_deref())?,
            },
            binary,
            selector: selector(self.selector.as_deref())?,
            deadline: self.deadline_ms.map(checked_deadline).transpose()?,
        })
    }
}

/// The request of a picture that is the body itself; `model` is `name` or `name:version`.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] naming what cannot be used.
pub fn picture(model: &str, body: Bytes) -> Result<InferRequest, ApiError> {
    if body.is_empty() {
        return Err(invalid("the picture is empty", "send a JPEG or PNG file as the body"));
    }
    let spec = InferSpec {
        model: model_query(model)?,
        input: InferInput::Picture,
        top: TOP_DEFAULT,
        engine: EnginePolicy::default(),
    };
    Ok(InferRequest { spec, binary: body, selector: Selector::default(), deadline: None })
}

/// Parses the JSON form of a job: the members of its work, `selector` and `deadline_ms` side by
/// side, and `kind` unless the caller knows it. The bytes are the binary part of an infer job.
///
/// # Errors
/// [`ApiCode::InvalidBody`] or [`ApiCode::InvalidSpec`], naming the member.
pub fn job(kind: Option<JobKind>, body: &[u8]) -> Result<(JobSpec, Bytes), ApiError> {
    let kind = match kind {
        Some(kind) => kind,
        None => {
            parse::<KindOnly>(
                body,
                "say what to do: \"kind\": \"infer\", \"train\" or \"telemetry\"",
            )?
            .kind
        }
    };
    if kind == JobKind::Infer {
        let request = infer(body)?;
        let deadline_ms = request.deadline.unwrap_or(QUEUED_DEADLINE);
        let work = WorkSpec::Infer(request.spec);
        return Ok((JobSpec { selector: request.selector, deadline_ms, work }, request.binary));
    }
    let empty = body.iter().all(u8::is_ascii_whitespace);
    let body: &[u8] = if empty { b"{}" } else { body };
    let mut value: Value = parse(body, "send a JSON object")?;
    let Some(members) = value.as_object_mut() else {
        return Err(ApiError::new(
            ApiCode::InvalidBody,
            "the body is not a JSON object",
            "send a JSON object",
        ));
    };
    members.remove("kind");
    let selector = match members.remove("selector") {
        None | Some(Value::Null) => Selector::default(),
        Some(Value::String(text)) => selector(Some(&text))?,
        Some(other) => {
            return Err(invalid(format!("selector is {other}"), "write it as a string"));
        }
    };
    let deadline = members.remove("deadline_ms");
    let default = if kind == JobKind::Train { TRAIN_DEADLINE } else { QUEUED_DEADLINE };
    let deadline_ms = match deadline {
        None | Some(Value::Null) => default,
        Some(value) => {
            let deadline = serde_json::from_value(value).map_err(|error| {
                invalid(format!("deadline_ms: {error}"), "give whole milliseconds")
            })?;
            // A training's is checked with all else of the job.
            if kind == JobKind::Train { deadline } else { checked_deadline(deadline)? }
        }
    };
    let work = if kind == JobKind::Train {
        WorkSpec::Train(Box::new(train(&value)?))
    } else if members_are_empty(&value) {
        WorkSpec::Telemetry
    } else {
        return Err(ApiError::new(
            ApiCode::InvalidBody,
            format!("a telemetry job has no such members: {value}"),
            "only 'selector' and 'deadline_ms' are known here",
        ));
    };
    Ok((JobSpec { selector, deadline_ms, work }, Bytes::new()))
}

#[derive(Debug, Deserialize)]
struct KindOnly {
    kind: JobKind,
}

fn members_are_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn train(value: &Value) -> Result<TrainSpec, ApiError> {
    const HINT: &str = "such as {\"model\": \"mlp\", \"dataset\": \"digits\", \"rounds\": 3}";
    TrainSpec::deserialize(value)
        .map_err(|error| ApiError::new(ApiCode::InvalidBody, error.to_string(), HINT))
}

/// Parses `name` or `name:version`.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] saying what a name may be.
pub fn model_query(text: &str) -> Result<ModelQuery, ApiError> {
    text.parse().map_err(|error: jobs::id::IdError| {
        invalid(error.to_string(), "name the model as 'name' or 'name:version'")
    })
}

/// Parses a selector; none means every device.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] naming the requirement.
pub fn selector(text: Option<&str>) -> Result<Selector, ApiError> {
    match text {
        None | Some("") => Ok(Selector::default()),
        Some(text) => Selector::parse(text)
            .map_err(|error| invalid(error.to_string(), "such as 'arch=aarch64,label.site=lab'")),
    }
}

/// Parses which engines may answer; none means all of them.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] naming the engine.
pub fn engine(text: Option<&str>) -> Result<EnginePolicy, ApiError> {
    text.unwrap_or_default().parse().map_err(|error: EnginePolicyError| {
        invalid(error.to_string(), "such as 'cuda' or '!webgpu'")
    })
}

/// By which engines a device is chosen: those that may answer a request, or where it does not say,
/// the only one that has the model's operators.
pub(crate) fn placed_by(
    asked: &EnginePolicy,
    only: Option<&str>,
) -> Result<EnginePolicy, ApiError> {
    if *asked == EnginePolicy::default() { engine(only) } else { Ok(asked.clone()) }
}

/// A deadline that can be kept: 1 ms to [`DEADLINE_MAX`].
///
/// # Errors
/// [`ApiCode::InvalidSpec`] with the bounds.
pub fn checked_deadline(deadline: Millis) -> Result<Millis, ApiError> {
    if (1..=DEADLINE_MAX.0).contains(&deadline.0) {
        Ok(deadline)
    } else {
        Err(invalid(
            format!("deadline_ms is {deadline}, expected 1 to {DEADLINE_MAX}"),
            "give the time from acceptance to the answer in milliseconds",
        ))
    }
}

/// A number of classes that can be named: up to [`TOP_MAX`].
///
/// # Errors
/// [`ApiCode::InvalidSpec`] with the bound.
pub fn checked_top(top: u32) -> Result<u32, ApiError> {
    if top <= TOP_MAX {
        return Ok(top);
    }
    Err(invalid(format!("top is {top}, expected 0 to {TOP_MAX}"), "ask for fewer classes"))
}

/// Checks a specification beyond its types; a training by the names of its body's fields.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] with every problem.
pub fn check(spec: &JobSpec) -> Result<(), ApiError> {
    let mut problems = jobs::spec::validate(spec);
    if spec.work.kind() == JobKind::Train {
        for problem in &mut problems {
            problem.field = training::in_body(std::mem::take(&mut problem.field));
        }
    }
    let hint = match &problems[..] {
        [] => return Ok(()),
        [one] => format!("make {} {}", one.field, one.expected),
        _ => "each says what is expected".to_owned(),
    };
    let errors: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(ApiError { errors: errors.clone(), ..invalid(errors.join("; "), hint) })
}

/// A nested array as the only input, `FP32`.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] when an element is no number that fits.
pub fn tensor_from_nested(nested: &Nested) -> Result<(InferInput, Bytes), ApiError> {
    let shape: Vec<u64> = nested.shape().iter().map(|extent| *extent as u64).collect();
    let bytes = nested
        .to_le_bytes("FP32")
        .map_err(|problem| invalid(format!("input: {problem}"), "give an array of numbers"))?;
    let header = TensorHeader {
        name: String::new(),
        datatype: "FP32".to_owned(),
        shape,
        size: Size(bytes.len() as u64),
    };
    Ok((InferInput::Tensors { tensors: vec![header] }, bytes.into()))
}

/// Tensors of the Open Inference Protocol, one after another.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] naming the tensor and what does not fit.
pub fn tensors_from_oip(tensors: &[OipTensor]) -> Result<(InferInput, Bytes), ApiError> {
    if tensors.is_empty() {
        return Err(invalid("inputs is empty", "give one tensor for each input of the model"));
    }
    let mut binary = Vec::new();
    let mut headers = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let bytes = oip_bytes(tensor)?;
        let header = TensorHeader {
            name: tensor.name.clone(),
            datatype: tensor.datatype.clone(),
            shape: tensor.shape.clone(),
            size: Size(bytes.len() as u64),
        };
        check_header(&header)?;
        binary.extend_from_slice(&bytes);
        headers.push(header);
    }
    Ok((InferInput::Tensors { tensors: headers }, binary.into()))
}

fn oip_bytes(tensor: &OipTensor) -> Result<Vec<u8>, ApiError> {
    let name = &tensor.name;
    match (&tensor.data, &tensor.base64) {
        (Some(data), None) => data.to_le_bytes(&tensor.datatype).map_err(|problem| {
            invalid(format!("input {name:?}: {problem}"), "see 'datatype' and 'data'")
        }),
        (None, Some(text)) => Ok(decode_base64(&format!("input {name:?}"), text)?.to_vec()),
        _ => Err(invalid(
            format!("input {name:?} needs either 'data' or 'base64'"),
            "give its elements in one of the two forms",
        )),
    }
}

/// Checks that a tensor's length is what its shape and datatype say.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] with both lengths.
pub fn check_header(header: &TensorHeader) -> Result<(), ApiError> {
    let width = width(&header.datatype).ok_or_else(|| {
        invalid(
            format!("input {:?}: datatype {:?} is not known", header.name, header.datatype),
            "use FP32, FP64, INT64, INT32, INT8, UINT8 or BOOL",
        )
    })?;
    let expected =
        header.shape.iter().try_fold(width as u64, |product, extent| product.checked_mul(*extent));
    if expected == Some(header.size.0) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
    Err(invalid(
        format!(
            "input {:?}: shape {:?} of {} needs {expected} bytes, found {}",
            header.name, header.shape, header.datatype, header.size
        ),
        "make shape and data agree",
    ))
}

const INFER_HINT: &str = "such as {\"model\": \"digits\", \"input\": [[0.1, 0.2]]}, or 'inputs' \
     with Open Inference Protocol tensors, or 'picture' with base64";

fn parse<T: DeserializeOwned>(body: &[u8], hint: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(
            ApiCode::InvalidBody,
            format!("the body is not what is expected: {error}"),
            hint,
        )
    })
}

fn decode_base64(what: &str, text: &str) -> Result<Bytes, ApiError> {
    STANDARD.decode(text).map(Bytes::from).map_err(|error| {
        invalid(format!("{what} is not base64: {error}"), "encode it with padding")
    })
}

fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::new(ApiCode::InvalidSpec, detail, hint)
}

#[cfg(test)]
mod tests;
