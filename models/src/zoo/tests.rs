use super::*;
use crate::train::{Sgd, Trainer};

const SGD: Sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };

#[test]
fn every_family_takes_every_picture() {
    for family in FAMILIES {
        for shape in [[1, 1, 1], [1, 5, 3], [1, 8, 8], [1, 28, 28], [3, 32, 32], [4, 13, 64]] {
            let onnx = build(family, shape, 7, 1).unwrap();
            let mut trainer = Trainer::new(&onnx, SGD).unwrap();
            assert_eq!(trainer.example_shape(), shape, "{family}");
            assert_eq!(trainer.classes(), 7);
            let examples = vec![0.5; shape.iter().product::<usize>() * 2];
            let logits = trainer.logits(&examples).unwrap();
            assert!(logits.len() == 14 && logits.iter().all(|logit| logit.is_finite()));
        }
    }
    assert_eq!(build("vgg", [1, 8, 8], 2, 0), None);
    assert_eq!(build("mlp", [1, 0, 8], 2, 0), None);
}

#[test]
fn usual_sizes_are_those_of_the_families() {
    let count = |family: &str| {
        Trainer::new(&build(family, [3, 32, 32], 10, 1).unwrap(), SGD).unwrap().trained_len()
    };
    assert_eq!(count("mlp"), 3072 * 64 + 64 + 64 * 10 + 10);
    assert_eq!(count("lenet"), 62_006);
    assert_eq!(count("cnn"), 896 + 18_496 + 40_970);
    assert_eq!(count("resnet8"), 78_042);
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_gives_others() {
    let one = build("cnn", [1, 8, 8], 10, 1);
    assert_eq!(one, build("cnn", [1, 8, 8], 10, 1));
    assert_ne!(one, build("cnn", [1, 8, 8], 10, 2));
}

#[test]
fn initial_weights_have_the_variance_of_he() {
    let onnx = build("mlp", [3, 32, 32], 10, 3).unwrap();
    let parameters = Trainer::new(&onnx, SGD).unwrap().parameters();
    let weights = &parameters.find("hidden.weight").unwrap().values;
    let squares: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
    let variance = squares / (64.0 * 3072.0);
    assert!((variance * 3072.0 / 2.0 - 1.0).abs() < 0.02, "{variance}");
    assert!(parameters.find("hidden.bias").unwrap().values.iter().all(|b| *b == 0.0));
}
