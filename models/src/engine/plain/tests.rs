//! Plain files beside the originals, both in tract.

use super::*;
use crate::engine::tract::Tract;
use crate::engine::{Engine as _, Session};
use crate::tensor::Tensor;
use crate::train::{Sgd, Trainer};
use crate::zoo;

mod forms;

/// Values around 0 for a batch of a model's examples.
fn batch(info: &TensorInfo, examples: usize) -> Tensor {
    let dims = info.shape[1..].iter().map(|extent| usize::try_from(*extent).unwrap());
    let shape: Vec<usize> = std::iter::once(examples).chain(dims).collect();
    let len: u16 = shape.iter().product::<usize>().try_into().unwrap();
    let value = |at: u16| f32::from(at.wrapping_mul(7919) % 1009) / 504.5 - 1.0;
    Tensor::f32(&shape, (0..len).map(value).collect()).unwrap()
}

fn answer(session: &dyn Session, input: &Tensor) -> (Vec<usize>, Vec<f32>) {
    let outputs = session.run(std::slice::from_ref(input)).unwrap();
    (outputs[0].shape().to_vec(), outputs[0].as_f32().unwrap().to_vec())
}

/// The plain file answers as the original, one example and, where it can, several at a time; it
/// holds what the list says and a shape for every value.
fn check(name: &str, onnx: &[u8]) {
    let plain = Plain::read(onnx).unwrap_or_else(|error| panic!("{name}: {error}"));
    let original = Tract.load(onnx).unwrap();
    for examples in [1, 3] {
        if examples > 1 && !plain.has_batches() {
            assert!(plain.to_onnx(examples).is_err(), "{name}");
            continue;
        }
        let file = plain.to_onnx(examples).unwrap();
        let graph = onnx::parse(&file).unwrap().graph.unwrap();
        for node in &graph.node {
            let known = OPERATORS.iter().any(|(operator, _)| *operator == node.op_type);
            assert!(known && !node.name.is_empty(), "{name}: {} {:?}", node.op_type, node.name);
            for output in &node.output {
                let mut infos = graph.value_info.iter().chain(&graph.output);
                assert!(infos.any(|info| info.name == *output), "{name}: {output} has no shape");
            }
        }
        let input = batch(plain.input(), examples);
        let expected = answer(original.as_ref(), &input);
        let found = answer(Tract.load(&file).unwrap().as_ref(), &input);
        assert_eq!(found.0, expected.0, "{name}");
        let scale = expected.1.iter().fold(1e-3_f32, |most, value| most.max(value.abs()));
        for (at, (a, b)) in found.1.iter().zip(&expected.1).enumerate() {
            assert!((a - b).abs() <= 1e-4 * scale, "{name}, output {at}: {a}, expected {b}");
        }
    }
}

#[test]
fn an_operator_without_a_plain_form_is_named_for_people() {
    let mut model = onnx::parse(&zoo::build("lenet", [1, 8, 8], 4, 1).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let name = std::mem::replace(&mut graph.output[0].name, "waves".to_owned());
    graph.node.push(onnx::NodeProto::new("waves", "Sin", &[&name], &["waves"]));
    assert_eq!(
        Plain::read(&model.to_bytes()).unwrap_err().to_string(),
        "node \"waves\": operator Sin is not supported for webgpu, which runs convolutional \
         networks: another engine may run it"
    );
}

#[test]
fn every_family_of_the_zoo_answers_as_before() {
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.0, weight_decay: 0.0 };
    let large = ["vgg11", "resnet101"];
    for family in zoo::FAMILIES.into_iter().filter(|family| !large.contains(family)) {
        let onnx = zoo::build(family, [3, 17, 17], 3, 5).unwrap();
        let mut trainer = Trainer::new(&onnx, sgd).unwrap();
        let values = batch(&info(&[3, 17, 17]), 4);
        // Running statistics that are not those of the beginning.
        trainer.step(values.as_f32().unwrap(), &[0, 1, 2, 0]).unwrap();
        let onnx = trainer.to_inference_onnx();
        check(family, &onnx);
        assert_eq!(Plain::read(&onnx).unwrap().has_batches(), family != "squeezenet");
    }
}

fn info(dims: &[i64]) -> TensorInfo {
    let shape = std::iter::once(-1).chain(dims.iter().copied()).collect();
    TensorInfo { name: String::new(), datatype: "FP32".to_owned(), shape }
}

macro_rules! exports {
    ($($name:literal),* $(,)?) => {
        [$(($name, &include_bytes!(concat!("../../../testing/exports/", $name, ".onnx"))[..])),*]
    };
}

/// Exports for inference; those that still hold training are written back first. What has no
/// plain form is refused by its operator.
#[test]
fn exports_answer_as_before() {
    let exports = exports!(
        "keras_cnn",
        "keras_excited",
        "keras_mlp",
        "keras_mobile_plain",
        "pytorch_cnn_dynamo",
        "pytorch_cnn_eval",
        "pytorch_efficientnet_dynamo_plain",
        "pytorch_efficientnet_training",
        "pytorch_mean_eval",
        "pytorch_mobilenet_v2_training",
        "pytorch_mobilenet_v3_dynamo",
        "pytorch_resnet_eval",
        "pytorch_resnet_training",
    );
    let none = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let mut answered = 0;
    for (name, onnx) in exports {
        let onnx = Trainer::new(onnx, none).unwrap().to_inference_onnx();
        match Plain::read(&onnx) {
            Ok(_) => {
                check(name, &onnx);
                answered += 1;
            }
            Err(error) => {
                let error = error.to_string();
                let known = ["operator Pad", "operator LogSoftmax"];
                assert!(known.iter().any(|operator| error.contains(operator)), "{name}: {error}");
            }
        }
    }
    assert!(answered >= 9, "{answered} of {}", exports.len());
}

#[test]
fn statistics_of_a_batch_are_refused() {
    let mut model = onnx::parse(&zoo::build("resnet8", [3, 8, 8], 4, 9).unwrap()).unwrap();
    for node in &mut model.graph.as_mut().unwrap().node {
        if node.op_type == "BatchNormalization" {
            node.attribute.retain(|attribute| attribute.name != "training_mode");
            node.attribute.push(crate::onnx::AttributeProto::int("training_mode", 1));
        }
    }
    let refused = Plain::read(&model.to_bytes()).unwrap_err().to_string();
    assert!(refused.contains("batch normalisation in training mode"), "{refused}");
}
