//! A network with batch normalisations: its running statistics become what devices measure,
//! whichever way the strategy moves weights.

use models::train::{Sgd, Trainer};

use super::*;
use crate::testing::trained::{MEAN, VARIANCE};

const SHAPE: [u32; 3] = [1, 8, 8];

async fn device(world: &World, name: &str) -> Device {
    let mut hello = hello(name);
    hello.datasets[0].shape = SHAPE.to_vec();
    Device::start_with(world, hello, |_| Action::Work).await
}

/// Three rounds of two devices, of 10 and 30 examples; what the first was given in each.
async fn rounds(strategy: &str, rule: Option<&str>, update: &str) -> Vec<Parameters> {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = device(&world, "d1").await;
    let _d2 = device(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = train_spec(3, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.model.name = id("resnet8");
    train.strategy = strategy.parse().unwrap();
    train.rule = rule.map(|rule| rule.parse().unwrap());
    train.update = update.parse().unwrap();
    train.local.momentum = 0.0;
    train.local.epochs = 1;
    // One step of the first device, two of the second.
    train.local.batch_size = 15;
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{strategy}: {record:?}");
    let given = d1.given.borrow();
    given.values().cloned().collect()
}

/// Whether a network with its first weights and these statistics gives a finite loss.
fn answers(weights: &Parameters, statistics: &Parameters) -> bool {
    let onnx = models::zoo::build("resnet8", [1, 8, 8], 3, 7).unwrap();
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let mut trainer = Trainer::new(&onnx, sgd).unwrap();
    let items = weights.items().iter().zip(statistics.items());
    let items = items.map(|(weight, measured)| {
        if weight.name.contains(".running_") { measured.clone() } else { weight.clone() }
    });
    trainer.set_parameters(&Parameters::new(items.collect()).unwrap()).unwrap();
    let x: Vec<f32> = (0..64_u8).map(|value| f32::from(value) / 64.0).collect();
    trainer.evaluate(&x, &[1]).unwrap().loss.is_finite()
}

fn assert_measured(name: &str, given: &[Parameters], times: f32) {
    assert_eq!(given.len(), 3, "{name}");
    for (round, parameters) in given.iter().enumerate().skip(1) {
        for item in parameters.items() {
            let expected = match item.name.rsplit('.').next() {
                Some("running_mean") => times * MEAN,
                Some("running_var") => times * VARIANCE,
                _ => continue,
            };
            let near = |value: &f32| (value - expected).abs() < 1e-6;
            let found = &item.values;
            let text = format!("{name}, round {round}: {} is {found:?}, not {expected}", item.name);
            assert!(found.iter().all(near), "{text}");
        }
        assert!(answers(&given[0], parameters), "{name}, round {round}");
    }
    let weights = |at: usize| {
        &given[at].items().iter().find(|it| it.name.ends_with("weight")).unwrap().values
    };
    assert_ne!(weights(1), weights(2), "{name}: it moves weights");
}

#[tokio::test]
async fn running_statistics_are_what_devices_measure() {
    // Device 1 counts 10 and device 2 counts 30 examples, where they count.
    let (by_examples, alike) = (1.75, 1.5);
    for (strategy, rule, update, times) in [
        ("fedavg", None, "plain", by_examples),
        ("fedavgm", None, "plain", by_examples),
        ("fedadagrad", None, "plain", by_examples),
        ("fedadam", None, "float32", by_examples),
        ("fedyogi", None, "plain", by_examples),
        ("fedadam", Some("normbound:norm=1e6"), "plain", alike),
        ("qfedavg:q=1", None, "plain", by_examples),
        ("fednova", None, "float32", by_examples),
        ("scaffold:learning_rate=3", None, "plain", alike),
        ("fedbuff:learning_rate=3", None, "plain", alike),
    ] {
        let given = rounds(strategy, rule, update).await;
        assert_measured(strategy, &given, times);
    }
}
