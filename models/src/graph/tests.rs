mod exporters;
mod folding;
mod refusals;

use super::*;
use crate::onnx::{
    AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};

fn node(
    operator: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto::new(&format!("the {operator}"), operator, inputs, &[output]).with(attribute)
}

fn floats(name: &str, shape: &[usize]) -> TensorProto {
    TensorProto::from_f32(name, shape, &vec![0.5; shape.iter().product()])
}

/// A model from `input [n, ..example]` to `out`.
fn model(example: &[usize], nodes: Vec<NodeProto>, tensors: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        node: nodes,
        initializer: tensors,
        input: vec![ValueInfoProto::batched("input", "n", example)],
        output: vec![ValueInfoProto::batched("out", "n", &[2])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
    ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }
}

fn dense() -> NodeProto {
    node("MatMul", &["input", "w"], "out", Vec::new())
}

fn problem(model: &ModelProto) -> String {
    Graph::read(model).unwrap_err().to_string()
}

fn names(graph: &Graph, origin: Origin) -> Vec<&str> {
    graph.values.iter().filter(|v| v.origin == origin).map(|v| v.name.as_str()).collect()
}

fn fix_batch(model: &mut ModelProto, batch: i64) {
    let graph = model.graph.as_mut().unwrap();
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        let Some(crate::onnx::TypeValue::Tensor(tensor)) =
            info.r#type.as_mut().unwrap().value.as_mut()
        else {
            panic!("a tensor");
        };
        tensor.shape.as_mut().unwrap().dim[0].value =
            Some(crate::onnx::DimensionValue::Value(batch));
    }
}

#[test]
fn weights_states_and_constants_are_told_apart() {
    let normal = node("BatchNormalization", &["h", "s", "b", "m", "v"], "k", Vec::new());
    let nodes = vec![
        node("MatMul", &["input", "w"], "g", Vec::new()),
        node("Add", &["g", "one"], "h", Vec::new()),
        normal,
        node("Dropout", &["k", "half"], "l", Vec::new()),
        node("Softmax", &["l"], "out", Vec::new()),
    ];
    let tensors = vec![
        floats("w", &[3, 2]),
        floats("one", &[]),
        floats("s", &[2]),
        floats("b", &[2]),
        floats("m", &[2]),
        floats("v", &[2]),
        floats("half", &[]),
        floats("unused", &[9]),
    ];
    let graph = Graph::read(&model(&[3], nodes, tensors)).unwrap();
    assert_eq!(names(&graph, Origin::Weight), ["w", "s", "b"]);
    assert_eq!(names(&graph, Origin::State), ["m", "v"]);
    assert_eq!(names(&graph, Origin::Constant), ["one"]);
    assert_eq!(graph.value(graph.output).name, "l");
    assert_eq!(graph.nodes[3].op, Op::Dropout { ratio: 0.5, share: Share::Element });
}

#[test]
fn tensors_shared_through_identity_train_apart() {
    let nodes = vec![
        node("Identity", &["b1"], "b2", Vec::new()),
        node("MatMul", &["input", "w"], "g", Vec::new()),
        node("Add", &["g", "b1"], "h", Vec::new()),
        node("Identity", &["h"], "i", Vec::new()),
        node("Add", &["i", "b2"], "out", Vec::new()),
    ];
    let proto = model(&[3], nodes, vec![floats("w", &[3, 2]), floats("b1", &[2])]);
    let graph = Graph::read(&proto).unwrap();
    assert_eq!(names(&graph, Origin::Weight), ["w", "b1", "b2"]);
    let filled = |name: &str, shape: &[usize], value: f32| {
        TensorProto::from_f32(name, shape, &vec![value; shape.iter().product()])
    };
    let tensors = vec![filled("w", &[3, 2], 1.0), filled("b1", &[2], 2.0), filled("b2", &[2], 3.0)];
    let trained = training_model(&proto, tensors);
    let again = Graph::read(&trained).unwrap();
    let value = |name: &str| again.values.iter().find(|v| v.name == name).unwrap().initial.clone();
    assert_eq!([value("b1"), value("b2")], [[2.0; 2], [3.0; 2]]);
    assert_eq!(trained.graph.unwrap().node.len(), 4);
}

#[test]
fn constants_come_in_every_form() {
    let nodes = vec![
        node("Constant", &[], "shape", vec![AttributeProto::ints("value_ints", &[0, -1])]),
        node("Constant", &[], "one", vec![AttributeProto::float("value_float", 1.0)]),
        node("Reshape", &["input", "shape"], "flat", Vec::new()),
        node("Add", &["flat", "one"], "more", Vec::new()),
        node("MatMul", &["more", "w"], "out", Vec::new()),
    ];
    let graph = Graph::read(&model(&[3, 2, 2], nodes, vec![floats("w", &[12, 2])])).unwrap();
    assert_eq!(names(&graph, Origin::Constant), ["one"]);
    assert_eq!(graph.value(graph.nodes[0].output).shape, Shape::batched(&[12]));
}

#[test]
fn spatial_means_are_global_pooling() {
    for (axes, keep) in [([2, 3], 1), ([-1, -2], 0)] {
        let attributes =
            vec![AttributeProto::ints("axes", &axes), AttributeProto::int("keepdims", keep)];
        let nodes = vec![
            node("ReduceMean", &["input"], "mean", attributes),
            node("Flatten", &["mean"], "flat", Vec::new()),
            node("MatMul", &["flat", "w"], "out", Vec::new()),
        ];
        let graph = Graph::read(&model(&[3, 4, 4], nodes, vec![floats("w", &[3, 2])])).unwrap();
        assert_eq!(graph.nodes[0].op, Op::GlobalAveragePool);
        assert_eq!(graph.value(graph.nodes[1].output).shape, Shape::batched(&[3]));
    }
}

#[test]
fn same_padding_is_worked_out() {
    for (kind, begin, end) in [("SAME_UPPER", [0, 0], [1, 1]), ("SAME_LOWER", [1, 1], [0, 0])] {
        let auto = AttributeProto {
            name: "auto_pad".to_owned(),
            s: Some(kind.as_bytes().to_vec()),
            r#type: 3,
            ..AttributeProto::default()
        };
        let nodes = vec![
            node(
                "Conv",
                &["input", "k"],
                "c",
                vec![auto, AttributeProto::ints("strides", &[2, 2])],
            ),
            node("GlobalAveragePool", &["c"], "out", Vec::new()),
        ];
        let graph =
            Graph::read(&model(&[1, 6, 8], nodes, vec![floats("k", &[2, 1, 3, 3])])).unwrap();
        let Op::Conv { window, .. } = &graph.nodes[0].op else { panic!("a convolution") };
        assert_eq!((window.begin, window.end), (begin, end));
        assert_eq!(graph.value(graph.nodes[0].output).shape, Shape::batched(&[2, 3, 4]));
    }
}

#[test]
fn a_fixed_batch_is_opened_for_inference() {
    let nodes = vec![
        node("Reshape", &["input", "shape"], "flat", Vec::new()),
        node("MatMul", &["flat", "w"], "drop", Vec::new()),
        node("Dropout", &["drop"], "out", Vec::new()),
    ];
    let tensors = vec![TensorProto::from_i64("shape", &[1, 12]), floats("w", &[12, 2])];
    let mut proto = model(&[3, 2, 2], nodes, tensors);
    fix_batch(&mut proto, 1);
    let graph = Graph::read(&proto).unwrap();
    let open = inference_model(&proto, &graph, Vec::new()).graph.unwrap();
    let operators: Vec<_> = open.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(operators, ["Reshape", "MatMul", "Identity"]);
    let shape = open.initializer.iter().find(|tensor| tensor.name == open.node[0].input[1]);
    assert_eq!(shape.unwrap().to_i64().unwrap().1, [0, 12]);
    assert_eq!(open.input[0].tensor().unwrap().1[0], None);
    assert_eq!(open.output[0].tensor().unwrap().1[0], None);
    assert!(open.initializer.iter().all(|tensor| tensor.name != "shape"));
}

#[test]
fn what_cannot_be_trained_is_named() {
    let w = || vec![floats("w", &[3, 2])];
    let with = |node: NodeProto| problem(&model(&[3], vec![node, dense()], w()));
    let found = with(node("Einsum", &["input"], "x", Vec::new()));
    let expected = "node \"the Einsum\": operator Einsum is not supported for training: export";
    assert!(found.starts_with(expected) && found.contains("Add, AveragePool"), "{found}");
    let mut foreign = node("Conv", &["input"], "x", Vec::new());
    foreign.domain = "com.microsoft".to_owned();
    assert!(with(foreign).contains("operator com.microsoft.Conv is not supported"));
    let found = with(node("Relu", &["nowhere"], "x", Vec::new()));
    assert!(found.contains("\"nowhere\" is not computed by a node before it"), "{found}");
    let found = with(node("Relu", &["w"], "x", Vec::new()));
    assert!(found.contains("is not computed from the model's input"), "{found}");
    let found = with(node("Relu", &["input"], "input", Vec::new()));
    assert!(found.contains("is already there"), "{found}");
    let misfit = model(&[4], vec![dense()], w());
    assert_eq!(
        problem(&misfit),
        "node \"the MatMul\": expected weights for 4 features, found [3, 2]"
    );
    let mut half = w();
    half[0].data_type = 10;
    let found = problem(&model(&[3], vec![dense()], half));
    assert!(found.contains("expected element type FLOAT, found FLOAT16"), "{found}");
}

#[test]
fn graphs_of_another_form_are_refused() {
    let good = || model(&[3], vec![dense()], vec![floats("w", &[3, 2])]);
    let change = |edit: &dyn Fn(&mut GraphProto)| {
        let mut model = good();
        edit(model.graph.as_mut().unwrap());
        problem(&model)
    };
    assert!(Graph::read(&good()).is_ok());
    let found = change(&|graph| graph.input.push(ValueInfoProto::batched("mask", "n", &[3])));
    assert!(found.contains("expected one input, found [\"input\", \"mask\"]"), "{found}");
    let found = change(&|graph| graph.output.clear());
    assert!(found.contains("expected one output"), "{found}");
    let found = change(&|graph| graph.output[0].name = "else".to_owned());
    assert!(found.contains("\"else\" is not computed"), "{found}");
    let found = change(&|graph| graph.initializer.push(floats("w", &[1])));
    assert!(found.contains("\"w\" is there twice"), "{found}");
    let found = change(&|graph| graph.node[0] = node("Relu", &["input"], "out", Vec::new()));
    assert!(found.contains("no weights"), "{found}");
    let mut old = good();
    old.opset_import[0].version = Some(5);
    assert!(problem(&old).contains("operator set 5 is not supported"));
}
