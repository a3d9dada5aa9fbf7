//! Shapes and the arithmetic on them, and operators that read their attributes in several ways.

use super::*;

fn int_tensor(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: Vec::new(), ..TensorProto::from_i64(name, &[value]) }
}

/// `view(x.size(0), -1)` as PyTorch writes it.
fn flattened_by_shape() -> (Vec<NodeProto>, Vec<TensorProto>) {
    let nodes = vec![
        node("Shape", &["input"], "shape", Vec::new()),
        node("Gather", &["shape", "zero"], "size", vec![AttributeProto::int("axis", 0)]),
        node("Unsqueeze", &["size", "axes"], "batch", Vec::new()),
        node("Concat", &["batch", "rest"], "target", vec![AttributeProto::int("axis", 0)]),
        node("Cast", &["target"], "cast", vec![AttributeProto::int("to", 7)]),
        node("Reshape", &["input", "cast"], "flat", Vec::new()),
        node("MatMul", &["flat", "w"], "out", Vec::new()),
    ];
    let tensors = vec![
        int_tensor("zero", 0),
        TensorProto::from_i64("axes", &[0]),
        TensorProto::from_i64("rest", &[-1]),
        floats("w", &[24, 2]),
    ];
    (nodes, tensors)
}

#[test]
fn shapes_are_computed_while_reading() {
    for fixed in [None, Some(5)] {
        let (nodes, tensors) = flattened_by_shape();
        let mut proto = model(&[2, 3, 4], nodes, tensors);
        if let Some(batch) = fixed {
            fix_batch(&mut proto, batch);
        }
        let graph = Graph::read(&proto).unwrap();
        assert_eq!(graph.nodes.len(), 2, "only Reshape and MatMul are left");
        assert_eq!(graph.value(graph.nodes[0].output).shape, Shape::batched(&[24]));
        assert_eq!(names(&graph, Origin::Weight), ["w"]);
    }
}

#[test]
fn numbers_are_sliced_and_computed_with() {
    let attributes = || vec![AttributeProto::int("axis", 0)];
    let nodes = vec![
        node("Shape", &["input"], "shape", Vec::new()),
        node("Identity", &["shape"], "same", Vec::new()),
        node("Slice", &["same", "one", "end"], "sides", Vec::new()),
        node("Gather", &["sides", "first"], "side", attributes()),
        node("Mul", &["side", "two"], "double", Vec::new()),
        node("Div", &["double", "two"], "half", Vec::new()),
        node("Sub", &["half", "one"], "less", Vec::new()),
        node("Add", &["less", "one"], "more", Vec::new()),
        node("Squeeze", &["more"], "single", Vec::new()),
        node("Unsqueeze", &["single", "zero"], "again", Vec::new()),
        node("Concat", &["minus", "again", "minus_not"], "target", attributes()),
        node("Reshape", &["input", "target"], "wide", Vec::new()),
        node("Flatten", &["wide"], "flat", Vec::new()),
        node("MatMul", &["flat", "w"], "out", Vec::new()),
    ];
    let number = |name: &str, value: i64| TensorProto::from_i64(name, &[value]);
    let tensors = vec![
        number("one", 1),
        number("end", i64::MAX),
        number("first", 0),
        number("two", 2),
        number("zero", 0),
        number("minus", -1),
        number("minus_not", 12),
        floats("w", &[24, 2]),
    ];
    let graph = Graph::read(&model(&[2, 3, 4], nodes, tensors)).unwrap();
    assert_eq!(graph.value(graph.nodes[0].output).shape, Shape::batched(&[2, 12]));
}

#[test]
fn what_depends_on_the_batch_is_refused() {
    let (mut nodes, mut tensors) = flattened_by_shape();
    nodes[4] = node("Mul", &["target", "rest"], "cast", Vec::new());
    let found = problem(&model(&[2, 3, 4], nodes, tensors.clone()));
    assert_eq!(found, "node \"the Mul\": [n, -1] and [-1]: the result is not known beforehand");
    let gather = node("Gather", &["input", "zero"], "out", Vec::new());
    let found = problem(&model(&[2, 3, 4], vec![gather], tensors.clone()));
    assert!(found.contains("only constants and shapes can be taken apart"), "{found}");
    let (nodes, _) = flattened_by_shape();
    tensors[2] = TensorProto::from_i64("rest", &[7, -1]);
    let found = problem(&model(&[2, 3, 4], nodes, tensors));
    assert!(found.contains("shape [n, 7, -1] does not keep the 24 elements"), "{found}");
}

/// The operator of a node between the input and a product.
fn between(operator: NodeProto, tensors: &[TensorProto], opset: i64) -> Result<Op, GraphError> {
    let nodes = vec![
        operator,
        node("Flatten", &["x"], "flat", Vec::new()),
        node("MatMul", &["flat", "w"], "out", Vec::new()),
    ];
    let mut tensors = tensors.to_vec();
    tensors.push(floats("w", &[24, 2]));
    let mut proto = model(&[2, 3, 4], nodes, tensors);
    proto.opset_import[0].version = Some(opset);
    Graph::read(&proto).map(|graph| graph.nodes[0].op.clone())
}

#[test]
fn bounds_of_clip_are_attributes_or_inputs() {
    let scalar = |name: &str, value: f32| TensorProto::from_f32(name, &[], &[value]);
    let tensors = [scalar("low", 0.0), scalar("high", 6.0)];
    let clip = |least, most| Ok(Op::Activation(Activation::Clip { least, most }));
    let inputs = node("Clip", &["input", "low", "high"], "x", Vec::new());
    assert_eq!(between(inputs, &tensors, 17), clip(0.0, 6.0));
    let one = node("Clip", &["input", "", "high"], "x", Vec::new());
    assert_eq!(between(one, &tensors, 17), clip(f32::NEG_INFINITY, 6.0));
    let attributes = vec![AttributeProto::float("min", -1.0), AttributeProto::float("max", 1.0)];
    assert_eq!(between(node("Clip", &["input"], "x", attributes), &[], 10), clip(-1.0, 1.0));
    let wrong = node("Clip", &["input", "high", "low"], "x", Vec::new());
    assert!(between(wrong, &tensors, 17).unwrap_err().to_string().contains("bounds 6 and 0"));
}

#[test]
fn axes_are_moved_and_joined() {
    let perm = |axes: &[i64]| vec![AttributeProto::ints("perm", axes)];
    let transpose = node("Transpose", &["input"], "x", perm(&[0, 2, 3, 1]));
    assert_eq!(between(transpose, &[], 17), Ok(Op::Transpose { axes: vec![1, 2, 0] }));
    let moved = node("Transpose", &["input"], "x", perm(&[1, 0, 2, 3]));
    assert!(between(moved, &[], 17).unwrap_err().to_string().contains("the batch's first"));
    let join = |axis: i64| {
        let attributes = vec![AttributeProto::int("axis", axis)];
        let nodes = vec![
            node("Concat", &["input", "input"], "x", attributes),
            node("Flatten", &["x"], "flat", Vec::new()),
            node("MatMul", &["flat", "w"], "out", Vec::new()),
        ];
        Graph::read(&model(&[2, 3, 4], nodes, vec![floats("w", &[48, 2])]))
    };
    let shape =
        |axis: i64| join(axis).map(|graph| graph.value(graph.nodes[0].output).shape.clone());
    assert_eq!(shape(1), Ok(Shape::batched(&[4, 3, 4])));
    assert_eq!(shape(-1), Ok(Shape::batched(&[2, 3, 8])));
    assert!(shape(0).unwrap_err().to_string().contains("examples cannot be joined"));
}

#[test]
fn axes_of_one_come_and_go() {
    let nodes = |version: &[&str]| {
        vec![
            node("GlobalAveragePool", &["input"], "mean", Vec::new()),
            node("Squeeze", version, "flat", vec![AttributeProto::ints("axes", &[2, -1])]),
            node("Unsqueeze", &["flat"], "open", vec![AttributeProto::ints("axes", &[-1])]),
            node("Squeeze", &["open"], "shut", vec![AttributeProto::ints("axes", &[2])]),
            node("MatMul", &["shut", "w"], "out", Vec::new()),
        ]
    };
    let proto = model(&[2, 3, 4], nodes(&["mean"]), vec![floats("w", &[2, 2])]);
    let graph = Graph::read(&proto).unwrap();
    let shapes: Vec<_> =
        graph.nodes.iter().map(|node| graph.value(node.output).shape.dims.clone()).collect();
    assert_eq!(shapes, [vec![2, 1, 1], vec![2], vec![2, 1], vec![2], vec![2]]);
    let axes = TensorProto::from_i64("axes", &[1]);
    let proto = model(&[2, 3, 4], nodes(&["mean", "axes"]), vec![floats("w", &[2, 2]), axes]);
    assert!(problem(&proto).contains("to have the extent 1, found [n, 2, 1, 1]"));
}
