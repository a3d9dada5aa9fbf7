//! What an ONNX file declares, read without preparing it for a run.

use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Extent;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto};

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

/// Reads the declared inputs and outputs of an ONNX file; cheap, nothing is optimised.
///
/// # Errors
/// [`GraphError::NotOnnx`] for other bytes; [`GraphError::Graph`] or [`GraphError::Node`] when
/// the declarations cannot be used.
pub fn describe(onnx: &[u8]) -> Result<Description, GraphError> {
    let model = parse(onnx)?;
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
    let parameters = graph
        .initializer
        .iter()
        .filter(|tensor| matches!(datatype(tensor.data_type), Some("FP32" | "FP64" | "FP16")))
        .map(|tensor| tensor.dims.iter().map(|extent| extent.unsigned_abs()).product::<u64>())
        .sum();
    Ok(Description { inputs, outputs, parameters })
}

/// A declared input or output.
fn info(value: &ValueInfoProto) -> Result<TensorInfo, GraphError> {
    let node = || value.name.clone();
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        let problem = "expected a declared tensor type".to_owned();
        return Err(GraphError::Node { node: node(), problem });
    };
    let Some(datatype) = datatype(tensor.elem_type) else {
        let problem = format!("element type {} is not known", tensor.elem_type);
        return Err(GraphError::Node { node: node(), problem });
    };
    let Some(shape) = &tensor.shape else {
        let problem = "expected a declared shape: export the model with shapes".to_owned();
        return Err(GraphError::Node { node: node(), problem });
    };
    let extent = |value: &Option<Extent>| match value {
        Some(Extent::DimValue(extent)) if *extent > 0 => *extent,
        Some(Extent::DimValue(_) | Extent::DimParam(_)) | None => -1,
    };
    Ok(TensorInfo {
        name: node(),
        datatype: datatype.to_owned(),
        shape: shape.dim.iter().map(|dim| extent(&dim.value)).collect(),
    })
}

/// Open Inference Protocol's name of an ONNX element type.
/// Source: ONNX `TensorProto.DataType`.
fn datatype(element: i32) -> Option<&'static str> {
    Some(match element {
        1 => "FP32",
        2 => "UINT8",
        3 => "INT8",
        4 => "UINT16",
        5 => "INT16",
        6 => "INT32",
        7 => "INT64",
        8 => "BYTES",
        9 => "BOOL",
        10 => "FP16",
        11 => "FP64",
        12 => "UINT32",
        13 => "UINT64",
        16 => "BF16",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
