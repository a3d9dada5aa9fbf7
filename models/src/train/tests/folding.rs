//! Inference files with the normalisation in the convolutions.

use super::*;

#[test]
fn folded_files_have_no_normalisation_and_one_bias_more_per_convolution() {
    let trainer = trained("resnet8", [1, 8, 8], 1);
    let operators = |onnx: &[u8]| -> Vec<String> {
        let graph = crate::onnx::parse(onnx).unwrap().graph.unwrap();
        graph.node.into_iter().map(|node| node.op_type).collect()
    };
    let (plain, folded) = (trainer.to_inference_onnx(), trainer.to_folded_onnx());
    let kept = operators(&plain).into_iter().filter(|name| name != "BatchNormalization");
    assert!(kept.eq(operators(&folded)));
    let graph = crate::onnx::parse(&folded).unwrap().graph.unwrap();
    let convs: Vec<_> = graph.node.iter().filter(|node| node.op_type == "Conv").collect();
    assert!(convs.len() == 9 && convs.iter().all(|conv| conv.input.len() == 3));
    // Nine weights and biases, and the dense layer's two.
    assert_eq!(graph.initializer.len(), 20);
    let mut again = Trainer::new(&folded, SGD).unwrap();
    let (examples, _) = batch(&again, 5);
    let mut trainer = trainer;
    let expected = trainer.logits(&examples).unwrap();
    for (found, expected) in again.logits(&examples).unwrap().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
    }
}

/// A normalisation whose convolution's output or weights serve something else.
#[test]
fn what_others_need_is_not_folded() {
    use crate::onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    };
    let node = |operator: &str, inputs: &[&str], output: &str| {
        NodeProto::new("", operator, inputs, &[output])
    };
    let norm = |x: &str, y: &str| node("BatchNormalization", &[x, "s", "b", "m", "v"], y);
    let seen = vec![
        node("Conv", &["input", "w"], "x"),
        norm("x", "y"),
        node("Add", &["x", "y"], "z"),
        node("GlobalAveragePool", &["z"], "logits"),
    ];
    let shared = vec![
        node("Conv", &["input", "w"], "x"),
        norm("x", "y"),
        node("Conv", &["y", "w"], "z"),
        node("GlobalAveragePool", &["z"], "logits"),
    ];
    for nodes in [seen, shared] {
        let vector = |name: &str, value: f32| TensorProto::from_f32(name, &[2], &[value; 2]);
        let count = nodes.len();
        let graph = GraphProto {
            node: nodes,
            initializer: vec![
                TensorProto::from_f32("w", &[2, 2, 1, 1], &[0.1, 0.2, 0.3, 0.4]),
                vector("s", 2.0),
                vector("b", 0.5),
                vector("m", 0.1),
                vector("v", 3.0),
            ],
            input: vec![ValueInfoProto::batched("input", "n", &[2, 2, 2])],
            output: vec![ValueInfoProto::batched("logits", "n", &[2, 1, 1])],
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
        let model =
            ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
        let trainer = Trainer::new(&model.to_bytes(), SGD).unwrap();
        let folded = crate::onnx::parse(&trainer.to_folded_onnx()).unwrap();
        assert_eq!(folded.graph.unwrap().node.len(), count);
    }
}
