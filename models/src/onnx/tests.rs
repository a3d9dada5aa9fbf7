use proptest::prelude::*;

use super::*;
use crate::train::{Sgd, Trainer};
use crate::zoo;

const SGD: Sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 };

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

#[test]
fn foreign_files_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    assert!(refusal(pointer).contains("Git-LFS pointer"));
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(b"  <!DOCTYPE html><html>").contains("an HTML page"));
    assert!(refusal(b"{\"error\": 404}").contains("JSON"));
    assert!(refusal(b"404 page not found\n").contains("text beginning \"404 page"));
    assert!(refusal(b"PK\x03\x04\x00\x00").contains("PyTorch"));
    assert!(refusal(&[0xff; 40]).contains("damaged"));
    assert!(refusal(&[8, 8]).contains("no graph"));
    let weights = Trainer::new(&zoo::build("mlp", [1, 2, 2], 2, 0).unwrap(), SGD).unwrap();
    assert!(refusal(&weights.parameters().to_safetensors()).contains("safetensors"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = zoo::build("resnet8", [1, 4, 4], 2, 0).unwrap();
    for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let error = parse(&bytes[..end]).unwrap_err();
        assert!(matches!(error, GraphError::NotOnnx(_)), "{end}: {error}");
    }
}

#[test]
fn data_in_other_files_is_refused() {
    let mut model = parse(&zoo::build("mlp", [1, 2, 2], 2, 0).unwrap()).unwrap();
    model.graph.as_mut().unwrap().initializer[0].data_location = Some(EXTERNAL);
    let error = parse(&model.to_bytes()).unwrap_err().to_string();
    assert!(error.contains("hidden.weight") && error.contains("another file"), "{error}");
}

#[test]
fn operator_sets_that_never_were_are_refused() {
    let model = parse(&zoo::build("mlp", [1, 2, 2], 2, 0).unwrap()).unwrap();
    for version in [-3, 0, i64::MIN] {
        let mut model = model.clone();
        model.opset_import[0].version = Some(version);
        let error = parse(&model.to_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version} of ONNX's operator set")), "{error}");
    }
}

#[test]
fn a_value_that_two_nodes_make_is_named() {
    let mut model = parse(&zoo::build("mlp", [1, 2, 2], 2, 0).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let name = graph.node[0].output[0].clone();
    // Outputs that are left out are no values.
    graph.node[0].output.extend([String::new(), String::new()]);
    parse(&model.to_bytes()).unwrap();
    model.graph.as_mut().unwrap().node[1].output[0].clone_from(&name);
    let error = parse(&model.to_bytes()).unwrap_err().to_string();
    assert!(error.contains(&format!("two nodes make {name:?}")), "{error}");
}

#[test]
fn written_files_read_back_the_same() {
    let bytes = zoo::build("resnet8", [3, 8, 8], 10, 1).unwrap();
    let model = parse(&bytes).unwrap();
    assert_eq!(model.to_bytes(), bytes);
    assert_eq!(model.opset(), Some(17));
}

#[test]
fn typed_and_raw_data_are_the_same_values() {
    let raw = TensorProto::from_f32("x", &[2], &[1.0, -2.5]);
    let typed = TensorProto { raw_data: None, float_data: vec![1.0, -2.5], ..raw.clone() };
    assert_eq!(raw.to_f32(), typed.to_f32());
    assert_eq!(raw.to_f32().unwrap(), (vec![2], vec![1.0, -2.5]));
    assert!(raw.to_i64().unwrap_err().contains("expected element type INT64, found FLOAT"));
    let wrong = TensorProto { dims: vec![3], ..raw.clone() };
    assert!(wrong.to_f32().unwrap_err().contains("needs 3 values, found 2"));
    let wrong = TensorProto { dims: vec![-2], ..raw.clone() };
    assert!(wrong.to_f32().unwrap_err().contains("impossible"));
    let wrong = TensorProto { dims: vec![i64::MAX, i64::MAX], ..raw };
    assert!(wrong.to_f32().unwrap_err().contains("impossible"));
}

/// Everything that reads foreign bytes, up to a graph that is ready to train.
fn read_all(bytes: &[u8]) -> Option<usize> {
    let trainer = Trainer::new(bytes, SGD).ok()?;
    let inference = trainer.to_inference_onnx().len() + trainer.to_folded_onnx().len();
    Some(inference + trainer.to_training_onnx().len())
}

/// Families that are quick to build and have every operator between them.
const FAMILIES: &[&str] = &["mlp", "lenet", "cnn", "resnet8", "mobilenet_v3_small", "squeezenet"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_models_never_panic(
        family in prop::sample::select(FAMILIES),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = zoo::build(family, [1, 4, 4], 2, 0).unwrap();
        // The graph's nodes come first in the file, its weights behind them.
        let head = bytes.len().min(2000);
        for (at, byte) in damage {
            let at = at.index(head);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        prop_assert!(read_all(&bytes).is_none_or(|len| len > 0));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_all(&bytes).is_none());
    }
}
