//! What an ONNX file declares, read without preparing it for a run.

use bytes::Bytes;
use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Extent;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

use super::declared::{self, datatype};
use crate::artifact::TensorInfo;
use crate::graph::GraphError;
use crate::onnx;

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Inputs in the graph's order, without those that an initializer fills.
    pub inputs: Vec<TensorInfo>,
    /// Outputs in the graph's order.
    pub outputs: Vec<TensorInfo>,
    /// Number of values in the floating-point initializers.
    pub parameters: u64,
}

/// Reads the declared inputs and outputs of an ONNX file; cheap, nothing is optimised, and values
/// stay where they are.
///
/// # Errors
/// [`GraphError::NotOnnx`] for other bytes; [`GraphError::Graph`] or [`GraphError::Node`] when
/// the declarations cannot be used.
pub fn describe(onnx: &Bytes) -> Result<Description, GraphError> {
    let mut model = onnx::parse_shared(onnx)?;
    for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
        tensor.raw_data = None;
    }
    let model = parse(&model.to_bytes())?;
    of(graph(&model)?)
}

/// Decodes a model, telling what other bytes look like.
pub(super) fn parse(onnx: &[u8]) -> Result<ModelProto, GraphError> {
    onnx::check_beginning(onnx)?;
    let model = ModelProto::decode(onnx).map_err(|error| onnx::undecodable(onnx, &error))?;
    if model.graph.as_ref().is_none_or(|graph| graph.node.is_empty()) {
        return Err(onnx::without(onnx, "graph"));
    }
    Ok(model)
}

/// The graph of a model that [`parse`] let pass.
pub(super) fn graph(model: &ModelProto) -> Result<&GraphProto, GraphError> {
    model.graph.as_ref().ok_or_else(|| GraphError::NotOnnx("no graph".to_owned()))
}

/// The description of a graph.
pub(super) fn of(graph: &GraphProto) -> Result<Description, GraphError> {
    let filled: std::collections::BTreeSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph
        .input
        .iter()
        .filter(|value| !filled.contains(value.name.as_str()))
        .map(info)
        .collect::<Result<_, _>>()?;
    let outputs: Vec<TensorInfo> = graph.output.iter().map(info).collect::<Result<_, _>>()?;
    if outputs.is_empty() {
        return Err(GraphError::Graph("it declares no outputs".to_owned()));
    }
    let mut parameters = 0_u64;
    for tensor in &graph.initializer {
        let elements = elements(tensor)?;
        if matches!(datatype(tensor.data_type), Some("FP32" | "FP64" | "FP16")) {
            parameters = parameters.saturating_add(elements);
        }
    }
    Ok(Description { inputs, outputs, parameters })
}

/// How many elements a tensor says that it has.
fn elements(tensor: &TensorProto) -> Result<u64, GraphError> {
    let product = |all: u64, extent: &i64| all.checked_mul(u64::try_from(*extent).ok()?);
    tensor.dims.iter().try_fold(1, product).ok_or_else(|| {
        let (name, dims) = (&tensor.name, &tensor.dims);
        GraphError::Graph(format!("initializer {name:?} has the impossible shape {dims:?}"))
    })
}

/// A declared input or output.
fn info(value: &ValueInfoProto) -> Result<TensorInfo, GraphError> {
    let tensor = match value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    let extent = |value: &Option<Extent>| match value {
        Some(Extent::DimValue(extent)) => Some(*extent),
        Some(Extent::DimParam(_)) | None => None,
    };
    let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
    declared::info(&declared::Value {
        name: &value.name,
        element: tensor.map(|tensor| tensor.elem_type),
        shape: shape.map(|shape| shape.dim.iter().map(|dim| extent(&dim.value)).collect()),
    })
}

#[cfg(test)]
mod tests;
