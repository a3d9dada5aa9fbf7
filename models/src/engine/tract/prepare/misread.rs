//! What tract 0.23 reads otherwise than ONNX means it: attributes that it does not look at, and
//! rules of old operator sets. It would answer with other numbers and say nothing.

use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

use crate::graph::GraphError;

/// `TensorProto.DataType.FLOAT`
const FLOAT: i64 = 1;
/// `TensorProto.DataType.UINT8`
const UINT8: i64 = 2;

/// The first operator set in which shapes are broadcast without attributes that say how.
const BROADCASTING: i64 = 7;

/// The first operator set in which a scan has no batch of its own.
const SCAN_WITHOUT_BATCH: i64 = 9;

/// Refuses a node that tract would compute wrongly.
///
/// `opset` is the version of ONNX's own operator set that the model uses.
pub(super) fn check(node: &NodeProto, graph: &GraphProto, opset: i64) -> Result<(), GraphError> {
    let problem = match node.op_type.as_str() {
        "RNN" | "GRU" | "LSTM" => recurrence(node),
        "Attention" => attention(node),
        "Celu" | "Swish" => alpha(node),
        "SpaceToDepth" => text(node, "mode")
            .filter(|mode| mode != "DCR")
            .map(|mode| format!("expected mode DCR, found {mode}")),
        "QuantizeLinear" | "DequantizeLinear" => quantisation(node),
        "PRelu" if opset < BROADCASTING => slope(node, graph),
        "Scan" if opset < SCAN_WITHOUT_BATCH => {
            Some(old(opset, "a scan with a batch", SCAN_WITHOUT_BATCH))
        }
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Greater"
        | "Less"
            if opset < BROADCASTING && !last_axes(node, graph) =>
        {
            Some(old(opset, "shapes that are broadcast from an axis", BROADCASTING))
        }
        _ => None,
    };
    match problem {
        Some(problem) => Err(GraphError::Node {
            node: super::name(node),
            problem: format!("operator {}: {problem}", node.op_type),
        }),
        None => Ok(()),
    }
}

/// Gates have their usual functions, and one direction is forward.
fn recurrence(node: &NodeProto) -> Option<String> {
    if text(node, "direction").as_deref() == Some("reverse") {
        let problem = "expected direction forward or bidirectional, found reverse";
        return Some(format!("{problem}: export the model with the sequence reversed before it"));
    }
    let usual: &[&str] = match node.op_type.as_str() {
        "RNN" => &["Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Sigmoid", "Tanh", "Tanh"],
    };
    let found = attribute(node, "activations").map_or(&[][..], |each| &each.strings);
    let as_usual = |(at, name): (usize, &Vec<u8>)| {
        name.eq_ignore_ascii_case(usual[at % usual.len()].as_bytes())
    };
    if !found.iter().enumerate().all(as_usual) {
        let found: Vec<_> = found.iter().map(|name| String::from_utf8_lossy(name)).collect();
        return Some(format!(
            "expected the activations {}, found {}",
            usual.join(", "),
            found.join(", ")
        ));
    }
    if attribute(node, "clip").is_some() {
        return Some("expected no attribute clip, found one".to_owned());
    }
    let forget = integer(node, "input_forget");
    (forget != 0).then(|| format!("expected input_forget 0, found {forget}"))
}

/// Every key counts, or those up to the query where nothing came before.
fn attention(node: &NodeProto) -> Option<String> {
    if node.domain == "com.microsoft" {
        return Some("expected ONNX's own attention, found com.microsoft's".to_owned());
    }
    for window in ["left_window_size", "right_window_size"] {
        let size = attribute(node, window).map_or(-1, |each| each.i);
        if size >= 0 {
            return Some(format!("expected {window} -1 (every key), found {size}"));
        }
    }
    let past = node.input.get(4).is_some_and(|input| !input.is_empty());
    (past && integer(node, "is_causal") != 0)
        .then(|| "expected no past keys where is_causal is set, found some".to_owned())
}

fn alpha(node: &NodeProto) -> Option<String> {
    let alpha = attribute(node, "alpha").map_or(1.0, |each| each.f);
    ((alpha - 1.0).abs() > 0.0).then(|| format!("expected alpha 1, found {alpha}"))
}

/// Real numbers are `FLOAT`, quantised ones have the zero point's type or are `UINT8`.
fn quantisation(node: &NodeProto) -> Option<String> {
    let output = integer(node, "output_dtype");
    let precision = integer(node, "precision");
    let expected = if node.op_type == "QuantizeLinear" { UINT8 } else { FLOAT };
    let zero_point = node.input.get(2).is_some_and(|input| !input.is_empty());
    if output != 0 && output != expected && !(zero_point && expected == UINT8) {
        return Some(format!("expected output_dtype {expected}, found {output}"));
    }
    (precision != 0 && precision != FLOAT)
        .then(|| format!("expected precision {FLOAT}, found {precision}"))
}

/// A slope for each channel would be taken for one for each column.
fn slope(node: &NodeProto, graph: &GraphProto) -> Option<String> {
    let name = node.input.get(1)?;
    let slope = graph.initializer.iter().find(|tensor| tensor.name == *name);
    let one = slope.is_some_and(|tensor| tensor.dims.iter().all(|extent| *extent == 1));
    let problem = "expected one slope for all channels in operator sets below";
    (!one).then(|| format!("{problem} {BROADCASTING}: export the model with a newer one"))
}

/// Whether the second input is broadcast from where its axes are the last ones, as tract does.
fn last_axes(node: &NodeProto, graph: &GraphProto) -> bool {
    let Some(axis) = attribute(node, "axis").map(|each| each.i) else { return true };
    let rank = |at: usize| {
        let name = node.input.get(at)?;
        let constant = graph.initializer.iter().find(|tensor| tensor.name == *name);
        let declared = || {
            let value = graph.input.iter().chain(&graph.value_info).find(|it| it.name == *name)?;
            let Some(Value::TensorType(tensor)) = &value.r#type.as_ref()?.value else {
                return None;
            };
            Some(tensor.shape.as_ref()?.dim.len())
        };
        i64::try_from(constant.map(|tensor| tensor.dims.len()).or_else(declared)?).ok()
    };
    let (Some(first), Some(second)) = (rank(0), rank(1)) else { return axis == -1 };
    (if axis < 0 { axis + first } else { axis }) == first - second
}

fn old(opset: i64, what: &str, first: i64) -> String {
    format!(
        "operator set {opset} means {what}: export the model with operator set {first} or newer"
    )
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|each| each.name == name)
}

fn integer(node: &NodeProto, name: &str) -> i64 {
    attribute(node, name).map_or(0, |each| each.i)
}

fn text(node: &NodeProto, name: &str) -> Option<String> {
    attribute(node, name).map(|each| String::from_utf8_lossy(&each.s).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::TensorProto;

    /// Sets an attribute.
    type Set = fn(&mut AttributeProto);

    fn node(operator: &str, attributes: &[(&str, Set)]) -> NodeProto {
        let attribute = attributes.iter().map(|(name, set)| {
            let mut attribute =
                AttributeProto { name: (*name).to_owned(), ..AttributeProto::default() };
            set(&mut attribute);
            attribute
        });
        NodeProto {
            name: "it".to_owned(),
            op_type: operator.to_owned(),
            attribute: attribute.collect(),
            input: vec!["x".to_owned(), "y".to_owned()],
            ..NodeProto::default()
        }
    }

    fn refusal(node: &NodeProto, opset: i64) -> Option<String> {
        let slope = TensorProto { name: "y".to_owned(), dims: vec![3], ..TensorProto::default() };
        let graph = GraphProto { initializer: vec![slope], ..GraphProto::default() };
        check(node, &graph, opset).err().map(|error| error.to_string())
    }

    #[test]
    fn what_tract_does_not_look_at_is_refused() {
        let reverse: Set = |each| each.s = b"reverse".to_vec();
        let relu: Set = |each| each.strings = vec![b"Relu".to_vec()];
        let one: Set = |each| each.i = 1;
        let half: Set = |each| each.f = 0.5;
        let cases: [(&str, &str, Set, i64, &str); 17] = [
            ("LSTM", "direction", reverse, 13, "found reverse"),
            ("GRU", "direction", reverse, 13, "found reverse"),
            ("RNN", "activations", relu, 13, "activations Tanh, found Relu"),
            ("LSTM", "clip", half, 13, "no attribute clip"),
            ("LSTM", "input_forget", one, 13, "found 1"),
            ("Attention", "left_window_size", one, 25, "left_window_size -1"),
            ("Attention", "right_window_size", one, 25, "right_window_size -1"),
            ("Celu", "alpha", half, 12, "expected alpha 1, found 0.5"),
            ("Swish", "alpha", half, 24, "expected alpha 1, found 0.5"),
            ("SpaceToDepth", "mode", |each| each.s = b"CRD".to_vec(), 28, "found CRD"),
            ("QuantizeLinear", "output_dtype", |each| each.i = 3, 21, "output_dtype 2, found 3"),
            ("DequantizeLinear", "output_dtype", |each| each.i = 10, 23, "found 10"),
            ("QuantizeLinear", "precision", |each| each.i = 10, 23, "precision 1, found 10"),
            ("PRelu", "none", one, 6, "one slope"),
            ("Scan", "none", one, 8, "operator set 9 or newer"),
            ("Add", "axis", one, 6, "operator set 7 or newer"),
            ("Pow", "axis", one, 6, "operator set 7 or newer"),
        ];
        for (operator, name, set, opset, expected) in cases {
            let said = refusal(&node(operator, &[(name, set)]), opset).unwrap_or_default();
            let begins = format!("node \"it\": operator {operator}: ");
            assert!(said.starts_with(&begins) && said.contains(expected), "{operator}: {said}");
        }
    }

    /// `y` has one axis; `x` has as many as asked.
    #[test]
    fn old_broadcasts_of_the_last_axes_are_let_through() {
        let slope = TensorProto { name: "y".to_owned(), dims: vec![3], ..TensorProto::default() };
        let picture = TensorProto { name: "x".to_owned(), dims: vec![1, 3, 3, 3], ..slope.clone() };
        let graph = GraphProto { initializer: vec![slope, picture], ..GraphProto::default() };
        let add = |axis: i64| {
            let mut add = node("Add", &[("axis", |_| ())]);
            add.attribute[0].i = axis;
            check(&add, &graph, 6)
        };
        assert_eq!(add(3), Ok(()));
        assert_eq!(add(-1), Ok(()));
        for axis in [1, -3] {
            let said = add(axis).unwrap_err().to_string();
            assert!(said.contains("broadcast from an axis"), "{said}");
        }
    }

    #[test]
    fn attention_with_a_past_is_refused_where_it_is_causal() {
        let mut past = node("Attention", &[("is_causal", |each| each.i = 1)]);
        assert_eq!(refusal(&past, 24), None);
        past.input = ["q", "k", "v", "", "past"].map(str::to_owned).to_vec();
        let said = refusal(&past, 24).unwrap_or_default();
        assert!(said.contains("expected no past keys"), "{said}");
        past.attribute.clear();
        assert_eq!(refusal(&past, 24), None);
        past.domain = "com.microsoft".to_owned();
        let said = refusal(&past, 24).unwrap_or_default();
        assert!(said.contains("found com.microsoft's"), "{said}");
    }

    #[test]
    fn what_means_the_same_is_let_through() {
        let usual: Set =
            |each| each.strings = [&b"Sigmoid"[..], b"tanh"].map(<[u8]>::to_vec).to_vec();
        let cases: [(&str, &str, Set, i64); 7] = [
            ("GRU", "activations", usual, 13),
            ("LSTM", "direction", |each| each.s = b"bidirectional".to_vec(), 13),
            ("Celu", "alpha", |each| each.f = 1.0, 12),
            ("SpaceToDepth", "blocksize", |each| each.i = 2, 13),
            ("PRelu", "none", |each| each.i = 1, 7),
            ("Scan", "none", |each| each.i = 1, 9),
            ("Add", "broadcast", |each| each.i = 1, 6),
        ];
        for (operator, name, set, opset) in cases {
            assert_eq!(refusal(&node(operator, &[(name, set)]), opset), None, "{operator}");
        }
        let mut quantise = node("QuantizeLinear", &[("output_dtype", |each| each.i = 3)]);
        quantise.input.push("zero_point".to_owned());
        assert_eq!(refusal(&quantise, 21), None);
    }
}
