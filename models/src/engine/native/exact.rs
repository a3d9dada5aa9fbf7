//! Which models are computed exactly as their files say: what the graph adapts for training is
//! refused.

use crate::graph::{Graph, GraphError};
use crate::onnx::{GraphProto, ModelProto, NodeProto};

/// Why an operator is refused.
const PURPOSE: &str = "inference with native";

/// A reader's error, as inference has to say it.
pub(super) fn for_inference(error: GraphError) -> GraphError {
    match error {
        GraphError::Operator { node, operator, advice, .. } => {
            GraphError::Operator { node, operator, purpose: PURPOSE, advice }
        }
        other @ (GraphError::NotOnnx(_)
        | GraphError::Shape { .. }
        | GraphError::Node { .. }
        | GraphError::Graph(_)) => other,
    }
}

/// Refuses what is random, takes a batch's statistics, or gives more than the graph's output.
pub(in crate::engine) fn check(model: &ModelProto, graph: &Graph) -> Result<(), GraphError> {
    if !graph.exact {
        let text = "it makes labels or several outputs of its logits: expected one output";
        return Err(GraphError::Graph(text.to_owned()));
    }
    let Some(proto) = &model.graph else { return Ok(()) };
    for node in &proto.node {
        let problem = |problem: &str| {
            let node = if node.name.is_empty() { node.output.first() } else { Some(&node.name) };
            let (node, problem) = (node.cloned().unwrap_or_default(), problem.to_owned());
            Err(GraphError::Node { node, problem })
        };
        match node.op_type.as_str() {
            "BatchNormalization" if takes_statistics(node) => {
                return problem(
                    "expected a model for inference, found batch normalisation in training mode: \
                     export the model for inference",
                );
            }
            "Dropout" if drops(node, proto) => {
                return problem(
                    "expected a model for inference, found a dropout in training mode: export \
                     the model for inference",
                );
            }
            "RandomUniformLike" | "RandomUniform" | "RandomNormal" | "RandomNormalLike"
            | "Bernoulli" => {
                return problem("expected a model for inference, found random numbers");
            }
            _ => {}
        }
    }
    Ok(())
}

fn takes_statistics(node: &NodeProto) -> bool {
    let mode = node.attribute.iter().find(|attribute| attribute.name == "training_mode");
    mode.is_some_and(|mode| mode.i.unwrap_or(0) != 0)
        || node.output.iter().skip(1).any(|output| !output.is_empty())
}

/// Whether it says that it is in training: anything but a tensor of the file that is false.
fn drops(node: &NodeProto, graph: &GraphProto) -> bool {
    let Some(mode) = node.input.get(2).filter(|mode| !mode.is_empty()) else { return false };
    let tensor = graph.initializer.iter().find(|tensor| tensor.name == *mode);
    let bytes_are_0 = |raw: &[u8]| raw.iter().all(|byte| *byte == 0);
    !tensor.is_some_and(|tensor| {
        tensor.raw_data.as_deref().is_none_or(bytes_are_0)
            && tensor.int32_data.iter().all(|value| *value == 0)
    })
}
