//! Losses, schedules, clipping, corrections and freezing, in whole steps.

use super::*;
use crate::params::Parameter;

const PLAIN: Sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };

fn trainer(family: &str, settings: Settings) -> Trainer {
    let onnx = zoo::build(family, [1, 6, 6], 3, 7).unwrap();
    Trainer::with_settings(&onnx, PLAIN, settings).unwrap()
}

/// What a step adds to each weight, by name.
fn moves(trainer: &mut Trainer) -> Vec<(String, Vec<f32>)> {
    let (examples, labels) = batch(trainer, 6);
    let before = trainer.parameters();
    trainer.step(&examples, &labels).unwrap();
    let pairs = before.items().iter().zip(trainer.parameters().items().to_vec());
    pairs
        .map(|(before, after)| {
            let moved = after.values.iter().zip(&before.values).map(|(a, b)| a - b);
            (before.name.clone(), moved.collect())
        })
        .collect()
}

fn length(moves: &[(String, Vec<f32>)]) -> f64 {
    let all: Vec<f32> = moves.iter().flat_map(|(_, values)| values.clone()).collect();
    norm(&all)
}

#[test]
fn every_loss_falls() {
    for loss in [
        Loss::SoftmaxCrossEntropy { label_smoothing: 0.1 },
        Loss::MeanSquaredError,
        Loss::BinaryCrossEntropy,
    ] {
        let mut trainer = trainer("cnn", Settings { loss, ..Settings::default() });
        let (examples, labels) = batch(&trainer, 6);
        let first = trainer.step(&examples, &labels).unwrap();
        for _ in 0..40 {
            trainer.step(&examples, &labels).unwrap();
        }
        let last = trainer.evaluate(&examples, &labels).unwrap();
        assert!(last.loss < 0.8 * first.loss, "{loss:?}: {first:?} {last:?}");
    }
}

#[test]
fn values_may_be_targets() {
    let settings = Settings { loss: Loss::MeanSquaredError, ..Settings::default() };
    let mut trainer = trainer("mlp", settings);
    let (examples, _) = batch(&trainer, 6);
    let targets: Vec<f32> = (0..18_u8).map(|i| f32::from(i) / 9.0 - 1.0).collect();
    for _ in 0..400 {
        trainer.step_towards(&examples, Targets::Values(&targets)).unwrap();
    }
    let last = trainer.evaluate_towards(&examples, Targets::Values(&targets)).unwrap();
    assert!(last.loss < 0.05, "{last:?}");
    let error = trainer.step_towards(&examples, Targets::Values(&targets[1..])).unwrap_err();
    assert!(error.to_string().contains("6 examples with 17 targets"), "{error}");
}

#[test]
fn one_output_takes_two_labels() {
    let onnx = zoo::build("mlp", [1, 2, 2], 1, 7).unwrap();
    let settings = Settings { loss: Loss::BinaryCrossEntropy, ..Settings::default() };
    let mut trainer = Trainer::with_settings(&onnx, PLAIN, settings).unwrap();
    let examples = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0];
    for _ in 0..200 {
        trainer.step(&examples, &[0, 1]).unwrap();
    }
    assert_eq!(trainer.evaluate(&examples, &[0, 1]).unwrap().correct, 2);
    let error = trainer.step(&examples, &[0, 2]).unwrap_err();
    assert_eq!(error, TrainError::Label { label: 2, classes: 2 });
}

#[test]
fn gradients_are_clipped_to_their_norm_together() {
    let whole = length(&moves(&mut trainer("lenet", Settings::default())));
    for (share, expected) in [(0.5, 0.5), (2.0, 1.0)] {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let gradient_norm_max = Some((whole / 0.1 * share) as f32);
        let settings = Settings { gradient_norm_max, ..Settings::default() };
        let clipped = length(&moves(&mut trainer("lenet", settings)));
        assert!((clipped / whole - expected).abs() < 1e-4, "{clipped} of {whole}");
    }
}

#[test]
fn steps_follow_the_schedule() {
    let schedule = Schedule { warm_up: 0, decay: Decay::Step { every: 10, factor: 0.5 } };
    let whole = length(&moves(&mut trainer("lenet", Settings::default())));
    for (first_step, expected) in [(0, 1.0), (9, 1.0), (10, 0.5), (25, 0.25)] {
        let settings = Settings { schedule, first_step, ..Settings::default() };
        let found = length(&moves(&mut trainer("lenet", settings)));
        assert!((found / whole - expected).abs() < 1e-4, "{first_step}: {found} of {whole}");
    }
}

#[test]
fn the_proximal_term_pulls_towards_the_weights_that_were_set() {
    let mut near = trainer("mlp", Settings { proximal: 5.0, ..Settings::default() });
    let mut free = trainer("mlp", Settings::default());
    let start = free.parameters();
    assert_eq!(moves(&mut near), moves(&mut free), "where it pulls to, nothing is pulled");
    // A second step: mu (w - w0) more of gradient.
    let once = free.parameters();
    for ((moved, plain), (w0, w)) in
        moves(&mut near).iter().zip(moves(&mut free)).zip(start.items().iter().zip(once.items()))
    {
        for (at, (moved, plain)) in moved.1.iter().zip(&plain.1).enumerate() {
            let expected = plain - 0.1 * 5.0 * (w.values[at] - w0.values[at]);
            assert!((moved - expected).abs() < 1e-6, "{moved}, expected {expected}");
        }
    }
}

#[test]
fn control_variates_are_added_to_every_gradient() {
    let mut corrected = trainer("mlp", Settings::default());
    let mut plain = trainer("mlp", Settings::default());
    let ones = |parameters: &Parameters| {
        let one =
            |item: &Parameter| Parameter { values: vec![1.0; item.values.len()], ..item.clone() };
        Parameters::new(parameters.items().iter().map(one).collect()).unwrap()
    };
    let control = ones(&corrected.parameters());
    corrected.set_control_variate(Some(&control)).unwrap();
    for (moved, plain) in moves(&mut corrected).iter().zip(moves(&mut plain)) {
        for (moved, plain) in moved.1.iter().zip(&plain.1) {
            assert!((moved - (plain - 0.1)).abs() < 1e-6);
        }
    }
    let fewer = Parameters::new(control.items()[1..].to_vec()).unwrap();
    let error = corrected.set_control_variate(Some(&fewer)).unwrap_err();
    assert!(matches!(error, TrainError::Parameters(ParametersError::Missing(_))), "{error}");
    corrected.set_control_variate(None).unwrap();
}

#[test]
fn what_is_frozen_stays() {
    let frozen = vec!["stem.*".to_owned(), "*norm1.running_*".to_owned()];
    let mut trainer = trainer("resnet8", Settings { frozen, ..Settings::default() });
    let all = Trainer::new(&zoo::build("resnet8", [1, 6, 6], 3, 7).unwrap(), PLAIN).unwrap();
    assert_eq!(trainer.layout(), all.layout());
    assert_eq!(trainer.trained_len(), all.trained_len() - 16 * 9 - 2 * 16);
    for (name, moved) in moves(&mut trainer) {
        let stays = name.starts_with("stem.") || name.contains("norm1.running_");
        assert_eq!(moved.iter().all(|moved| *moved == 0.0), stays, "{name}");
    }
    let again = Trainer::new(&trainer.to_training_onnx(), PLAIN).unwrap();
    assert_eq!(again.parameters(), trainer.parameters());
    let everything = Settings { frozen: vec!["*".to_owned()], ..Settings::default() };
    let onnx = zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    let error = Trainer::with_settings(&onnx, PLAIN, everything).unwrap_err();
    assert!(error.to_string().contains("no weight that is trained"), "{error}");
}
