//! Bodies of any length between an agent's client and the programs that hold engines.

use models::engine::frames::MEMORY;
use models::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use models::tensor::Tensor;
use tests::helper::Started;
use tests::process::PATIENCE;
use tests::untested::not_tested;

/// Numbers of an example; of 4 bytes each.
const WIDTH: usize = 1 << 10;

/// The same numbers with the other sign.
fn negated() -> Vec<u8> {
    let graph = GraphProto {
        node: vec![NodeProto::new("the Neg", "Neg", &["x"], &["y"])],
        input: vec![ValueInfoProto::batched("x", "n", &[WIDTH])],
        output: vec![ValueInfoProto::batched("y", "n", &[WIDTH])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
    let graph = Some(graph);
    let model = ModelProto {
        ir_version: Some(8),
        graph,
        opset_import: vec![opset],
        ..ModelProto::default()
    };
    model.to_bytes()
}

fn check(started: &Started) {
    let session = started.helper.session(&negated()).unwrap();
    // From 4 KB to 80 MB, which the memory does not hold, and short ones in between.
    for examples in [1, 4, 5, 1000, 3, 20_000, 900, 1, 30] {
        let value = |at: usize| f32::from(u16::try_from(at % 60_001).unwrap()) + 0.5;
        let x: Vec<f32> = (0..examples * WIDTH).map(value).collect();
        let input = Tensor::f32(&[examples, WIDTH], x.clone()).unwrap();
        let (outputs, _) = session.run_within(&[input], PATIENCE).unwrap();
        assert_eq!(outputs[0].shape(), [examples, WIDTH]);
        let expected: Vec<f32> = x.iter().map(|value| -value).collect();
        assert!(outputs[0].as_f32().unwrap() == expected, "{examples} examples");
    }
}

/// In memory that both share, and through pipes alone where a helper cannot open it.
#[test]
fn bodies_of_any_length_come_back_from_tract() {
    for variable in [String::new(), format!("{MEMORY}=/absent")] {
        check(&Started::new("dunlin-tract", "tract", &variable, 1));
    }
}

#[test]
fn bodies_of_any_length_come_back_from_onnx_runtime() {
    match Started::onnx_runtime(1) {
        Some(started) => check(&started),
        None => not_tested("ONNX Runtime is missing: scripts/setup.sh tests"),
    }
}
