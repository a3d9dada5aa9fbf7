//! The public answer of an inference, sent straight to the waiting client.

use bytes::Bytes;
use jobs::id::DeviceId;
use jobs::report::{Class, Failure, FailureCode, InferReport, RefusedEngine};
use link::publish::SendError;
use models::tensor::{Data, Tensor};
use serde::Serialize;

use crate::device::Device;

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a jobs::id::ModelRef,
    device: &'a DeviceId,
    engine: &'a str,
    engine_us: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    refused_engines: &'a [RefusedEngine],
    classes: &'a [Vec<Class>],
    outputs: Vec<Output<'a>>,
}

/// A tensor as in Open Inference Protocol V2.
#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    data: Values<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
    I32(&'a [i32]),
    I8(&'a [i8]),
    U8(&'a [u8]),
    Bool(&'a [bool]),
}

/// Sends the answer to a client's inbox.
pub(super) async fn send(
    device: &Device,
    inbox: &str,
    report: &InferReport,
    outputs: &[Tensor],
) -> Result<(), Failure> {
    let payload = encode(&device.config.device, report, outputs);
    let sent = link::publish::publish(&device.client, inbox.to_owned(), None, payload).await;
    sent.map_err(|error| {
        let code = match error {
            SendError::TooLarge { .. } => FailureCode::TooLarge,
            SendError::NoStream { .. }
            | SendError::Refused { .. }
            | SendError::Unavailable { .. } => FailureCode::Internal,
        };
        Failure::new(code, format!("the answer cannot be sent: {error}"))
    })
}

fn encode(device: &DeviceId, report: &InferReport, outputs: &[Tensor]) -> Bytes {
    let outputs = report.outputs.iter().zip(outputs).map(|(header, tensor)| Output {
        name: &header.name,
        datatype: tensor.data().datatype(),
        shape: tensor.shape(),
        data: values(tensor.data()),
    });
    let answer = Answer {
        model: &report.model,
        device,
        engine: &report.engine,
        engine_us: report.engine_us,
        refused_engines: &report.refused_engines,
        classes: &report.classes,
        outputs: outputs.collect(),
    };
    serde_json::to_vec(&answer).expect("an answer is plain data").into()
}

fn values(data: &Data) -> Values<'_> {
    match data {
        Data::F32(values) => Values::F32(values),
        Data::F64(values) => Values::F64(values),
        Data::I64(values) => Values::I64(values),
        Data::I32(values) => Values::I32(values),
        Data::I8(values) => Values::I8(values),
        Data::U8(values) => Values::U8(values),
        Data::Bool(values) => Values::Bool(values),
    }
}
