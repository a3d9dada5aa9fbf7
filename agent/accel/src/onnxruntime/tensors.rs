//! Bytes of frames as ONNX Runtime's tensors, without a copy where they lie as they must.

use bytemuck::{CheckedBitPattern, NoUninit};
use models::engine::frames::Header;
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorRef};

use helper::engine::{Refusal, View};

/// A frame's tensor as an input.
pub(super) fn input<'a>(view: &View<'a>) -> Result<SessionInputValue<'a>, Refusal> {
    match view.datatype {
        "FP32" => value::<f32>(view),
        "FP64" => value::<f64>(view),
        "INT64" => value::<i64>(view),
        "INT32" => value::<i32>(view),
        "INT8" => value::<i8>(view),
        "UINT8" => value::<u8>(view),
        "BOOL" => value::<bool>(view),
        other => Err(Refusal::of(format!("datatype {other:?} is not known to this program"))),
    }
}

fn value<'a, T>(view: &View<'a>) -> Result<SessionInputValue<'a>, Refusal>
where
    T: PrimitiveTensorElementType + CheckedBitPattern + std::fmt::Debug + 'static,
{
    if let Ok(elements) = bytemuck::checked::try_cast_slice::<u8, T>(view.bytes) {
        let tensor = TensorRef::from_array_view((view.shape, elements));
        return Ok(tensor.map_err(Refusal::of)?.into());
    }
    // Elements behind a tensor of bytes may lie anywhere.
    let element = |bytes| bytemuck::checked::try_pod_read_unaligned(bytes);
    let elements: Result<Vec<T>, _> =
        view.bytes.chunks_exact(size_of::<T>()).map(element).collect();
    let elements = elements.map_err(|_| Refusal::of("a BOOL is neither 0 nor 1".to_owned()))?;
    Ok(Tensor::from_array((view.shape, elements)).map_err(Refusal::of)?.into())
}

/// Adds an output's elements to a body.
pub(super) fn output(name: &str, value: &DynValue, body: &mut Vec<u8>) -> Result<Header, Refusal> {
    let element = value.dtype().tensor_type().and_then(super::datatype);
    match element {
        Some("FP32") => append::<f32>("FP32", value, body),
        Some("FP64") => append::<f64>("FP64", value, body),
        Some("INT64") => append::<i64>("INT64", value, body),
        Some("INT32") => append::<i32>("INT32", value, body),
        Some("INT8") => append::<i8>("INT8", value, body),
        Some("UINT8") => append::<u8>("UINT8", value, body),
        Some("BOOL") => append::<bool>("BOOL", value, body),
        Some(_) | None => Err(Refusal::of(format!(
            "output {name:?} is {}, which no reply carries",
            value.dtype()
        ))),
    }
}

fn append<T>(datatype: &str, value: &DynValue, body: &mut Vec<u8>) -> Result<Header, Refusal>
where
    T: PrimitiveTensorElementType + NoUninit,
{
    let (shape, elements) = value.try_extract_tensor::<T>().map_err(Refusal::of)?;
    body.extend_from_slice(bytemuck::cast_slice(elements));
    let extent = |extent: &i64| usize::try_from(*extent).map_err(Refusal::of);
    let shape = shape.iter().map(extent).collect::<Result<_, _>>()?;
    Ok(Header { datatype: datatype.to_owned(), shape })
}
