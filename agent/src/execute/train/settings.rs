//! What a task says of local training, for the engine.

use jobs::report::{Failure, FailureCode};
use jobs::spec::{self, LocalTraining};
use models::train::{Adam, Loss, Optimizer, Settings, Sgd};

/// The optimizer and everything beside it.
pub(super) fn of(local: &LocalTraining) -> (Optimizer, Settings) {
    let LocalTraining { learning_rate, momentum, weight_decay, .. } = *local;
    let sgd = Sgd { learning_rate, momentum, weight_decay };
    let adam = Adam { weight_decay, ..Adam::new(learning_rate) };
    let optimizer = match local.optimizer {
        spec::Optimizer::Sgd => Optimizer::Sgd(sgd),
        spec::Optimizer::Nesterov => Optimizer::Nesterov(sgd),
        spec::Optimizer::Adam => Optimizer::Adam(adam),
        spec::Optimizer::Adamw => Optimizer::AdamW(adam),
    };
    let settings = Settings {
        loss: Loss::SoftmaxCrossEntropy { label_smoothing: local.label_smoothing },
        gradient_norm_max: local.gradient_norm_max,
        proximal: local.proximal,
        frozen: local.frozen.clone(),
        ..Settings::default()
    };
    (optimizer, settings)
}

/// Refuses what no training can be done with, whoever sent it.
pub(super) fn check(local: &LocalTraining) -> Result<(), Failure> {
    let within = |value: f32, max: f32| (0.0..=max).contains(&value);
    let below_one = |value: f32| within(value, 0.999_999);
    let wrong = if local.batch_size == 0 {
        "batch_size is 0: at least 1".to_owned()
    } else if !within(local.learning_rate, f32::MAX) {
        format!("learning_rate is {}: a number of at least 0", local.learning_rate)
    } else if !below_one(local.momentum) {
        format!("momentum is {}: 0 to below 1", local.momentum)
    } else if !within(local.weight_decay, f32::MAX) {
        format!("weight_decay is {}: a number of at least 0", local.weight_decay)
    } else if !within(local.proximal, f32::MAX) {
        format!("proximal is {}: a number of at least 0", local.proximal)
    } else if local.gradient_norm_max.is_some_and(|norm| !(norm > 0.0 && norm.is_finite())) {
        format!("gradient_norm_max is {:?}: a number above 0", local.gradient_norm_max)
    } else if !below_one(local.label_smoothing) {
        format!("label_smoothing is {}: 0 to below 1", local.label_smoothing)
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureCode::InvalidSpec, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_settings() {
        let local = LocalTraining {
            optimizer: spec::Optimizer::Adamw,
            weight_decay: 0.5,
            proximal: 0.25,
            gradient_norm_max: Some(2.0),
            label_smoothing: 0.125,
            frozen: vec!["stem.*".to_owned()],
            ..LocalTraining::default()
        };
        check(&local).unwrap();
        let (optimizer, settings) = of(&local);
        assert_eq!(optimizer, Optimizer::AdamW(Adam { weight_decay: 0.5, ..Adam::new(0.05) }));
        assert_eq!(settings.loss, Loss::SoftmaxCrossEntropy { label_smoothing: 0.125 });
        assert_eq!((settings.proximal, settings.gradient_norm_max), (0.25, Some(2.0)));
        assert_eq!(settings.frozen, ["stem.*"]);
        let (plain, settings) = of(&LocalTraining::default());
        let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0 };
        assert_eq!((plain, settings), (Optimizer::Sgd(sgd), Settings::default()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let good = LocalTraining::default();
        for (name, bad) in [
            ("batch_size", LocalTraining { batch_size: 0, ..good.clone() }),
            ("momentum", LocalTraining { momentum: 1.0, ..good.clone() }),
            ("proximal", LocalTraining { proximal: f32::NAN, ..good.clone() }),
            ("gradient_norm_max", LocalTraining { gradient_norm_max: Some(0.0), ..good.clone() }),
            ("label_smoothing", LocalTraining { label_smoothing: 1.0, ..good }),
        ] {
            assert!(check(&bad).unwrap_err().message.starts_with(name), "{name}");
        }
    }
}
