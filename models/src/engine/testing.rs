//! What every engine does alike, on a dense layer.

use super::Engine;
use crate::onnx::{
    Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TypeValue, ValueInfoProto,
};
use crate::tensor::{Data, Tensor};

/// `y [n, 2] = x [n, 3] w + b`
pub(super) fn dense() -> ModelProto {
    let graph = GraphProto {
        node: vec![NodeProto::new("the Gemm", "Gemm", &["x", "w", "b"], &["y"])],
        initializer: vec![
            TensorProto::from_f32("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            TensorProto::from_f32("b", &[2], &[0.5, -0.5]),
        ],
        input: vec![ValueInfoProto::batched("x", "n", &[3])],
        output: vec![ValueInfoProto::batched("y", "n", &[2])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
    ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![opset],
        ..ModelProto::default()
    }
}

/// Its first axis of inputs and outputs has this extent.
fn fix_batch(mut model: ModelProto, batch: i64) -> ModelProto {
    let graph = model.graph.as_mut().unwrap();
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        let kind = info.r#type.as_mut().and_then(|kind| kind.value.as_mut());
        let Some(TypeValue::Tensor(tensor)) = kind else { panic!("a tensor") };
        let value = Some(DimensionValue::Value(batch));
        tensor.shape.as_mut().unwrap().dim[0] = Dimension { value, ..Dimension::default() };
    }
    model
}

/// `examples` rows of [`dense`]'s input and its output.
pub(super) fn rows(examples: usize) -> (Tensor, Vec<f32>) {
    let x: Vec<f32> =
        (0..examples * 3).map(|at| f32::from(u8::try_from(at % 97).unwrap())).collect();
    let y = x.chunks(3).flat_map(|row| {
        let [a, b, c] = [row[0], row[1], row[2]];
        [a + 3.0 * b + 5.0 * c + 0.5, 2.0 * a + 4.0 * b + 6.0 * c - 0.5]
    });
    (Tensor::f32(&[examples, 3], x.clone()).unwrap(), y.collect())
}

/// Batches, threads, and inputs that do not fit; `most` is the largest batch that is run whole.
pub(super) fn check(engine: &dyn Engine, most: usize) {
    any_number_of_examples_runs_on_open_and_fixed_batches(engine, most);
    threads_share_a_session(engine);
    inputs_that_do_not_fit_are_named(engine);
}

fn any_number_of_examples_runs_on_open_and_fixed_batches(engine: &dyn Engine, most: usize) {
    for batch in [-1, 1, 2, 5] {
        let model = if batch < 0 { dense() } else { fix_batch(dense(), batch) };
        let session = engine.load(&model.to_bytes()).unwrap();
        assert_eq!(session.inputs()[0].shape, [batch, 3]);
        assert_eq!(session.outputs()[0].name, "y");
        for examples in [1, 2, 3, 7, most, 2 * most + 5] {
            let (x, y) = rows(examples);
            let outputs = session.run(&[x]).unwrap();
            assert_eq!(outputs[0].shape(), [examples, 2], "batch {batch}");
            assert_eq!(outputs[0].as_f32().unwrap(), y, "batch {batch}");
        }
    }
}

fn threads_share_a_session(engine: &dyn Engine) {
    let session = engine.load(&dense().to_bytes()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let session = &session;
            scope.spawn(move || {
                for run in 0..50 {
                    let (x, y) = rows(1 + (thread + run) % 7);
                    assert_eq!(session.run(&[x]).unwrap()[0].as_f32().unwrap(), y);
                }
            });
        }
    });
}

fn inputs_that_do_not_fit_are_named(engine: &dyn Engine) {
    let session = engine.load(&dense().to_bytes()).unwrap();
    let refused = |inputs: &[Tensor]| session.run(inputs).unwrap_err().to_string();
    let (x, _) = rows(2);
    let expected = "input \"x\": expected FP32 of shape [-1, 3] (-1: any), found ";
    let wide = Tensor::f32(&[1, 4], vec![0.0; 4]).unwrap();
    assert_eq!(refused(&[wide]), format!("{expected}FP32 of shape [1, 4]"));
    let flat = Tensor::f32(&[3], vec![0.0; 3]).unwrap();
    assert_eq!(refused(&[flat]), format!("{expected}FP32 of shape [3]"));
    let empty = Tensor::f32(&[0, 3], vec![]).unwrap();
    assert_eq!(refused(&[empty]), format!("{expected}FP32 of shape [0, 3]"));
    let integers = Tensor::new(&[1, 3], Data::I32(vec![0; 3])).unwrap();
    assert_eq!(refused(&[integers]), format!("{expected}INT32 of shape [1, 3]"));
    assert_eq!(refused(&[]), "input \"x\": expected 1 inputs (x), found 0");
    assert_eq!(refused(&[x.clone(), x]), "input \"\": expected 1 inputs (x), found 2");
}
