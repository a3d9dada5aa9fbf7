//! Small graphs made by hand: batches, refusals, and foreign bytes.

use proptest::prelude::*;
use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

use super::*;
use crate::engine::testing::{self, dense, rows};
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

fn refusal(onnx: &[u8]) -> String {
    Tract.load(onnx).unwrap_err().to_string()
}

#[test]
fn dense_layers_run_on_any_batch_from_any_thread() {
    testing::check(&Tract, BATCH_MAX);
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
        let mut bytes = dense().to_bytes();
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
