//! What cannot be trained is refused before any work, by the node's name and with what to do.

use super::*;

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, values)
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: Some(value.as_bytes().to_vec()),
        r#type: 3,
        ..AttributeProto::default()
    }
}

/// Tensors that the nodes below may take.
fn tensors() -> Vec<TensorProto> {
    vec![
        floats("w", &[4, 2]),
        floats("kernel", &[2, 2, 3, 3]),
        floats("kernel_1d", &[2, 2, 3]),
        floats("vector", &[4]),
        floats("scalar", &[]),
        floats("square", &[4, 4]),
        floats("p", &[2]),
        floats("q", &[2]),
        TensorProto::from_i64("one", &[1]),
        TensorProto::from_i64("zero", &[0]),
        TensorProto::from_i64("pads", &[0, 0, -1, 0, 0, 0, 0, 0]),
        TensorProto::from_i64("more_examples", &[1, 0, 0, 0, 0, 0, 0, 0]),
        TensorProto::from_i64("seven", &[-1, 7]),
    ]
}

/// An operator with inputs, attributes, an operator set, and what the error has to say.
type Refused = (&'static str, &'static [&'static str], Vec<AttributeProto>, i64, &'static str);

/// On an input of `[n, 2, 4, 4]`.
fn refused() -> Vec<Refused> {
    let none = Vec::new;
    vec![
        ("Clip", &["input", "vector"], none(), 17, "\"vector\": expected one constant float"),
        ("Conv", &["input", "kernel"], vec![int("group", 2)], 17, "2 channels in 2 groups"),
        ("Conv", &["input", "kernel_1d"], none(), 17, "a weight of 4 axes"),
        ("Conv", &["input", "kernel"], vec![ints("strides", &[0, 1])], 17, "strides: expected 1"),
        ("Conv", &["input", "kernel"], vec![ints("pads", &[-1, 0, 0, 0])], 17, "pads: expected 0"),
        ("Conv", &["input", "kernel"], vec![ints("dilations", &[9, 9])], 17, "kernel fits in"),
        ("Conv", &["input", "kernel"], vec![text("auto_pad", "MOST")], 17, "\"MOST\" is not known"),
        ("MaxPool", &["input"], none(), 17, "kernel_shape []: expected two numbers"),
        ("MaxPool", &["input"], vec![ints("kernel_shape", &[2])], 17, "expected two numbers"),
        (
            "AveragePool",
            &["input"],
            vec![ints("kernel_shape", &[2, 2]), ints("pads", &[2, 0, 0, 0])],
            17,
            "pads must be smaller than the kernel",
        ),
        ("Gemm", &["input", "w"], none(), 17, "expected [n, d], found [n, 2, 4, 4]"),
        ("Gemm", &["input", "w"], vec![int("transA", 1)], 17, "transA is not supported"),
        ("MatMul", &["input", "input"], none(), 17, "to be a weight of 2 axes"),
        ("Add", &["input", "kernel"], none(), 17, "a shape that fits [n, 2, 4, 4]"),
        ("BatchNormalization", &["input", "w", "w", "w", "w"], none(), 17, "a weight of 1 axes"),
        ("BatchNormalization", &["input", "p", "p", "q", "q"], none(), 17, "are one initializer"),
        ("Dropout", &["input", "vector"], none(), 17, "expected one constant float"),
        ("ReduceMean", &["input", "vector"], none(), 18, "expected constant integers"),
        ("ReduceMean", &["input"], vec![ints("axes", &[0, 2])], 13, "examples are kept apart"),
        ("ReduceSum", &["input"], none(), 13, "examples are kept apart"),
        (
            "ReduceMean",
            &["input"],
            vec![ints("axes", &[1, 2, 3]), int("keepdims", 0)],
            13,
            "set keepdims to 1",
        ),
        ("Softmax", &["input"], vec![int("axis", 0)], 17, "axis 0: examples are kept apart"),
        ("Softmax", &["input"], vec![int("axis", 7)], 17, "axes [7]: there are 4"),
        ("Softmax", &["input"], vec![int("axis", 2)], 11, "export with operator set 13 or newer"),
        ("Flatten", &["input"], vec![int("axis", 2)], 17, "only 1 keeps examples apart"),
        ("Reshape", &["input", "seven"], none(), 17, "does not keep the 32 elements"),
        ("Reshape", &["input", "vector"], none(), 17, "expected constant integers"),
        ("Transpose", &["input"], vec![ints("perm", &[1, 0, 2, 3])], 17, "the batch's first"),
        ("Squeeze", &["input", "one"], none(), 17, "axes [1] to have the extent 1"),
        ("Concat", &["input", "input"], vec![int("axis", 0)], 17, "examples cannot be joined"),
        ("Pad", &["input", "pads"], none(), 17, "expected 8 numbers from 0 on"),
        ("Pad", &["input", "more_examples"], none(), 17, "examples cannot be added"),
        ("Pad", &["input", "pads"], vec![text("mode", "reflect")], 17, "pad with a constant"),
        ("Slice", &["input", "one", "one", "zero"], none(), 17, "each axis but the batch's"),
        ("Split", &["input"], vec![int("axis", 0)], 17, "examples are kept apart"),
        ("Split", &["input", "one"], vec![int("axis", 1)], 17, "parts [1]: expected 1 that fill 2"),
        ("Gather", &["input", "one"], none(), 17, "only constants and shapes"),
        ("Expand", &["input", "one"], none(), 17, "let Add or Mul broadcast instead"),
        ("Cast", &["input"], vec![int("to", 10)], 17, "a cast to FLOAT16 cannot be trained"),
        ("Less", &["input", "scalar"], none(), 17, "only random numbers can be compared"),
        (
            "RandomUniformLike",
            &["input"],
            vec![AttributeProto::float("high", 2.0)],
            17,
            "expected random numbers of 0 to 1",
        ),
        ("Constant", &[], vec![text("value_string", "a")], 17, "expected a tensor, floats"),
        ("Relu", &["square"], none(), 17, "is not computed from the model's input"),
        ("Relu", &[], none(), 17, "input 0 is missing"),
        ("Relu", &["one"], none(), 17, "expected element type FLOAT, found INT64"),
    ]
}

/// A node before the rest of a sound model.
fn before(node: NodeProto, opset: i64) -> ModelProto {
    let nodes = vec![
        node,
        self::node("GlobalAveragePool", &["input"], "mean", Vec::new()),
        self::node("Flatten", &["mean"], "flat", Vec::new()),
        self::node("Gemm", &["flat", "dense"], "out", Vec::new()),
    ];
    let mut tensors = tensors();
    tensors.push(floats("dense", &[2, 2]));
    let mut model = model(&[2, 4, 4], nodes, tensors);
    model.opset_import[0].version = Some(opset);
    model
}

#[test]
fn attributes_and_inputs_are_refused_by_name() {
    for (operator, inputs, attributes, opset, expected) in refused() {
        let found = problem(&before(node(operator, inputs, "x", attributes), opset));
        let named = found.starts_with(&format!("node \"the {operator}\""));
        assert!(named && found.contains(expected), "{operator}: {found}");
    }
}

/// As `torch.addmm` exports it.
#[test]
fn what_differs_by_example_is_no_bias() {
    let nodes = vec![
        node("MatMul", &["input", "w"], "hidden", Vec::new()),
        node("Gemm", &["input", "w", "hidden"], "out", Vec::new()),
    ];
    let found = problem(&model(&[4], nodes, vec![floats("w", &[4, 2])]));
    assert!(found.contains("the Gemm") && found.contains("a bias of shape [2]"), "{found}");
}

#[test]
fn every_other_operator_is_refused_by_name() {
    for operator in [
        "Abs",
        "Attention",
        "Celu",
        "ConvTranspose",
        "Einsum",
        "Elu",
        "Erf",
        "Exp",
        "GRU",
        "Gelu",
        "GroupNormalization",
        "If",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "Log",
        "Loop",
        "LpPool",
        "MaxRoiPool",
        "Mish",
        "PRelu",
        "Pow",
        "QLinearConv",
        "ReduceMax",
        "Resize",
        "Selu",
        "Softplus",
        "Sqrt",
        "Tile",
        "Where",
    ] {
        let found = problem(&before(node(operator, &["input"], "x", Vec::new()), 20));
        let expected =
            format!("node \"the {operator}\": operator {operator} is not supported for training");
        assert!(found.starts_with(&expected), "{found}");
        assert!(found.contains("export the model without it, or with operators"), "{found}");
    }
    let mut foreign = node("FusedConv", &["input"], "x", Vec::new());
    foreign.domain = "com.microsoft".to_owned();
    assert!(problem(&before(foreign, 17)).contains("operator com.microsoft.FusedConv is not"));
}

#[test]
fn labels_may_only_come_last() {
    let nodes = |last: NodeProto| {
        vec![
            node("MatMul", &["input", "w"], "h", Vec::new()),
            node("ArgMax", &["h"], "label", Vec::new()),
            last,
        ]
    };
    let tensors = || vec![floats("w", &[2, 2]), floats("v", &[2, 2])];
    let mixed = node("Mul", &["label", "input"], "out", Vec::new());
    let found = problem(&model(&[2], nodes(mixed), tensors()));
    assert!(found.contains("\"input\" and what is computed from labels meet"), "{found}");
    let two = vec![
        node("MatMul", &["input", "w"], "out", Vec::new()),
        node("MatMul", &["input", "v"], "other", Vec::new()),
    ];
    let mut proto = model(&[2], two, tensors());
    let other = ValueInfoProto::batched("other", "n", &[2]);
    proto.graph.as_mut().unwrap().output.push(other);
    let found = problem(&proto);
    assert!(found.contains("expected one output (the logits), or several"), "{found}");
    let found =
        problem(&model(&[2], vec![node("ArgMax", &["input"], "out", Vec::new())], tensors()));
    assert!(found.contains("\"out\" is not computed by any node"), "{found}");
}

#[test]
fn random_numbers_may_only_drop() {
    let nodes = |keep: &str, by: &str| {
        vec![
            node("RandomUniformLike", &["input"], "random", Vec::new()),
            node("Less", &["random", keep], "kept", Vec::new()),
            node("Cast", &["kept"], "mask", vec![int("to", 1)]),
            node("Div", &["mask", by], "scaled", Vec::new()),
            node("Mul", &["input", "scaled"], "x", Vec::new()),
            node("MatMul", &["x", "w"], "out", Vec::new()),
        ]
    };
    let scalar = |name: &str, value: f32| TensorProto::from_f32(name, &[], &[value]);
    let tensors = || vec![floats("w", &[2, 2]), scalar("most", 0.75), scalar("none", 0.0)];
    let graph = Graph::read(&model(&[2], nodes("most", "most"), tensors())).unwrap();
    assert_eq!(graph.nodes[0].op, Op::Dropout { ratio: 0.25, share: Share::Element });
    let found = problem(&model(&[2], nodes("none", "most"), tensors()));
    assert!(found.contains("expected a probability above 0, found 0"), "{found}");
    let mut unscaled = nodes("most", "most");
    unscaled[4].input[1] = "mask".to_owned();
    let found = problem(&model(&[2], unscaled, tensors()));
    assert!(found.contains("has to multiply by 1.3333334, found 1"), "{found}");
    let mut added = nodes("most", "most");
    added[4].op_type = "Add".to_owned();
    let found = problem(&model(&[2], added, tensors()));
    assert!(found.contains("random numbers can only be multiplied"), "{found}");
    let mut bare = nodes("most", "most");
    bare[5].input[0] = "random".to_owned();
    let found = problem(&model(&[2], bare, tensors()));
    assert!(found.contains("can only be part of a dropout"), "{found}");
}
