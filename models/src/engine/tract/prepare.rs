//! From the ONNX file to the graph that plans are made of: checks, and what tract lacks.

use std::collections::BTreeSet;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};
use tract_onnx::prelude::{Framework as _, InferenceModel, TractResult};

use crate::graph::GraphError;

mod misread;
mod quantised;

/// Domains whose operators tract knows; it looks at the operator's name only.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Why an operator is refused.
const PURPOSE: &str = "inference with tract";

/// Rewrites operators that tract lacks and refuses those that it would get wrong or not know.
pub(super) fn check(model: &mut ModelProto) -> Result<(), GraphError> {
    let own = |domain: &str| matches!(domain, "" | "ai.onnx");
    let opset = model.opset_import.iter().find(|import| own(&import.domain));
    let opset = opset.map_or(0, |import| import.version);
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    quantised::lower(graph);
    let framework = tract_onnx::onnx();
    let known = |operator: &str| framework.op_register.0.contains_key(operator);
    check_nodes(graph, opset, &known)?;
    check_outputs(graph)
}

/// The graph as tract reads it; shapes inside of it are inferred anew for each plan.
pub(super) fn template(model: &ModelProto) -> TractResult<InferenceModel> {
    tract_onnx::onnx().with_ignore_value_info(true).model_for_proto_model(model)
}

fn check_nodes(
    graph: &GraphProto,
    opset: i64,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), GraphError> {
    for node in &graph.node {
        if !known(&node.op_type) || !DOMAINS.contains(&node.domain.as_str()) {
            let operator = match node.domain.as_str() {
                "" | "ai.onnx" => node.op_type.clone(),
                domain => format!("{domain}.{}", node.op_type),
            };
            let advice = "export the model without it".to_owned();
            let node = name(node);
            return Err(GraphError::Operator { node, operator, purpose: PURPOSE, advice });
        }
        let training =
            node.attribute.iter().any(|each| each.name == "training_mode" && each.i != 0);
        if training && node.op_type == "BatchNormalization" {
            let problem = "expected a model for inference, found batch normalisation in training \
                           mode: export the model for inference"
                .to_owned();
            return Err(GraphError::Node { node: name(node), problem });
        }
        misread::check(node, graph, opset)?;
        for attribute in &node.attribute {
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                check_nodes(graph, opset, known)?;
            }
        }
    }
    Ok(())
}

/// Every declared output must be made by something.
fn check_outputs(graph: &GraphProto) -> Result<(), GraphError> {
    let made: BTreeSet<&str> = (graph.node.iter().flat_map(|node| &node.output))
        .chain(graph.input.iter().map(|value| &value.name))
        .chain(graph.initializer.iter().map(|tensor| &tensor.name))
        .map(String::as_str)
        .collect();
    match graph.output.iter().find(|output| !made.contains(output.name.as_str())) {
        Some(output) => {
            Err(GraphError::Graph(format!("no node makes the declared output {:?}", output.name)))
        }
        None => Ok(()),
    }
}

/// A node's name, or that of its first output.
fn name(node: &NodeProto) -> String {
    if node.name.is_empty() { node.output.first().cloned() } else { Some(node.name.clone()) }
        .unwrap_or_default()
}
