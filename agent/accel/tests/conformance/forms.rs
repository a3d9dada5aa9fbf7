//! Small models that each need one operator in one form.

use models::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};

/// A model, what it is for, and the shape of one example.
pub(crate) struct Form {
    pub(crate) name: String,
    pub(crate) example: Vec<usize>,
    pub(crate) onnx: Vec<u8>,
}

fn node(
    operator: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    let name = format!("the {operator} of {output}");
    NodeProto::new(&name, operator, inputs, &[output]).with(attribute)
}

fn tensor(name: &str, dims: &[usize]) -> TensorProto {
    let values = super::examples(1, dims.iter().product());
    TensorProto::from_f32(name, dims, &values)
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, values)
}

/// Nodes from `x` to `h`, whose `elements` per example a dense layer makes four logits of.
fn model(
    example: &[usize],
    elements: usize,
    mut nodes: Vec<NodeProto>,
    mut initializer: Vec<TensorProto>,
) -> Vec<u8> {
    nodes.push(node("Flatten", &["h"], "flat", Vec::new()));
    nodes.push(node("MatMul", &["flat", "dense"], "y", Vec::new()));
    initializer.push(tensor("dense", &[elements, 4]));
    file(example, nodes, initializer)
}

fn file(example: &[usize], node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Vec<u8> {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![ValueInfoProto::batched("x", "n", example)],
        output: vec![ValueInfoProto::batched("y", "n", &[4])],
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

/// Every form of the list, with extents that no vector or group of threads divides.
pub(crate) fn all() -> Vec<Form> {
    let mut forms = convolutions();
    forms.extend(pools());
    forms.extend(functions());
    forms.extend(arithmetic());
    forms.extend(shapes());
    forms
}

pub(crate) fn convolutions() -> Vec<Form> {
    let mut forms = Vec::new();
    // Channels, maps, kernel, stride, padding, dilation, groups, side.
    for [c, m, k, s, p, d, g, side] in [
        [3, 4, 3, 1, 1, 1, 1, 7],
        [5, 8, 3, 1, 1, 1, 1, 6],
        [3, 5, 3, 1, 1, 1, 1, 7],
        [3, 4, 3, 1, 0, 1, 1, 7],
        [4, 8, 3, 1, 2, 2, 1, 7],
        [3, 8, 3, 2, 1, 1, 1, 9],
        [16, 8, 1, 1, 0, 1, 1, 5],
        [32, 12, 1, 1, 0, 1, 1, 3],
        [7, 6, 1, 1, 0, 1, 1, 5],
        [16, 8, 1, 2, 0, 1, 1, 5],
        [8, 8, 3, 1, 1, 1, 8, 6],
        [8, 8, 5, 2, 2, 1, 8, 7],
        [6, 9, 3, 1, 1, 1, 3, 5],
        [3, 4, 7, 2, 3, 1, 1, 11],
        [2, 4, 5, 1, 0, 1, 1, 6],
    ] {
        let wide = |extent: usize| i64::try_from(extent).unwrap();
        let attributes = vec![
            ints("strides", &[wide(s); 2]),
            ints("pads", &[wide(p); 4]),
            ints("dilations", &[wide(d); 2]),
            AttributeProto::int("group", wide(g)),
        ];
        let out = (side + 2 * p - (k - 1) * d - 1) / s + 1;
        for (bias, relu) in [(true, false), (false, true)] {
            let inputs: &[&str] = if bias { &["x", "w", "b"] } else { &["x", "w"] };
            let mut nodes =
                vec![node("Conv", inputs, if relu { "c" } else { "h" }, attributes.clone())];
            if relu {
                nodes.push(node("Relu", &["c"], "h", Vec::new()));
            }
            let weights = tensor("w", &[m, c / g, k, k]);
            let tensors = if bias { vec![weights, tensor("b", &[m])] } else { vec![weights] };
            let example = vec![c, side, side];
            forms.push(Form {
                name: format!(
                    "Conv {c} -> {m}, {k} x {k}, stride {s}, pad {p}, dilation {d}, groups {g}"
                ),
                onnx: model(&example, m * out * out, nodes, tensors),
                example,
            });
        }
    }
    forms
}

pub(crate) fn pools() -> Vec<Form> {
    let mut forms = Vec::new();
    for c in [3, 8] {
        for (operator, include) in
            [("MaxPool", None), ("AveragePool", Some(0)), ("AveragePool", Some(1))]
        {
            for [k, s, p, ceil] in [[2, 2, 0, 0], [3, 2, 1, 0], [3, 1, 1, 0], [3, 2, 0, 1]] {
                if include == Some(1) && ceil == 1 {
                    continue;
                }
                let mut attributes = vec![
                    ints("kernel_shape", &[k; 2]),
                    ints("strides", &[s; 2]),
                    ints("pads", &[p; 4]),
                    AttributeProto::int("ceil_mode", ceil),
                ];
                attributes.extend(include.map(|it| AttributeProto::int("count_include_pad", it)));
                let side = 6 + 2 * p - k;
                let out = if ceil == 1 { (side + s - 1) / s } else { side / s } + 1;
                let elements = c * usize::try_from(out * out).unwrap();
                let nodes = vec![node(operator, &["x"], "h", attributes)];
                forms.push(Form {
                    name: format!("{operator} of {c} channels, {k} x {k}, stride {s}, pad {p}"),
                    onnx: model(&[c, 6, 6], elements, nodes, Vec::new()),
                    example: vec![c, 6, 6],
                });
            }
        }
        for side in [1, 5] {
            let nodes = vec![node("GlobalAveragePool", &["x"], "h", Vec::new())];
            forms.push(Form {
                name: format!("GlobalAveragePool of {c} x {side} x {side}"),
                onnx: model(&[c, side, side], c, nodes, Vec::new()),
                example: vec![c, side, side],
            });
        }
    }
    forms
}

pub(crate) fn functions() -> Vec<Form> {
    let mut forms = Vec::new();
    for operator in ["Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg"] {
        for len in [5, 16] {
            // Far beyond what is linear.
            let nodes = vec![
                node("Mul", &["x", "many"], "wide", Vec::new()),
                node(operator, &["wide"], "h", Vec::new()),
            ];
            let tensors = vec![TensorProto::from_f32("many", &[1], &[9.0])];
            let onnx = model(&[len], len, nodes, tensors);
            forms.push(Form { name: format!("{operator} of {len}"), example: vec![len], onnx });
        }
    }
    for (least, most) in [(0.0, 6.0), (-0.5, 0.5), (-0.25, 0.75), (-0.3, f32::INFINITY)] {
        let bound = |name: &str, value: f32| TensorProto::from_f32(name, &[], &[value]);
        let nodes = vec![node("Clip", &["x", "least", "most"], "h", Vec::new())];
        let onnx = model(&[7], 7, nodes, vec![bound("least", least), bound("most", most)]);
        forms.push(Form { name: format!("Clip to {least}, {most}"), example: vec![7], onnx });
    }
    forms
}

pub(crate) fn arithmetic() -> Vec<Form> {
    let mut forms = Vec::new();
    for operator in ["Add", "Sub", "Mul", "Div"] {
        for dims in [&[][..], &[5], &[3, 1, 1], &[2, 5], &[3, 2, 5]] {
            let nodes = vec![
                node("Sigmoid", &["x"], "s", Vec::new()),
                node(operator, &["c", "s"], "h", Vec::new()),
            ];
            forms.push(Form {
                name: format!("{operator} with a constant of {dims:?}"),
                onnx: model(&[3, 2, 5], 30, nodes, vec![tensor("c", dims)]),
                example: vec![3, 2, 5],
            });
        }
        for example in [&[3, 2, 5][..], &[7]] {
            let nodes = vec![
                node("Sigmoid", &["x"], "s", Vec::new()),
                node(operator, &["x", "s"], "h", Vec::new()),
            ];
            let elements = example.iter().product();
            forms.push(Form {
                name: format!("{operator} of two values of {example:?}"),
                onnx: model(example, elements, nodes, Vec::new()),
                example: example.to_vec(),
            });
        }
    }
    let nodes = vec![
        node("GlobalAveragePool", &["x"], "p", Vec::new()),
        node("Sigmoid", &["p"], "s", Vec::new()),
        node("Mul", &["x", "s"], "h", Vec::new()),
    ];
    forms.push(Form {
        name: "Mul with a value of each channel".to_owned(),
        onnx: model(&[3, 4, 5], 60, nodes, Vec::new()),
        example: vec![3, 4, 5],
    });
    forms
}

pub(crate) fn shapes() -> Vec<Form> {
    let mut forms = Vec::new();
    let mut add = |name: &str, example: &[usize], elements: usize, nodes: Vec<NodeProto>| {
        let tensors = vec![tensor("w", &[5, 3]), TensorProto::from_i64("shape", &[0, 6, 10])];
        let used =
            |tensor: &TensorProto| nodes.iter().any(|node| node.input.contains(&tensor.name));
        let tensors = tensors.into_iter().filter(used).collect();
        let (name, example) = (name.to_owned(), example.to_vec());
        forms.push(Form { name, onnx: model(&example, elements, nodes, tensors), example });
    };
    for axes in [&[1_i64][..], &[2], &[3], &[1, 2], &[1, 3], &[2, 3], &[1, 2, 3]] {
        let out: usize = [3, 4, 5]
            .iter()
            .zip(1..)
            .map(|(extent, axis)| if axes.contains(&axis) { 1 } else { *extent })
            .product();
        let nodes = vec![node("ReduceMean", &["x"], "h", vec![ints("axes", axes)])];
        add(&format!("ReduceMean along {axes:?}"), &[3, 4, 5], out, nodes);
    }
    for perm in [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2]] {
        let nodes = vec![node("Transpose", &["x"], "h", vec![ints("perm", &perm)])];
        add(&format!("Transpose {perm:?}"), &[3, 4, 5], 60, nodes);
    }
    for axis in [1, 2] {
        let nodes = vec![node("Softmax", &["x"], "h", vec![AttributeProto::int("axis", axis)])];
        if axis == 2 {
            add("Softmax of the last axis", &[3, 5], 15, nodes);
        } else {
            // What lies behind the axis counts since operator set 13.
            add("Softmax of an inner axis", &[5, 3], 15, nodes);
        }
    }
    let nodes = vec![
        node("Reshape", &["x", "shape"], "r", Vec::new()),
        node("Relu", &["r"], "h", Vec::new()),
    ];
    add("Reshape", &[3, 4, 5], 60, nodes);
    let nodes = vec![node("MatMul", &["x", "w"], "h", Vec::new())];
    add("MatMul of rows", &[4, 5], 12, nodes);
    for count in [2, 4] {
        let inputs: Vec<String> = (0..count).map(|at| format!("part{at}")).collect();
        let mut nodes: Vec<NodeProto> = inputs
            .iter()
            .zip(["Sigmoid", "Tanh", "Relu", "Sigmoid"])
            .map(|(output, operator)| node(operator, &["x"], output, Vec::new()))
            .collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        nodes.push(node("Concat", &inputs, "h", vec![AttributeProto::int("axis", 1)]));
        add(&format!("Concat of {count}"), &[3, 2, 5], count * 30, nodes);
    }
    forms
}

/// Elements of an example, a dense layer of it, and the same with a softmax behind.
pub(crate) fn with_final_softmax() -> (usize, Vec<u8>, Vec<u8>) {
    let dense = |output: &str| node("MatMul", &["x", "w"], output, Vec::new());
    let weights = || vec![tensor("w", &[6, 4])];
    let logits = file(&[6], vec![dense("y")], weights());
    let last = node("Softmax", &["h"], "y", vec![AttributeProto::int("axis", -1)]);
    (6, logits, file(&[6], vec![dense("h"), last], weights()))
}

/// Models that WebGPU is not trusted with, and the name that the refusal has to say.
pub(crate) fn outside() -> Vec<(String, Vec<u8>)> {
    let split = NodeProto {
        output: vec!["h".to_owned(), "rest".to_owned()],
        ..node("Split", &["x", "parts"], "h", vec![AttributeProto::int("axis", 1)])
    };
    let parts = TensorProto::from_i64("parts", &[2, 4]);
    let padding = TensorProto::from_i64("pads", &[0, 1, 0, 0, 0, 0]);
    let pad = node("Pad", &["x", "pads"], "h", Vec::new());
    let modulo = node("Mod", &["x", "x"], "h", Vec::new());
    vec![
        ("the Split".to_owned(), model(&[6], 2, vec![split], vec![parts])),
        ("the Pad".to_owned(), model(&[6, 2], 14, vec![pad], vec![padding])),
        ("the Mod".to_owned(), model(&[6], 6, vec![modulo], Vec::new())),
    ]
}
