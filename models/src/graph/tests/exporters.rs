//! What exporters write around a network: last functions, labels, moved axes, padding.

use super::*;

fn operators(graph: &Graph) -> Vec<String> {
    graph.nodes.iter().map(|node| node.op.label()).collect()
}

#[test]
fn the_last_softmax_or_sigmoid_is_left_to_the_loss() {
    for (operator, expected) in [
        ("Softmax", Op::Softmax { axis: 0, log: false }),
        ("LogSoftmax", Op::Softmax { axis: 0, log: true }),
        ("Sigmoid", Op::Activation(Activation::Sigmoid)),
    ] {
        let nodes = vec![
            node("MatMul", &["input", "w"], "h", Vec::new()),
            node(operator, &["h"], "s", Vec::new()),
            node("Identity", &["s"], "out", Vec::new()),
        ];
        let mut graph = Graph::read(&model(&[3], nodes, vec![floats("w", &[3, 2])])).unwrap();
        assert_eq!((graph.value(graph.output).name.as_str(), graph.nodes.len()), ("h", 1));
        assert_eq!(graph.last.as_ref().unwrap().op, expected);
        graph.with_last();
        assert_eq!(graph.value(graph.output).name, "s");
        assert_eq!(graph.nodes[1].op, expected);
    }
}

#[test]
fn a_softmax_that_nodes_take_is_computed() {
    let nodes = vec![
        node("Softmax", &["input"], "s", vec![AttributeProto::int("axis", 1)]),
        node("MatMul", &["s", "w"], "out", Vec::new()),
    ];
    let graph = Graph::read(&model(&[3], nodes, vec![floats("w", &[3, 2])])).unwrap();
    assert_eq!(operators(&graph), ["Softmax", "Gemm"]);
}

/// As skl2onnx writes a classifier of three classes, with its label.
#[test]
fn labels_and_named_probabilities_are_a_tail() {
    let mut zip = node("ZipMap", &["s"], "named", Vec::new());
    zip.domain = "ai.onnx.ml".to_owned();
    let nodes = vec![
        node("MatMul", &["input", "w"], "h", Vec::new()),
        node("Softmax", &["h"], "s", Vec::new()),
        node("ArgMax", &["s"], "place", Vec::new()),
        zip,
        node("Cast", &["place"], "out", vec![AttributeProto::int("to", 7)]),
    ];
    let mut proto = model(&[3], nodes, vec![floats("w", &[3, 2])]);
    let named = ValueInfoProto::batched("named", "n", &[2]);
    proto.graph.as_mut().unwrap().output.push(named);
    let graph = Graph::read(&proto).unwrap();
    assert_eq!(graph.value(graph.output).name, "h");
    assert_eq!(inference_model(&proto, &graph, Vec::new()).graph.unwrap().node.len(), 5);
}

/// As skl2onnx writes two classes: `1 - s` beside `s`.
#[test]
fn a_sigmoid_and_its_rest_are_two_classes() {
    let one = TensorProto::from_f32("one", &[], &[1.0]);
    let nodes = vec![
        node("MatMul", &["input", "w"], "h", Vec::new()),
        node("Sigmoid", &["h"], "s", Vec::new()),
        node("Sub", &["one", "s"], "rest", Vec::new()),
        node("Concat", &["rest", "s"], "out", vec![AttributeProto::int("axis", 1)]),
    ];
    let tensors = vec![floats("w", &[3, 1]), one];
    let graph = Graph::read(&model(&[3], nodes, tensors)).unwrap();
    assert_eq!(operators(&graph), ["Gemm", "Mul"]);
    assert_eq!(graph.value(graph.output).shape, Shape::batched(&[2]));
    assert_eq!(graph.last.as_ref().unwrap().op, Op::Softmax { axis: 0, log: false });
}

#[test]
fn axes_moved_back_and_forth_are_not_moved() {
    let perm = |axes: &[i64]| vec![AttributeProto::ints("perm", axes)];
    let nodes = |back: &[i64]| {
        vec![
            node("Transpose", &["input"], "rows", perm(&[0, 2, 3, 1])),
            node("Relu", &["rows"], "unused", Vec::new()),
            node("Transpose", &["rows"], "again", perm(back)),
            node("Flatten", &["again"], "flat", Vec::new()),
            node("MatMul", &["flat", "w"], "out", Vec::new()),
        ]
    };
    let read = |back| Graph::read(&model(&[2, 3, 4], nodes(back), vec![floats("w", &[24, 2])]));
    let graph = read(&[0, 3, 1, 2]).unwrap();
    assert_eq!(operators(&graph), ["Reshape", "Gemm"]);
    assert_eq!(graph.nodes[0].inputs, [graph.input]);
    let graph = read(&[0, 2, 3, 1]).unwrap();
    assert_eq!(graph.nodes[0].op, Op::Transpose { axes: vec![2, 0, 1] });
    assert_eq!(graph.nodes.len(), 3);
}

#[test]
fn padding_before_a_convolution_is_its_own() {
    let nodes = |pads: &str| {
        vec![
            node("Pad", &["input", pads], "wide", Vec::new()),
            node("Conv", &["wide", "k"], "c", vec![AttributeProto::ints("pads", &[1, 0, 0, 2])]),
            node("GlobalAveragePool", &["c"], "out", Vec::new()),
        ]
    };
    let tensors = |channels: usize| {
        vec![
            floats("k", &[2, channels, 3, 3]),
            TensorProto::from_i64("sides", &[0, 0, 1, 0, 0, 0, 0, 3]),
            TensorProto::from_i64("channels", &[0, 1, 0, 0, 0, 0, 0, 0]),
        ]
    };
    let graph = Graph::read(&model(&[1, 6, 6], nodes("sides"), tensors(1))).unwrap();
    assert_eq!(operators(&graph), ["Conv 3x3", "GlobalAveragePool"]);
    let Op::Conv { window, .. } = graph.nodes[0].op else { panic!("a convolution") };
    assert_eq!((window.begin, window.end), ([2, 0], [0, 5]));
    let graph = Graph::read(&model(&[1, 6, 6], nodes("channels"), tensors(2))).unwrap();
    assert_eq!(operators(&graph), ["Pad", "Conv 3x3", "GlobalAveragePool"]);
}

/// As PyTorch's newer exporter writes a convolution without a bias, unoptimized.
#[test]
fn computed_constants_become_tensors() {
    let nodes = vec![
        node("Shape", &["k"], "extents", vec![AttributeProto::int("end", 1)]),
        node("Expand", &["zero", "extents"], "bias", Vec::new()),
        node("Conv", &["input", "k", "bias"], "c", Vec::new()),
        node("BatchNormalization", &["c", "s", "b", "m", "v"], "n", Vec::new()),
        node("GlobalAveragePool", &["n"], "out", Vec::new()),
    ];
    let mut tensors = vec![floats("k", &[2, 1, 3, 3]), TensorProto::from_f32("zero", &[], &[0.0])];
    tensors.extend(["s", "b", "m", "v"].map(|name| floats(name, &[2])));
    let proto = model(&[1, 6, 6], nodes, tensors);
    let graph = Graph::read(&proto).unwrap();
    assert_eq!(names(&graph, Origin::Constant), ["bias"]);
    let folded = folded_model(&proto, &graph, Vec::new()).graph.unwrap();
    let left: Vec<_> = folded.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(left, ["Conv", "GlobalAveragePool"]);
    let bias = folded.initializer.iter().find(|tensor| tensor.name == "bias").unwrap();
    // 0.5 (0 - 0.5) / sqrt(0.5 + 1e-5) + 0.5
    let found = bias.to_f32().unwrap().1[0];
    assert!((found - 0.146_45).abs() < 1e-4, "{found}");
}

#[test]
fn transposed_weights_train_in_the_place_of_the_original() {
    let nodes = vec![
        node("Transpose", &["w"], "wt", vec![AttributeProto::ints("perm", &[1, 0])]),
        node("MatMul", &["input", "wt"], "out", Vec::new()),
    ];
    let w = TensorProto::from_f32("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let proto = model(&[3], nodes, vec![w]);
    let graph = Graph::read(&proto).unwrap();
    let weight = graph.values.iter().find(|value| value.origin == Origin::Weight).unwrap();
    assert_eq!((weight.name.as_str(), weight.shape.dims.as_slice()), ("wt", [3, 2].as_slice()));
    assert_eq!(weight.initial, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let trained = training_model(&proto, vec![TensorProto::from_f32("wt", &[3, 2], &[0.0; 6])]);
    let trained = trained.graph.unwrap();
    assert_eq!((trained.node.len(), trained.initializer.len()), (1, 1));
}

/// As the halves of `ShuffleNet` are written by either exporter.
#[test]
fn parts_are_taken_by_slices_and_splits() {
    let axis = |at: i64| vec![AttributeProto::int("axis", at)];
    let mut split = node("Split", &["input"], "first", axis(1));
    split.output.push("second".to_owned());
    let nodes = vec![
        split,
        node("Slice", &["first", "one", "end", "rows"], "lower", Vec::new()),
        node("Concat", &["second", "lower"], "both", axis(2)),
        node("Flatten", &["both"], "flat", Vec::new()),
        node("MatMul", &["flat", "w"], "out", Vec::new()),
    ];
    let tensors = vec![
        TensorProto::from_i64("one", &[1]),
        TensorProto::from_i64("end", &[i64::MAX]),
        TensorProto::from_i64("rows", &[-2]),
        floats("w", &[40, 2]),
    ];
    let graph = Graph::read(&model(&[4, 3, 4], nodes, tensors)).unwrap();
    let crops = graph.nodes.iter().filter(|node| matches!(node.op, Op::Crop { .. }));
    let crops = crops.map(|node| (&node.op, &graph.value(node.output).shape.dims));
    let crop = |begin: &[usize]| Op::Crop { begin: begin.to_vec() };
    let expected = [
        (&crop(&[2, 0, 0]), &vec![2, 3, 4]),
        (&crop(&[0, 0, 0]), &vec![2, 3, 4]),
        (&crop(&[0, 1, 0]), &vec![2, 2, 4]),
    ];
    assert!(crops.eq(expected));
}
