//! Small graphs made by hand: batches, refusals, and foreign bytes.

use proptest::prelude::*;
use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

use super::*;
use crate::tensor::Data;

/// A declared value; extents below 0 are the symbol `n`.
fn value(name: &str, element: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = shape.iter().map(|extent| {
        let value = match extent {
            0.. => dimension::Value::DimValue(*extent),
            _ => dimension::Value::DimParam("n".to_owned()),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type: element, shape };
    let r#type = Some(TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..TypeProto::default()
    });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn node(operator: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: format!("the_{operator}"),
        op_type: operator.to_owned(),
        domain: domain.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        ..NodeProto::default()
    }
}

fn model(
    node: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> Vec<u8> {
    let graph = GraphProto { node, input, output, initializer, ..GraphProto::default() };
    let opset = OperatorSetIdProto { domain: String::new(), version: 13 };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

/// `y [n, 2] = x [n, 3] w + b`, for a batch that is fixed or, below 0, open.
fn dense(batch: i64) -> Vec<u8> {
    model(
        vec![node("Gemm", "", &["x", "w", "b"], &["y"])],
        vec![value("x", 1, &[batch, 3])],
        vec![value("y", 1, &[batch, 2])],
        vec![
            floats("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            floats("b", &[2], &[0.5, -0.5]),
        ],
    )
}

/// `examples` rows of [`dense`]'s input and its output.
fn rows(examples: usize) -> (Tensor, Vec<f32>) {
    let x: Vec<f32> =
        (0..examples * 3).map(|at| f32::from(u8::try_from(at % 97).unwrap())).collect();
    let y = x.chunks(3).flat_map(|row| {
        let [a, b, c] = [row[0], row[1], row[2]];
        [a + 3.0 * b + 5.0 * c + 0.5, 2.0 * a + 4.0 * b + 6.0 * c - 0.5]
    });
    (Tensor::f32(&[examples, 3], x.clone()).unwrap(), y.collect())
}

fn refusal(onnx: &[u8]) -> String {
    Tract.load(onnx).unwrap_err().to_string()
}

#[test]
fn any_number_of_examples_runs_on_open_and_fixed_batches() {
    for batch in [-1, 1, 2, 5] {
        let session = Tract.load(&dense(batch)).unwrap();
        assert_eq!(session.inputs()[0].shape, [batch, 3]);
        for examples in [1, 2, 3, 7, BATCH_MAX, 2 * BATCH_MAX + 5] {
            let (x, y) = rows(examples);
            let outputs = session.run(&[x]).unwrap();
            assert_eq!(outputs[0].shape(), [examples, 2], "batch {batch}");
            assert_eq!(outputs[0].as_f32().unwrap(), y, "batch {batch}");
        }
    }
}

#[test]
fn threads_share_a_session() {
    let session = Tract.load(&dense(-1)).unwrap();
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

#[test]
fn inputs_that_do_not_fit_are_named() {
    let session = Tract.load(&dense(-1)).unwrap();
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

#[test]
fn inputs_of_one_run_have_one_batch() {
    let values = |batch| vec![value("a", 1, &[batch, 2]), value("b", 1, &[batch, 2])];
    let add = |batch| {
        let output = vec![value("c", 1, &[batch, 2])];
        model(vec![node("Add", "", &["a", "b"], &["c"])], values(batch), output, vec![])
    };
    let row = |examples: usize| Tensor::f32(&[examples, 2], vec![1.0; examples * 2]).unwrap();
    for batch in [-1, 1] {
        let session = Tract.load(&add(batch)).unwrap();
        assert_eq!(session.run(&[row(3), row(3)]).unwrap()[0].as_f32().unwrap(), [2.0; 6]);
        let refused = session.run(&[row(3), row(2)]).unwrap_err().to_string();
        assert!(refused.contains("input \"b\": expected 3 examples"), "{refused}");
    }
}

#[test]
fn operators_that_are_not_known_are_named() {
    let with = |node: NodeProto| {
        let shapes = (vec![value("x", 1, &[1, 3])], vec![value("y", 1, &[1, 3])]);
        refusal(&model(vec![node], shapes.0, shapes.1, vec![]))
    };
    let refused = with(node("Frobnicate", "", &["x"], &["y"]));
    assert!(refused.contains("node \"the_Frobnicate\": operator Frobnicate"), "{refused}");
    let refused = with(node("Relu", "my.own", &["x"], &["y"]));
    assert!(refused.contains("operator my.own.Relu is not supported"), "{refused}");
    let refused = with(node("Relu", "", &["z"], &["y"]));
    assert!(refused.contains('z'), "{refused}");
    let refused = with(node("Relu", "", &["x"], &["z"]));
    assert!(refused.contains("no node makes the declared output \"y\""), "{refused}");
    let mut training = node("BatchNormalization", "", &["x", "x", "x", "x", "x"], &["y"]);
    training.attribute =
        vec![AttributeProto { name: "training_mode".into(), i: 1, ..AttributeProto::default() }];
    let refused = with(training);
    assert!(refused.contains("export the model for inference"), "{refused}");
}

#[test]
fn element_types_that_are_not_known_are_refused() {
    let half = model(
        vec![node("Relu", "", &["x"], &["y"])],
        vec![value("x", 10, &[1, 3])],
        vec![value("y", 10, &[1, 3])],
        vec![],
    );
    assert!(refusal(&half).contains("node \"x\": expected one of FP32"), "{}", refusal(&half));
}

/// Scale 0.5 and zero point 10 in, scale 0.25 and zero point 20 out:
/// `((a - 10) / 2 + (b - 10) / 2) * 4 + 20`.
#[test]
fn quantised_addition_is_by_its_definition() {
    let byte = |name: &str, value: i32| TensorProto {
        name: name.to_owned(),
        data_type: 2,
        int32_data: vec![value],
        ..TensorProto::default()
    };
    let inputs = ["a", "s", "z", "b", "s", "z", "t", "u"];
    let onnx = model(
        vec![node("QLinearAdd", "com.microsoft", &inputs, &["c"])],
        vec![value("a", 2, &[1, 4]), value("b", 2, &[1, 4])],
        vec![value("c", 2, &[1, 4])],
        vec![floats("s", &[], &[0.5]), byte("z", 10), floats("t", &[], &[0.25]), byte("u", 20)],
    );
    let session = Tract.load(&onnx).unwrap();
    let bytes = |values: [u8; 4]| Tensor::new(&[1, 4], Data::U8(values.to_vec())).unwrap();
    let outputs = session.run(&[bytes([10, 11, 0, 200]), bytes([10, 14, 0, 200])]).unwrap();
    assert_eq!(outputs, [bytes([20, 30, 0, 255])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a damaged model does, it does not panic.
    #[test]
    fn damaged_models_are_errors(at: prop::sample::Index, with: u8, end: prop::sample::Index) {
        let mut bytes = dense(-1);
        let at = at.index(bytes.len());
        bytes[at] = with;
        let end = 1 + end.index(2 * bytes.len());
        bytes.truncate(end);
        if let Ok(session) = Tract.load(&bytes) {
            let _ = session.run(&[rows(3).0]);
        }
    }

    #[test]
    fn foreign_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Tract.load(&bytes).is_err());
    }
}
