//! Writes a trained graph back as ONNX.

mod normalization;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Graph, Op, Origin};
use crate::onnx::{
    Dimension, DimensionValue, GraphProto, ModelProto, TensorProto, TypeValue, ValueInfoProto,
};

/// The model with these parameters. What was computed of tensors only and is trained in their
/// place becomes a tensor of its own: copies by `Identity`, transposed weights.
pub(crate) fn training_model(model: &ModelProto, parameters: Vec<TensorProto>) -> ModelProto {
    let mut model = model.clone();
    if let Some(graph) = &mut model.graph {
        put_tensors(graph, parameters);
    }
    model
}

/// Puts tensors in the place of initializers and nodes with their names.
fn put_tensors(graph: &mut GraphProto, tensors: Vec<TensorProto>) {
    let mut tensors: BTreeMap<String, TensorProto> =
        tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut freed = BTreeSet::new();
    graph.node.retain(|node| {
        let replaced = node.output.first().is_some_and(|name| tensors.contains_key(name));
        if replaced {
            freed.extend(node.input.iter().cloned());
        }
        !replaced
    });
    for initializer in &mut graph.initializer {
        if let Some(tensor) = tensors.remove(&initializer.name) {
            *initializer = tensor;
        }
    }
    graph.initializer.extend(tensors.into_values());
    let used = used(graph);
    graph.initializer.retain(|tensor| used.contains(&tensor.name) || !freed.contains(&tensor.name));
}

/// The model for inference: batch normalisation uses its running statistics, dropout is gone,
/// the batch axis is open, and what no output needs is gone.
pub(crate) fn inference_model(
    model: &ModelProto,
    graph: &Graph,
    parameters: Vec<TensorProto>,
) -> ModelProto {
    let mut model = training_model(model, parameters);
    let Some(proto) = &mut model.graph else { return model };
    for node in &mut proto.node {
        if node.op_type == "BatchNormalization" {
            node.output.truncate(1);
            node.attribute.retain(|attribute| attribute.name != "training_mode");
        }
    }
    remove_dropout(proto, graph);
    put_tensors(proto, computed_constants(proto, graph));
    if graph.fixed_batch.is_some() {
        open_reshapes(proto, graph);
    }
    open_batch(proto);
    remove_unused(proto);
    model
}

/// Constants that nodes of the file compute, such as a bias of zeros.
fn computed_constants(proto: &GraphProto, graph: &Graph) -> Vec<TensorProto> {
    let computed: BTreeSet<&str> = proto
        .node
        .iter()
        .filter(|node| node.op_type != "Constant")
        .filter_map(|node| node.output.first().map(String::as_str))
        .collect();
    let constants = graph
        .values
        .iter()
        .filter(|value| value.origin == Origin::Constant && computed.contains(value.name.as_str()));
    constants
        .map(|value| TensorProto::from_f32(&value.name, &value.shape.dims, &value.initial))
        .collect()
}

/// The same with batch normalisation taken into the convolutions before it, where that can be.
pub(crate) fn folded_model(
    model: &ModelProto,
    graph: &Graph,
    parameters: Vec<TensorProto>,
) -> ModelProto {
    let mut model = inference_model(model, graph, parameters);
    if let Some(proto) = &mut model.graph {
        normalization::fold(proto);
        remove_unused(proto);
    }
    model
}

/// Lets what dropouts give be what they take.
fn remove_dropout(proto: &mut GraphProto, graph: &Graph) {
    let results: BTreeSet<&str> = proto.output.iter().map(|info| info.name.as_str()).collect();
    let dropouts: BTreeMap<&str, &str> = graph
        .nodes
        .iter()
        .filter(|node| matches!(node.op, Op::Dropout { .. }))
        .map(|node| (&graph.value(node.output).name, &graph.value(node.inputs[0]).name))
        .map(|(output, input)| (output.as_str(), input.as_str()))
        .collect();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for node in &mut proto.node {
        for input in &mut node.input {
            if let Some(source) = names.get(input) {
                input.clone_from(source);
            }
        }
        let Some(output) = node.output.first().cloned() else { continue };
        let Some(input) = dropouts.get(output.as_str()) else { continue };
        let input = names.get(*input).cloned().unwrap_or_else(|| (*input).to_owned());
        if results.contains(output.as_str()) {
            "Identity".clone_into(&mut node.op_type);
            node.attribute.clear();
            node.input = vec![input];
            node.output.truncate(1);
        } else {
            names.insert(output, input);
        }
    }
    proto.node.retain(|node| !node.output.first().is_some_and(|name| names.contains_key(name)));
}

/// Shapes that name the batch size of the export take the batch as it comes.
fn open_reshapes(proto: &mut GraphProto, graph: &Graph) {
    let reshapes = graph.nodes.iter().filter(|node| matches!(node.op, Op::Reshape));
    let shapes: BTreeMap<&str, &[usize]> = reshapes
        .map(|node| graph.value(node.output))
        .map(|value| (value.name.as_str(), value.shape.dims.as_slice()))
        .collect();
    for node in proto.node.iter_mut().filter(|node| node.op_type == "Reshape") {
        let Some((output, dims)) =
            node.output.first().and_then(|output| shapes.get_key_value(output.as_str()))
        else {
            continue;
        };
        let extents = dims.iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX));
        let target: Vec<i64> = std::iter::once(0).chain(extents).collect();
        let name = format!("{output}/shape");
        proto.initializer.push(TensorProto::from_i64(&name, &target));
        node.attribute.clear();
        node.input.truncate(1);
        node.input.push(name);
    }
}

fn open_batch(proto: &mut GraphProto) {
    let tensors: BTreeSet<&str> =
        proto.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    proto.input.retain(|info| !tensors.contains(info.name.as_str()));
    proto.value_info.clear();
    for info in proto.input.iter_mut().chain(&mut proto.output) {
        open_first_axis(info);
    }
}

fn open_first_axis(info: &mut ValueInfoProto) {
    let value = info.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    let Some(TypeValue::Tensor(tensor)) = value else { return };
    let Some(first) = tensor.shape.as_mut().and_then(|shape| shape.dim.first_mut()) else { return };
    *first =
        Dimension { value: Some(DimensionValue::Param("n".to_owned())), ..Dimension::default() };
}

/// Names that nodes and the graph take.
fn used(proto: &GraphProto) -> BTreeSet<String> {
    let inputs = proto.node.iter().flat_map(|node| node.input.iter().cloned());
    inputs.chain(proto.output.iter().map(|info| info.name.clone())).collect()
}

/// Removes nodes and tensors that no output needs.
fn remove_unused(proto: &mut GraphProto) {
    let mut needed: BTreeSet<String> = proto.output.iter().map(|info| info.name.clone()).collect();
    let mut nodes = std::mem::take(&mut proto.node);
    // From the last on: a node comes before those that take what it gives.
    nodes.reverse();
    nodes.retain(|node| {
        let kept = node.output.iter().any(|output| needed.contains(output));
        if kept {
            needed.extend(node.input.iter().cloned());
        }
        kept
    });
    nodes.reverse();
    proto.node = nodes;
    proto.initializer.retain(|tensor| needed.contains(&tensor.name));
}

/// Drops the values of weights and states from a model whose parameters are kept elsewhere. What
/// remains shares no memory with the file.
pub(crate) fn without_values(mut model: ModelProto, graph: &Graph) -> ModelProto {
    let kept: BTreeSet<&str> = graph
        .values
        .iter()
        .filter(|value| value.origin.is_parameter())
        .map(|value| value.name.as_str())
        .collect();
    for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
        if kept.contains(tensor.name.as_str()) {
            tensor.raw_data = None;
            tensor.float_data = Vec::new();
        } else if let Some(raw) = &mut tensor.raw_data {
            *raw = Bytes::copy_from_slice(raw);
        }
    }
    model
}
