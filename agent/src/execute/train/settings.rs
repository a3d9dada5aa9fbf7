//! What a task says of local training, for the engine.

pub(super) use datasets::settings::{loss, normalization};
use jobs::report::{Failure, FailureCode};
use jobs::spec::{self, Augment, LocalTraining, TrainTask};
use models::dataset::{Augmentation, Dataset};
use models::train::{Adam, Decay, Optimizer, Schedule, Settings, Sgd};

/// The optimizer and everything beside it, for a task of so many steps.
pub(super) fn of(task: &TrainTask, steps: u64) -> (Optimizer, Settings) {
    let local = &task.local;
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
        loss: loss(local.loss, local.label_smoothing),
        schedule: schedule(local, steps.saturating_mul(u64::from(task.rounds.max(1)))),
        first_step: steps.saturating_mul(task.rounds_done.into()),
        gradient_norm_max: local.gradient_norm_max,
        proximal: local.proximal,
        frozen: local.frozen.clone(),
    };
    (optimizer, settings)
}

/// How pictures are changed at random.
pub(super) fn augmentation(wanted: &[Augment], dataset: &Dataset) -> Result<Augmentation, Failure> {
    if let Some(first) = wanted.first()
        && !dataset.is_pictures()
    {
        let message = format!(
            "augment is {first}: pictures can be changed so, the data set is {}",
            dataset.format
        );
        return Err(Failure::new(FailureCode::InvalidSpec, message));
    }
    let has = |augment| wanted.contains(&augment);
    Ok(Augmentation {
        flip: has(Augment::Flip),
        pad_crop: has(Augment::PadCrop),
        cutout: has(Augment::Cutout),
    })
}

/// The schedule of a job in which this device takes so many steps.
fn schedule(local: &LocalTraining, job_steps: u64) -> Schedule {
    let warm_up = local.warm_up.into();
    let decay = match local.schedule {
        spec::Schedule::Constant => Decay::Constant,
        spec::Schedule::Step { every, factor } => Decay::Step { every: every.into(), factor },
        spec::Schedule::Cosine { floor, steps } => {
            let rest = job_steps.saturating_sub(warm_up).max(1);
            Decay::Cosine { steps: steps.map_or(rest, u64::from), floor }
        }
    };
    Schedule { warm_up, decay }
}

/// Refuses what no training can be done with, whoever sent it.
pub(super) fn check(local: &LocalTraining) -> Result<(), Failure> {
    let within = |value: f32, max: f32| (0.0..=max).contains(&value);
    let below_one = |value: f32| (0.0..1.0).contains(&value);
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
    } else if local.label_smoothing > 0.0 && local.loss != spec::Loss::CrossEntropy {
        format!("label_smoothing is {}: 0 with {}", local.label_smoothing, local.loss)
    } else if let Some(wrong) = wrong_schedule(local.schedule) {
        wrong
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureCode::InvalidSpec, wrong))
}

fn wrong_schedule(schedule: spec::Schedule) -> Option<String> {
    match schedule {
        spec::Schedule::Step { every, factor } if every == 0 || !(0.0..=1.0).contains(&factor) => {
            Some(format!("schedule is {schedule}: at least 1 step, a factor of 0 to 1"))
        }
        spec::Schedule::Cosine { floor, .. } if !(0.0..=1.0).contains(&floor) => {
            Some(format!("schedule is {schedule}: a floor of 0 to 1"))
        }
        spec::Schedule::Constant | spec::Schedule::Step { .. } | spec::Schedule::Cosine { .. } => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::{BlobRef, Bytes, DatasetName};
    use models::train::Loss;

    use super::*;

    fn task(local: LocalTraining, rounds_done: u32, rounds: u32) -> TrainTask {
        let blob = BlobRef::by_digest(link::digest::of(b""), Bytes(0));
        let (graph, dataset) = (blob.clone(), DatasetName::parse("digits").unwrap());
        TrainTask {
            graph,
            parameters: blob,
            dataset,
            local,
            seed: 1,
            rounds_done,
            rounds,
            initial_loss: false,
            control: None,
            update: spec::UpdateEncoding::default(),
            encoded: None,
            hold: false,
            next: None,
            counted: None,
            accept_at_once: false,
        }
    }

    /// What the step size of each step is multiplied with, round after round.
    fn factors(local: &LocalTraining, rounds: u32, steps: u64) -> Vec<f64> {
        let of_round = |round| {
            let (_, settings) = of(&task(local.clone(), round, rounds), steps);
            (0..steps).map(move |step| settings.schedule.factor(settings.first_step + step))
        };
        (0..rounds).flat_map(of_round).collect()
    }

    #[test]
    fn a_schedule_goes_on_from_round_to_round() {
        let local = |text: &str, warm_up| LocalTraining {
            schedule: text.parse().unwrap(),
            warm_up,
            ..LocalTraining::default()
        };
        assert_eq!(factors(&local("constant", 0), 2, 2), [1.0; 4]);
        assert_eq!(factors(&local("step:3:0.5", 0), 2, 3), [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]);
        let warm = factors(&local("constant", 3), 2, 3);
        assert_eq!(warm, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        let whole = factors(&local("cosine:0.1", 2), 4, 25);
        let once = factors(&local("cosine:0.1:98", 2), 1, 100);
        assert_eq!(whole, once);
        let falls = whole[2..].windows(2).all(|pair| pair[0] > pair[1]);
        assert!(falls && whole[99] < 0.101, "{whole:?}");
    }

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
        let (optimizer, settings) = of(&task(local, 0, 0), 10);
        assert_eq!(optimizer, Optimizer::AdamW(Adam { weight_decay: 0.5, ..Adam::new(0.05) }));
        assert_eq!(settings.loss, Loss::SoftmaxCrossEntropy { label_smoothing: 0.125 });
        assert_eq!((settings.proximal, settings.gradient_norm_max), (0.25, Some(2.0)));
        assert_eq!(settings.frozen, ["stem.*"]);
        let (plain, settings) = of(&task(LocalTraining::default(), 0, 0), 10);
        let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0 };
        assert_eq!((plain, settings), (Optimizer::Sgd(sgd), Settings::default()));
    }

    fn dataset(file: &str, text: &[u8]) -> Dataset {
        let files = vec![(file.to_owned(), text.to_vec())];
        models::dataset::decode(&files, models::dataset::Limits::default()).unwrap()
    }

    #[test]
    fn only_pictures_are_augmented() {
        let table = dataset("a.csv", b"1,2,0\n3,4,1\n");
        assert_eq!(augmentation(&[], &table).unwrap(), Augmentation::default());
        let refused = augmentation(&[Augment::Flip], &table).unwrap_err();
        assert!(refused.message.contains("the data set is csv"), "{refused:?}");
        let pictures = dataset("train.bin", &[1; 3073]);
        let found = augmentation(&[Augment::Cutout, Augment::Flip], &pictures).unwrap();
        assert_eq!(found, Augmentation { flip: true, pad_crop: false, cutout: true });
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let good = LocalTraining::default();
        for (name, bad) in [
            ("batch_size", LocalTraining { batch_size: 0, ..good.clone() }),
            ("momentum", LocalTraining { momentum: 1.0, ..good.clone() }),
            ("proximal", LocalTraining { proximal: f32::NAN, ..good.clone() }),
            ("gradient_norm_max", LocalTraining { gradient_norm_max: Some(0.0), ..good.clone() }),
            ("label_smoothing", LocalTraining { label_smoothing: 1.0, ..good.clone() }),
            (
                "label_smoothing",
                LocalTraining { label_smoothing: 0.1, loss: spec::Loss::Mse, ..good.clone() },
            ),
            ("schedule", LocalTraining { schedule: "step:0:0.5".parse().unwrap(), ..good.clone() }),
            ("schedule", LocalTraining { schedule: "cosine:2".parse().unwrap(), ..good }),
        ] {
            assert!(check(&bad).unwrap_err().message.starts_with(name), "{name}");
        }
    }
}
