//! Tensors to tract's and back.

use tract_onnx::prelude::{DatumType, TValue, TractResult};

use crate::artifact::TensorInfo;
use crate::graph::GraphError;
use crate::tensor::{Data, Tensor};

type TractTensor = tract_onnx::prelude::Tensor;

/// The element types that host tensors have.
const DATATYPES: [&str; 7] = ["FP32", "FP64", "INT64", "INT32", "INT8", "UINT8", "BOOL"];

/// Refuses the other element types.
pub(super) fn check_datatype(info: &TensorInfo) -> Result<(), GraphError> {
    if DATATYPES.contains(&info.datatype.as_str()) {
        return Ok(());
    }
    let problem = format!("expected one of {}, found {}", DATATYPES.join(", "), info.datatype);
    Err(GraphError::Node { node: info.name.clone(), problem })
}

/// Copies a host tensor into a tract value.
pub(super) fn to_tract(tensor: &Tensor) -> Result<TValue, String> {
    let shape = tensor.shape();
    let made = match tensor.data() {
        Data::F32(values) => TractTensor::from_shape(shape, values),
        Data::F64(values) => TractTensor::from_shape(shape, values),
        Data::I64(values) => TractTensor::from_shape(shape, values),
        Data::I32(values) => TractTensor::from_shape(shape, values),
        Data::I8(values) => TractTensor::from_shape(shape, values),
        Data::U8(values) => TractTensor::from_shape(shape, values),
        Data::Bool(values) => TractTensor::from_shape(shape, values),
    };
    made.map(Into::into).map_err(|error| error.to_string())
}

/// Copies a tract value into a host tensor; what is none of its element types becomes `i64` if
/// it is an integer or an extent, and is refused otherwise.
pub(super) fn from_tract(value: &TractTensor) -> Result<Tensor, String> {
    let data = data(value).map_err(|error| error.to_string())?;
    Tensor::new(value.shape(), data).map_err(|error| error.to_string())
}

fn data(value: &TractTensor) -> TractResult<Data> {
    let view = value.try_as_plain_ram()?;
    let datatype = value.datum_type().unquantized();
    Ok(if datatype == DatumType::F32 {
        Data::F32(view.as_slice()?.to_vec())
    } else if datatype == DatumType::F64 {
        Data::F64(view.as_slice()?.to_vec())
    } else if datatype == DatumType::I32 {
        Data::I32(view.as_slice()?.to_vec())
    } else if datatype == DatumType::I8 {
        Data::I8(view.as_slice()?.to_vec())
    } else if datatype == DatumType::U8 {
        Data::U8(view.as_slice()?.to_vec())
    } else if datatype == DatumType::Bool {
        Data::Bool(view.as_slice()?.to_vec())
    } else {
        Data::I64(value.cast_to::<i64>()?.try_as_plain_ram()?.as_slice()?.to_vec())
    })
}
