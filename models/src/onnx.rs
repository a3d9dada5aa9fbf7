//! ONNX files: the protobuf messages, read and written with their fields intact.
//!
//! [`parse`] tells what bytes are that are no ONNX model; what a graph means is
//! [`crate::graph`]'s business.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::graph::GraphError;
use crate::params::{append_le_bytes, as_le_bytes};

mod foreign;
pub mod messages;
mod normalize;

pub use messages::{
    AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, TypeValue, ValueInfoProto,
};
pub use normalize::NormalizeError;

/// `TensorProto.DataType.FLOAT`
pub const FLOAT: i32 = 1;
/// `TensorProto.DataType.INT32`
pub const INT32: i32 = 6;
/// `TensorProto.DataType.INT64`
pub const INT64: i32 = 7;
/// `TensorProto.DataType.BOOL`
pub const BOOL: i32 = 9;

/// `TensorProto.DataLocation.EXTERNAL`
const EXTERNAL: i32 = 1;

/// Names of `TensorProto.DataType`, by number.
const DATA_TYPES: [&str; 17] = [
    "UNDEFINED",
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BFLOAT16",
];

/// The name of a `TensorProto.DataType`.
pub fn data_type_name(data_type: i32) -> String {
    usize::try_from(data_type)
        .ok()
        .and_then(|index| DATA_TYPES.get(index))
        .map_or_else(|| format!("type {data_type}"), |name| (*name).to_owned())
}

/// Reads an ONNX file.
///
/// # Errors
/// [`GraphError::NotOnnx`] says what the bytes look like and what to do; [`GraphError::Graph`]
/// when weights lie in another file.
pub fn parse(bytes: &[u8]) -> Result<ModelProto, GraphError> {
    check_beginning(bytes)?;
    check(bytes, ModelProto::decode(bytes))
}

/// Reads an ONNX file; the tensors of the model share its memory.
///
/// # Errors
/// As [`parse`].
pub fn parse_shared(bytes: &Bytes) -> Result<ModelProto, GraphError> {
    check_beginning(bytes)?;
    check(bytes, ModelProto::decode(bytes.clone()))
}

fn check(
    bytes: &[u8],
    decoded: Result<ModelProto, prost::DecodeError>,
) -> Result<ModelProto, GraphError> {
    let model = decoded.map_err(|error| undecodable(bytes, &error))?;
    let missing = match &model.graph {
        None => "graph",
        Some(graph) if graph.node.is_empty() && graph.output.is_empty() => "graph",
        Some(_) if model.opset_import.is_empty() => "operator set",
        Some(_) => "",
    };
    if !missing.is_empty() {
        return Err(without(bytes, missing));
    }
    if let Some(version) = model.opset().filter(|version| *version < 1) {
        return Err(GraphError::Graph(format!(
            "it uses version {version} of ONNX's operator set, the first is 1: export it again"
        )));
    }
    if let Some(name) = model.graph.as_ref().and_then(made_twice) {
        return Err(GraphError::Graph(format!(
            "two nodes make {name:?}, and a value is made by one: export the model again"
        )));
    }
    let tensors = model.graph.iter().flat_map(|graph| &graph.initializer);
    for tensor in tensors {
        if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() {
            return Err(GraphError::Graph(format!(
                "initializer {:?} has its data in another file: save the model as one file \
                 (onnx.save with save_as_external_data=False)",
                tensor.name
            )));
        }
    }
    Ok(model)
}

/// A value that more than one node makes.
///
/// Source: ONNX IR, Open Neural Network Exchange Intermediate Representation, "Names Within a Graph".
fn made_twice(graph: &GraphProto) -> Option<&str> {
    let mut made = BTreeSet::new();
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    // An output that is left out has no name.
    outputs.map(String::as_str).find(|name| !name.is_empty() && !made.insert(*name))
}

/// Refuses bytes that begin as no ONNX file does.
pub(crate) fn check_beginning(bytes: &[u8]) -> Result<(), GraphError> {
    foreign::certainly(bytes).map_or(Ok(()), |kind| Err(GraphError::NotOnnx(kind)))
}

/// What to say of bytes that do not decode.
pub(crate) fn undecodable(bytes: &[u8], error: &prost::DecodeError) -> GraphError {
    GraphError::NotOnnx(foreign::perhaps(bytes).unwrap_or_else(|| {
        let length = bytes.len();
        format!("its {length} bytes end early or are damaged ({error}): fetch the file again")
    }))
}

/// What to say of a model that lacks something.
pub(crate) fn without(bytes: &[u8], missing: &str) -> GraphError {
    GraphError::NotOnnx(foreign::perhaps(bytes).unwrap_or_else(|| {
        format!("it has no {missing}: export the model again, or fetch the file again")
    }))
}

impl ModelProto {
    /// The version of ONNX's own operator set that the model uses.
    pub fn opset(&self) -> Option<i64> {
        let own = |import: &&OperatorSetIdProto| matches!(import.domain.as_str(), "" | "ai.onnx");
        self.opset_import.iter().find(own).and_then(|import| import.version)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// Values of a tensor, which are its bytes.
struct Values(Vec<f32>);

impl AsRef<[u8]> for Values {
    fn as_ref(&self) -> &[u8] {
        as_le_bytes(&self.0)
    }
}

impl TensorProto {
    /// A tensor of `f32` that keeps the values as they are: a large one is not copied.
    pub fn of_f32(name: &str, shape: &[usize], values: Vec<f32>) -> Self {
        Self::raw_f32(name, shape, Bytes::from_owner(Values(values)))
    }

    /// A tensor of `f32`.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let mut raw = Vec::with_capacity(values.len() * 4);
        append_le_bytes(values, &mut raw);
        Self::raw_f32(name, shape, raw.into())
    }

    /// A tensor of `f32` whose values are there as little-endian bytes.
    pub fn raw_f32(name: &str, shape: &[usize], raw: Bytes) -> Self {
        Self::raw(name, FLOAT, shape, raw)
    }

    /// A tensor of `i64` with one axis.
    pub fn from_i64(name: &str, values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let raw = raw.into();
        Self::raw(name, INT64, &[values.len()], raw)
    }

    fn raw(name: &str, data_type: i32, shape: &[usize], raw: Bytes) -> Self {
        let dims = shape.iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX)).collect();
        Self { name: name.to_owned(), data_type, dims, raw_data: Some(raw), ..Self::default() }
    }

    /// The shape and its number of elements; `None` for negative extents and on overflow.
    pub fn shape(&self) -> Option<(Vec<usize>, usize)> {
        let shape: Vec<usize> =
            self.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<_>>()?;
        let elements = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
        Some((shape, elements))
    }

    pub(crate) fn is_f32(&self) -> bool {
        self.data_type == FLOAT
    }

    /// Shape and values of a `FLOAT` tensor.
    ///
    /// # Errors
    /// What is wrong with the tensor, in words.
    pub fn to_f32(&self) -> Result<(Vec<usize>, Vec<f32>), String> {
        self.read(FLOAT, &self.float_data, f32::from_le_bytes)
    }

    /// Shape and values of an `INT64` or `INT32` tensor.
    ///
    /// # Errors
    /// What is wrong with the tensor, in words.
    pub fn to_i64(&self) -> Result<(Vec<usize>, Vec<i64>), String> {
        if self.data_type == INT32 {
            let (shape, values) = self.read(INT32, &self.int32_data, i32::from_le_bytes)?;
            return Ok((shape, values.into_iter().map(i64::from).collect()));
        }
        self.read(INT64, &self.int64_data, i64::from_le_bytes)
    }

    fn read<T: Copy, const BYTES: usize>(
        &self,
        data_type: i32,
        typed: &[T],
        from_le_bytes: fn([u8; BYTES]) -> T,
    ) -> Result<(Vec<usize>, Vec<T>), String> {
        if self.data_type != data_type {
            return Err(format!(
                "expected element type {}, found {}",
                data_type_name(data_type),
                data_type_name(self.data_type)
            ));
        }
        let (shape, elements) =
            self.shape().ok_or_else(|| format!("its shape {:?} is impossible", self.dims))?;
        let values: Vec<T> = match &self.raw_data {
            Some(raw) if raw.len() % BYTES == 0 => {
                raw.as_chunks::<BYTES>().0.iter().map(|chunk| from_le_bytes(*chunk)).collect()
            }
            Some(raw) => return Err(format!("its data of {} bytes is cut off", raw.len())),
            None => typed.to_vec(),
        };
        if values.len() == elements {
            Ok((shape, values))
        } else {
            Err(format!("its shape {shape:?} needs {elements} values, found {}", values.len()))
        }
    }
}

impl ValueInfoProto {
    /// A tensor of `f32` whose first axis is named and the others are fixed.
    pub fn batched(name: &str, batch: &str, example: &[usize]) -> Self {
        let fixed =
            |extent: &usize| DimensionValue::Value(i64::try_from(*extent).unwrap_or(i64::MAX));
        let dims = std::iter::once(DimensionValue::Param(batch.to_owned()))
            .chain(example.iter().map(fixed));
        let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() });
        let shape = TensorShapeProto { dim: dim.collect() };
        let tensor = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
        let value = Some(TypeValue::Tensor(tensor));
        Self {
            name: name.to_owned(),
            r#type: Some(TypeProto { value, ..TypeProto::default() }),
            ..Self::default()
        }
    }

    /// Element type and extents (`None` where open) if it is a tensor with a shape.
    pub fn tensor(&self) -> Option<(i32, Vec<Option<usize>>)> {
        let Some(TypeValue::Tensor(tensor)) = self.r#type.as_ref()?.value.as_ref() else {
            return None;
        };
        let extent = |dim: &Dimension| match &dim.value {
            Some(DimensionValue::Value(value)) => usize::try_from(*value).ok(),
            Some(DimensionValue::Param(_)) | None => None,
        };
        let shape = tensor.shape.as_ref()?;
        Some((tensor.elem_type, shape.dim.iter().map(extent).collect()))
    }
}

impl NodeProto {
    /// An operator of ONNX's own domain.
    pub fn new(name: &str, operator: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            name: name.to_owned(),
            op_type: operator.to_owned(),
            input: names(inputs),
            output: names(outputs),
            ..Self::default()
        }
    }

    /// The same with these attributes.
    #[must_use]
    pub fn with(self, attribute: Vec<AttributeProto>) -> Self {
        Self { attribute, ..self }
    }
}

impl AttributeProto {
    /// An integer (`AttributeType.INT`).
    pub fn int(name: &str, value: i64) -> Self {
        Self { name: name.to_owned(), i: Some(value), r#type: 2, ..Self::default() }
    }

    /// Integers (`AttributeType.INTS`).
    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { name: name.to_owned(), ints: values.to_vec(), r#type: 7, ..Self::default() }
    }

    /// A float (`AttributeType.FLOAT`).
    pub fn float(name: &str, value: f32) -> Self {
        Self { name: name.to_owned(), f: Some(value), r#type: 1, ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
