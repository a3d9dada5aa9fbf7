//! A device that trains as the task says and sends the opposite of what it learnt.

use jobs::device::DatasetFacts;
use jobs::spec::TrainTask;
use models::dataset::{Batches, Dataset, Order};
use models::params::Parameters;
use models::train::{Sgd, Trainer};

/// What a device says of it.
pub(super) fn facts(name: &str, dataset: &Dataset) -> DatasetFacts {
    let number = |value: usize| u32::try_from(value).unwrap();
    DatasetFacts {
        name: name.parse().unwrap(),
        format: dataset.format.to_owned(),
        shape: dataset.example_shape().into_iter().map(number).collect(),
        classes: number(dataset.classes),
        train_examples: dataset.train.len() as u64,
        test_examples: 0,
        train_class_counts: Vec::new(),
        columns: Vec::new(),
        labels: dataset.class_names.clone(),
        mean: dataset.normalization.mean.clone(),
        std: dataset.normalization.std.clone(),
        channel_mean: Vec::new(),
        channel_std: Vec::new(),
    }
}

/// `x - factor (w - x)` where plain training comes to `w`.
pub(super) fn flipped(
    dataset: &Dataset,
    graph: &[u8],
    parameters: &[u8],
    task: &TrainTask,
    factor: f32,
) -> Vec<u8> {
    let local = &task.local;
    let (learning_rate, momentum, weight_decay) =
        (local.learning_rate, local.momentum, local.weight_decay);
    let mut trainer = Trainer::new(graph, Sgd { learning_rate, momentum, weight_decay }).unwrap();
    let x = Parameters::from_safetensors(parameters).unwrap();
    trainer.set_parameters(&x).unwrap();
    let mut batches = Batches::new(&dataset.train, &dataset.normalization);
    for epoch in 0..local.epochs.into() {
        let order = Order::new(dataset.train.len(), task.seed, epoch);
        for indices in order.batches(local.batch_size as usize) {
            let (examples, labels) = batches.get(indices, epoch);
            trainer.step(examples, labels).unwrap();
        }
    }
    let mut items = trainer.parameters().items().to_vec();
    for (item, x) in items.iter_mut().zip(x.items()) {
        for (value, x) in item.values.iter_mut().zip(&x.values) {
            *value = x - factor * (*value - x);
        }
    }
    Parameters::new(items).unwrap().to_safetensors()
}
