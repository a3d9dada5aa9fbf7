//! Casts at the edge of a graph, for element types that host tensors lack.
//!
//! A test of 16-bit floats is fed 32-bit ones, which the graph casts, and gives such. What is
//! computed in between is the test's own.

use models::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeValue,
    ValueInfoProto,
};

use super::tensors::host;

/// What the name of an input or output ends with that stands for another one.
pub(crate) const SUFFIX: &str = ".host";

/// Puts casts before the first node and behind the last one, where they are needed.
pub(crate) fn cast(model: &mut ModelProto) {
    let graph = model.graph.as_mut().unwrap();
    let GraphProto { node, input, output, initializer, .. } = graph;
    let filled = |name: &str| initializer.iter().any(|tensor| tensor.name == name);
    let mut casts = 0;
    for input in input.iter_mut().filter(|input| !filled(&input.name)) {
        let inside = input.name.clone();
        if let Some((own, _)) = change(input) {
            node.insert(casts, cast_node(&input.name, &inside, own));
            casts += 1;
        }
    }
    for output in output {
        let inside = output.name.clone();
        if let Some((_, host)) = change(output) {
            node.push(cast_node(&inside, &output.name, host));
            casts += 1;
        }
    }
    if casts > 0 && model.opset().is_none() {
        let own = OperatorSetIdProto { domain: String::new(), version: Some(13) };
        model.opset_import.push(own);
    }
}

/// The name of the input or output that it stands for.
pub(crate) fn inside(name: &str) -> &str {
    name.strip_suffix(SUFFIX).unwrap_or(name)
}

/// Declares the host's element type under another name; both types, if they differ.
fn change(value: &mut ValueInfoProto) -> Option<(i32, i32)> {
    let Some(TypeValue::Tensor(tensor)) = value.r#type.as_mut()?.value.as_mut() else {
        return None;
    };
    let (own, host) = (tensor.elem_type, host(tensor.elem_type)?);
    if own == host {
        return None;
    }
    tensor.elem_type = host;
    value.name.push_str(SUFFIX);
    Some((own, host))
}

fn cast_node(from: &str, to: &str, element: i32) -> NodeProto {
    NodeProto {
        name: format!("cast of {from}"),
        op_type: "Cast".to_owned(),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![AttributeProto::int("to", i64::from(element))],
        ..NodeProto::default()
    }
}
