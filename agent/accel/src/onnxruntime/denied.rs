//! Forms of operators that ONNX Runtime answers otherwise than ONNX says, without a word; the
//! conformance tests found them in version 1.32.

use std::collections::BTreeMap;

use models::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

use helper::engine::Refusal;

/// Checks every node of a model, those of inner graphs and of functions too.
///
/// # Errors
/// [`Refusal`] names the node that would be answered wrongly.
pub(super) fn check(model: &ModelProto) -> Result<(), Refusal> {
    let mut known = Known::default();
    if let Some(graph) = &model.graph {
        known.graph(graph);
    }
    for function in &model.functions {
        known.nodes(&function.node);
    }
    for node in &known.nodes {
        let rule = RULES.iter().find(|(operator, _)| *operator == node.op_type);
        if let Some(problem) = rule.and_then(|(_, rule)| rule(node, &known.tensors)) {
            return Err(Refusal::lacking(format!(
                "node {:?}: {} is not trusted to ONNX Runtime: {problem}",
                node.name, node.op_type
            )));
        }
    }
    Ok(())
}

type Tensors<'m> = BTreeMap<&'m str, &'m TensorProto>;

/// What is wrong with a node, for people.
type Rule = fn(&NodeProto, &Tensors<'_>) -> Option<&'static str>;

const RULES: [(&str, Rule); 3] =
    [("Attention", attention), ("MaxUnpool", unpool), ("Resize", resize)];

/// A model's nodes, and the constants by name, which is unique in a graph and those inside of it.
#[derive(Default)]
struct Known<'m> {
    nodes: Vec<&'m NodeProto>,
    tensors: Tensors<'m>,
}

impl<'m> Known<'m> {
    fn graph(&mut self, graph: &'m GraphProto) {
        for tensor in &graph.initializer {
            // What is an input as well is only that input's default.
            if graph.input.iter().all(|input| input.name != tensor.name) {
                self.tensors.insert(&tensor.name, tensor);
            }
        }
        self.nodes(&graph.node);
    }

    fn nodes(&mut self, nodes: &'m [NodeProto]) {
        for node in nodes {
            if let ("Constant", [name]) = (node.op_type.as_str(), node.output.as_slice())
                && let Some(tensor) = node.attribute.iter().find_map(|value| value.t.as_ref())
            {
                self.tensors.insert(name, tensor);
            }
            self.nodes.push(node);
            for graph in node.attribute.iter().flat_map(|value| value.g.iter().chain(&value.graphs))
            {
                self.graph(graph);
            }
        }
    }
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn present(names: &[String], index: usize) -> Option<&str> {
    names.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

/// The products that are given out lack the mask.
fn attention(node: &NodeProto, _: &Tensors<'_>) -> Option<&'static str> {
    let after_mask = attribute(node, "qk_matmul_output_mode").is_some_and(|mode| mode.i == Some(1));
    (after_mask && present(&node.output, 3).is_some())
        .then_some("it gives out products of queries and keys, after the mask was added")
}

/// Indices are taken as those of the shape that is asked for.
fn unpool(node: &NodeProto, _: &Tensors<'_>) -> Option<&'static str> {
    present(&node.input, 2).map(|_| "it is given an output shape")
}

/// Corners are aligned by the output's extent, which was rounded, not by the exact scale.
fn resize(node: &NodeProto, tensors: &Tensors<'_>) -> Option<&'static str> {
    let corners = attribute(node, "coordinate_transformation_mode")
        .is_some_and(|mode| mode.s.as_deref() == Some(b"align_corners"));
    let scales = present(&node.input, 2).filter(|_| corners)?;
    let scales = tensors.get(scales).and_then(|tensor| tensor.to_f32().ok());
    let whole = scales.is_some_and(|(_, scales)| scales.iter().all(|scale| scale.fract() == 0.0));
    (!whole).then_some("corners are aligned, with scales that are not constant whole numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text, which [`AttributeProto`] has no function for.
    fn text(name: &str, value: &str) -> AttributeProto {
        AttributeProto { s: Some(value.into()), ..AttributeProto::int(name, 0) }
    }

    fn graph(nodes: Vec<NodeProto>) -> GraphProto {
        let half = TensorProto::from_f32("half", &[4], &[1.0, 1.0, 0.5, 0.5]);
        let twice = TensorProto::from_f32("twice", &[4], &[1.0, 1.0, 2.0, 2.0]);
        let none = TensorProto::from_f32("none", &[0], &[]);
        GraphProto { node: nodes, initializer: vec![half, twice, none], ..GraphProto::default() }
    }

    fn judge(graph: GraphProto) -> Result<(), String> {
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        check(&model).map_err(|refusal| refusal.to_string())
    }

    fn resized(mode: &str, inputs: &[&str]) -> NodeProto {
        let mode = text("coordinate_transformation_mode", mode);
        NodeProto::new("odd", "Resize", inputs, &["y"]).with(vec![mode])
    }

    #[test]
    fn corners_are_aligned_by_whole_scales_only() {
        let aligned = |inputs: &[&str]| judge(graph(vec![resized("align_corners", inputs)]));
        assert_eq!(aligned(&["x", "", "twice"]), Ok(()));
        assert_eq!(aligned(&["x", "", "", "sizes"]), Ok(()));
        assert_eq!(aligned(&["x", "", "none", "sizes"]), Ok(()));
        for scales in ["half", "x"] {
            let refused = aligned(&["x", "", scales]).unwrap_err();
            assert!(
                refused.contains("\"odd\": Resize") && refused.contains("corners"),
                "{refused}"
            );
        }
        assert_eq!(judge(graph(vec![resized("asymmetric", &["x", "", "half"])])), Ok(()));
        let mut default = graph(vec![resized("align_corners", &["x", "", "twice"])]);
        default.input.push(models::onnx::ValueInfoProto::batched("twice", "n", &[]));
        assert!(judge(default).is_err(), "what is fed may be another number");
        let value = AttributeProto {
            t: Some(TensorProto::from_f32("", &[4], &[1.0, 1.0, 3.0, 3.0])),
            ..AttributeProto::int("value", 0)
        };
        let constant = NodeProto::new("c", "Constant", &[], &["thrice"]).with(vec![value]);
        let resized = resized("align_corners", &["x", "", "thrice"]);
        assert_eq!(judge(graph(vec![constant, resized])), Ok(()));
    }

    #[test]
    fn wrong_forms_are_found_in_inner_graphs_and_functions() {
        let unpool = |inputs: &[&str]| NodeProto::new("odd", "MaxUnpool", inputs, &["y"]);
        assert_eq!(judge(graph(vec![unpool(&["x", "i"])])), Ok(()));
        let wrong = unpool(&["x", "i", "shape"]);
        let branch = AttributeProto {
            g: Some(graph(vec![wrong.clone()])),
            ..AttributeProto::int("body", 0)
        };
        let outer = NodeProto::new("loop", "Loop", &["n"], &["y"]).with(vec![branch]);
        assert!(judge(graph(vec![outer])).unwrap_err().contains("\"odd\": MaxUnpool"));
        let mut model = ModelProto { graph: Some(graph(Vec::new())), ..ModelProto::default() };
        assert_eq!(check(&model).map_err(|refusal| refusal.to_string()), Ok(()));
        model.functions.push(models::onnx::messages::FunctionProto {
            node: vec![wrong],
            ..models::onnx::messages::FunctionProto::default()
        });
        assert!(check(&model).is_err());
    }

    #[test]
    fn products_of_attention_are_given_out_before_the_mask() {
        let attention = |outputs: &[&str], mode| {
            let mode = AttributeProto::int("qk_matmul_output_mode", mode);
            judge(graph(vec![
                NodeProto::new("odd", "Attention", &["q", "k", "v", "m"], outputs).with(vec![mode]),
            ]))
        };
        assert_eq!(attention(&["y", "", "", "qk"], 0), Ok(()));
        assert_eq!(attention(&["y"], 1), Ok(()));
        assert!(attention(&["y", "", "", "qk"], 1).unwrap_err().contains("mask"));
    }
}
