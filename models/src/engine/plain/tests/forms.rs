//! Operators one by one, in the forms that need care.

use super::*;
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};

fn node(
    operator: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto::new(&format!("the {operator}"), operator, inputs, &[output]).with(attribute)
}

fn tensor(name: &str, dims: &[usize]) -> TensorProto {
    let len: u16 = dims.iter().product::<usize>().try_into().unwrap();
    let value = |at: u16| f32::from(at.wrapping_mul(31) % 13) / 8.0 - 0.7;
    TensorProto::from_f32(name, dims, &(0..len).map(value).collect::<Vec<_>>())
}

/// A model of these nodes from `x` to `y`, whose value `h` is put through a dense layer in the
/// end when `flat` says how many elements it has.
fn model(
    example: &[usize],
    mut nodes: Vec<NodeProto>,
    mut initializer: Vec<TensorProto>,
    flat: Option<usize>,
) -> Vec<u8> {
    let mut classes = 2;
    if let Some(flat) = flat {
        nodes.push(node("Flatten", &["h"], "flat", Vec::new()));
        let dense = node("Gemm", &["flat", "dense", "dense bias"], "y", Vec::new());
        nodes.push(NodeProto { name: "the last one".to_owned(), ..dense });
        initializer.extend([tensor("dense", &[flat, 2]), tensor("dense bias", &[2])]);
    } else {
        classes = initializer[0].dims.last().map_or(2, |last| usize::try_from(*last).unwrap());
    }
    let graph = GraphProto {
        node: nodes,
        initializer,
        input: vec![ValueInfoProto::batched("x", "n", example)],
        output: vec![ValueInfoProto::batched("y", "n", &[classes])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    }
    .to_bytes()
}

#[test]
fn kernels_of_three_by_three_keep_their_meaning_with_any_padding() {
    for (pads, stride, dilation, side) in [
        ([0, 0, 0, 0], 1, 1, 3),
        ([1, 1, 1, 1], 1, 1, 5),
        ([2, 0, 0, 2], 1, 1, 5),
        ([2, 2, 2, 2], 1, 2, 5),
        ([1, 1, 1, 1], 1, 2, 3),
        ([0, 1, 1, 0], 2, 1, 2),
    ] {
        let conv = vec![
            AttributeProto::ints("pads", &pads),
            AttributeProto::ints("strides", &[stride; 2]),
            AttributeProto::ints("dilations", &[dilation; 2]),
        ];
        let nodes = vec![node("Conv", &["x", "w"], "h", conv)];
        let onnx =
            model(&[2, 5, 5], nodes, vec![tensor("w", &[4, 2, 3, 3])], Some(4 * side * side));
        check(&format!("pads {pads:?}, dilation {dilation}"), &onnx);
    }
}

#[test]
fn pools_that_round_up_keep_their_meaning() {
    let window = |ceil, include| {
        vec![
            AttributeProto::ints("kernel_shape", &[3, 2]),
            AttributeProto::ints("strides", &[2, 2]),
            AttributeProto::ints("pads", &[1, 0, 1, 0]),
            AttributeProto::int("ceil_mode", ceil),
            AttributeProto::int("count_include_pad", include),
        ]
    };
    for (operator, ceil, include, elements) in
        [("MaxPool", 0, 0, 18), ("MaxPool", 1, 0, 32), ("AveragePool", 0, 1, 18)]
    {
        let mut attributes = window(ceil, include);
        if operator == "MaxPool" {
            attributes.pop();
        }
        let nodes = vec![node(operator, &["x"], "h", attributes)];
        check(operator, &model(&[2, 6, 7], nodes, Vec::new(), Some(elements)));
    }
    let nodes = vec![node("AveragePool", &["x"], "h", window(1, 1))];
    let onnx = model(&[2, 6, 7], nodes, Vec::new(), Some(32));
    let refused = Plain::read(&onnx).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("the AveragePool"), "{refused}");
}

#[test]
fn functions_keep_their_meaning() {
    let bounds = |name: &str, value: f32| TensorProto::from_f32(name, &[], &[value]);
    for (operator, least, most) in [
        ("Clip", 0.0, 6.0),
        ("Clip", -0.25, 0.5),
        ("Clip", f32::NEG_INFINITY, 0.3),
        ("Clip", -0.3, f32::INFINITY),
    ] {
        let nodes = vec![node(operator, &["x", "least", "most"], "h", Vec::new())];
        let tensors = vec![bounds("least", least), bounds("most", most)];
        check(&format!("{least} to {most}"), &model(&[9], nodes, tensors, Some(9)));
    }
    for operator in ["LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Tanh", "Sigmoid", "Relu"] {
        let nodes = vec![node(operator, &["x"], "h", Vec::new())];
        check(operator, &model(&[9], nodes, Vec::new(), Some(9)));
    }
}

#[test]
fn products_and_sums_keep_their_meaning() {
    let scaled = vec![
        AttributeProto::float("alpha", 0.5),
        AttributeProto::float("beta", 2.0),
        AttributeProto::int("transB", 1),
    ];
    let nodes = vec![node("Gemm", &["x", "w", "b"], "h", scaled)];
    check("Gemm", &model(&[5], nodes, vec![tensor("w", &[3, 5]), tensor("b", &[1])], Some(3)));
    let nodes = vec![node("MatMul", &["x", "w"], "h", Vec::new())];
    check("MatMul", &model(&[4, 5], nodes, vec![tensor("w", &[5, 3])], Some(12)));
    let nodes = vec![node("MatMul", &["x", "w"], "y", Vec::new())];
    check("MatMul at the end", &model(&[5], nodes, vec![tensor("w", &[5, 3])], None));
    for (operator, axes, elements) in [
        ("ReduceMean", &[1_i64][..], 20),
        ("ReduceMean", &[2], 15),
        ("ReduceMean", &[1, 3], 4),
        ("ReduceMean", &[1, 2, 3], 1),
        ("ReduceMean", &[2, 3], 3),
    ] {
        let axes = vec![AttributeProto::ints("axes", axes), AttributeProto::int("keepdims", 0)];
        let label = format!("{operator} {axes:?}");
        let nodes = if elements == 1 {
            // No axis but the batch's would be left.
            let kept = vec![axes[0].clone()];
            vec![node(operator, &["x"], "h", kept)]
        } else {
            vec![node(operator, &["x"], "h", axes)]
        };
        check(&label, &model(&[3, 4, 5], nodes, Vec::new(), Some(elements)));
    }
    let softmax = vec![AttributeProto::int("axis", 1)];
    let nodes = vec![node("Softmax", &["x"], "h", softmax)];
    check("Softmax", &model(&[3, 4], nodes, Vec::new(), Some(12)));
}

#[test]
fn constants_of_any_rank_are_broadcast() {
    for dims in [&[][..], &[1], &[4, 1, 1], &[1, 4, 1, 1], &[5], &[1, 3, 5]] {
        for (operator, inputs) in [("Sub", ["x", "c"]), ("Sub", ["c", "x"]), ("Mul", ["x", "c"])] {
            let nodes = vec![node(operator, &inputs, "h", Vec::new())];
            let onnx = model(&[4, 3, 5], nodes, vec![tensor("c", dims)], Some(60));
            check(&format!("{operator} {dims:?}"), &onnx);
        }
    }
}

#[test]
fn what_has_no_plain_form_is_refused_by_name() {
    let logarithm = vec![node("LogSoftmax", &["x"], "h", Vec::new())];
    let crop = vec![node("Slice", &["x", "from", "to", "from"], "h", Vec::new())];
    let bounds = vec![TensorProto::from_i64("from", &[1]), TensorProto::from_i64("to", &[3])];
    let strange = vec![node("Erf", &["x"], "h", Vec::new())];
    for (nodes, tensors, elements, name) in [
        (logarithm, Vec::new(), 4, "the LogSoftmax"),
        (crop, bounds, 2, "the Slice"),
        (strange, Vec::new(), 4, "the Erf"),
    ] {
        let refused = Plain::read(&model(&[4], nodes, tensors, Some(elements))).map(|_| ());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(name) && !refused.contains("training"), "{refused}");
    }
}
