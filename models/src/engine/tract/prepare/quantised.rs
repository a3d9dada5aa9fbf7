//! Quantised operators that tract lacks, written as dequantise, operate, quantise.
//!
//! Source: ONNX Runtime `ContribOperators.md`, domain `com.microsoft`: the operators are defined
//! through the real values that the integers stand for. `QLinearMatMul` is ONNX's own; tract has
//! it, but not for a vector on the left.

use tract_onnx::pb::{GraphProto, NodeProto};

/// Replaces the quantised operators of the list below, node by node.
///
/// Others stay, to be refused by name.
pub(super) fn lower(graph: &mut GraphProto) {
    let nodes = std::mem::take(&mut graph.node);
    graph.node = Vec::with_capacity(nodes.len());
    for node in nodes {
        match operator(&node) {
            Some((operator, form)) => graph.node.extend(lowered(&node, operator, form)),
            None => graph.node.push(node),
        }
    }
}

/// How the inputs of an operator stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Triples of value, scale, zero point, as many as said; then the output's scale and zero
    /// point.
    OutputLast(usize),
    /// The output's scale and zero point, then triples.
    OutputFirst,
}

/// The operator on real values, for a quantised one that is known.
fn operator(node: &NodeProto) -> Option<(&'static str, Form)> {
    let last = node.attribute.iter().any(|each| each.name == "channels_last" && each.i != 0);
    match (node.domain.as_str(), node.op_type.as_str()) {
        ("com.microsoft", _) if !last => {}
        ("" | "ai.onnx", "QLinearMatMul") => {}
        _ => return None,
    }
    let (operator, form) = match node.op_type.as_str() {
        "QLinearAdd" => ("Add", Form::OutputLast(2)),
        "QLinearMul" => ("Mul", Form::OutputLast(2)),
        "QLinearMatMul" => ("MatMul", Form::OutputLast(2)),
        "QLinearAveragePool" => ("AveragePool", Form::OutputLast(1)),
        "QLinearGlobalAveragePool" => ("GlobalAveragePool", Form::OutputLast(1)),
        "QLinearSigmoid" => ("Sigmoid", Form::OutputLast(1)),
        "QLinearLeakyRelu" => ("LeakyRelu", Form::OutputLast(1)),
        "QLinearSoftmax" => ("Softmax", Form::OutputLast(1)),
        "QLinearConcat" => ("Concat", Form::OutputFirst),
        _ => return None,
    };
    let inputs = node.input.len();
    let fits = match form {
        Form::OutputLast(values) => (values * 3 + 1..=values * 3 + 2).contains(&inputs),
        Form::OutputFirst => inputs >= 5 && (inputs - 2).is_multiple_of(3),
    };
    fits.then_some((operator, form))
}

/// The nodes in place of one: one dequantisation per value, the operator, one quantisation.
fn lowered(node: &NodeProto, operator: &str, form: Form) -> Vec<NodeProto> {
    let (values, output) = match form {
        Form::OutputLast(values) => node.input.split_at(values * 3),
        Form::OutputFirst => {
            let (output, values) = node.input.split_at(2);
            (values, output)
        }
    };
    let output_name = node.output.first().map_or("", String::as_str);
    let base = if node.name.is_empty() { output_name } else { &node.name };
    let mut nodes = Vec::with_capacity(values.len() / 3 + 2);
    let mut reals = Vec::new();
    for (index, triple) in values.chunks(3).enumerate() {
        let real = format!("{base}.real{index}");
        nodes.push(made(&real, "DequantizeLinear", triple.to_vec(), &real));
        reals.push(real);
    }
    let result = format!("{base}.real");
    let mut operation = made(&result, operator, reals, &result);
    operation.attribute =
        node.attribute.iter().filter(|each| keeps(operator, &each.name)).cloned().collect();
    nodes.push(operation);
    let inputs = std::iter::once(result).chain(output.iter().cloned()).collect();
    nodes.push(made(base, "QuantizeLinear", inputs, output_name));
    nodes
}

/// Whether an attribute of the quantised operator is also one of the operator on real values.
fn keeps(operator: &str, attribute: &str) -> bool {
    attribute != "channels_last" && !(operator == "Softmax" && attribute == "opset")
}

/// A node of ONNX's own domain; inputs that are left out at the end are not there.
fn made(name: &str, operator: &str, mut inputs: Vec<String>, output: &str) -> NodeProto {
    while inputs.last().is_some_and(String::is_empty) {
        inputs.pop();
    }
    NodeProto {
        name: name.to_owned(),
        op_type: operator.to_owned(),
        input: inputs,
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}
