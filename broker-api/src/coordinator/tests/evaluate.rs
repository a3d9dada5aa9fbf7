//! Rounds that the broker judges on data of its own.

use std::path::Path;

use jobs::round::Judgement;
use jobs::spec::{Evaluate, Keep, TrainSpec};
use models::dataset::{Batches, Limits, Normalization};

use super::*;
use crate::broker::BrokerConfig;
use crate::error::ApiCode;
use crate::record::JobResult;

fn asked(rounds: u32, evaluate: Evaluate, change: impl FnOnce(&mut TrainSpec)) -> JobSpec {
    let mut spec = train_spec(rounds, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.evaluate = evaluate;
    change(train);
    spec
}

/// Nine pictures of [1, 2, 2] and three classes to judge with, in IDX.
fn files() -> Vec<(String, Vec<u8>)> {
    let heading = |magic: u32, extents: &[u32]| -> Vec<u8> {
        let words = [&[magic], extents].concat();
        words.into_iter().flat_map(u32::to_be_bytes).collect()
    };
    let pictures = [heading(0x803, &[9, 2, 2]), (0..36).map(|value| value * 7).collect()].concat();
    let labels = [heading(0x801, &[9]), vec![0, 1, 2, 2, 1, 0, 0, 0, 1]].concat();
    let named = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), bytes);
    [
        ("t10k-images-idx3-ubyte", pictures),
        ("t10k-labels-idx1-ubyte", labels),
        ("labels.txt", b"a\nb\nc\n".to_vec()),
    ]
    .map(named)
    .to_vec()
}

fn write(folder: &Path) {
    for (name, bytes) in files() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

fn judging(world: &World) -> (tempfile::TempDir, BrokerConfig) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let config = world.config_with(folder.path());
    (folder, config)
}

/// Loss and accuracy of parameters on the files, without anything of the broker.
fn reference(parameters: &Parameters) -> (f64, f64) {
    let dataset = models::dataset::decode(&files(), Limits::default()).unwrap();
    let onnx = models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    let loss = models::train::Loss::SoftmaxCrossEntropy { label_smoothing: 0.0 };
    let mut trainer = models::train::Trainer::for_evaluation(&onnx, loss).unwrap();
    trainer.set_parameters(parameters).unwrap();
    let normalization = Normalization { mean: vec![0.5], std: vec![0.5] };
    let mut batches = Batches::new(&dataset.test, &normalization);
    let (x, labels) = batches.get(&(0..9).collect::<Vec<_>>(), 0);
    let done = trainer.evaluate(x, labels).unwrap();
    (done.loss, f64::from(u32::try_from(done.correct).unwrap()) / 9.0)
}

#[tokio::test]
async fn the_broker_judges_new_parameters_and_its_judgement_decides() {
    let world = World::new().await;
    let (_folder, config) = judging(&world);
    let broker = Broker::start(config).await.unwrap();
    let device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    for evaluate in [Evaluate::Broker, Evaluate::Both] {
        let spec = asked(3, evaluate, |train| train.keep = Keep::Best);
        let job = submit(&broker, spec).await;
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let mut losses = Vec::new();
        for outcome in &record.rounds[..2] {
            let after = device.given.borrow()[&(outcome.round.0 + 1)].clone();
            let (loss, accuracy) = reference(&after);
            let Some(Judgement::Judged(judged)) = &outcome.judgement else { panic!("{outcome:?}") };
            assert_eq!(judged.examples, 9);
            assert!((judged.loss - loss).abs() < 1e-6, "{judged:?}, expected {loss}");
            assert!((judged.accuracy - accuracy).abs() < 1e-12, "{judged:?}");
            assert_eq!(outcome.accuracy(), Some(judged.accuracy));
            losses.push(judged.loss);
        }
        assert!((losses[0] - losses[1]).abs() > 1e-6, "rounds differ: {losses:?}");
        // Devices in tests say 0.25 of whatever they judge.
        let devices: Vec<_> =
            record.rounds.iter().map(jobs::round::Outcome::devices_accuracy).collect();
        let expected = (evaluate == Evaluate::Both).then_some(0.25);
        assert_eq!(devices, [expected; 3]);
        let best = record.rounds[2].best.unwrap();
        let smallest = record.rounds.iter().filter_map(jobs::round::Outcome::loss);
        assert_eq!(Some(best.value), smallest.reduce(f64::min));
        let Some(JobResult::Train { round, .. }) = record.result else { panic!() };
        assert_eq!(round, Some(best.round));
    }
}

#[tokio::test]
async fn a_broker_without_the_data_refuses_to_judge() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let spec = asked(1, Evaluate::Both, |_| ());
    let refused = broker.submit(spec, bytes::Bytes::new(), None, None).await.unwrap_err();
    assert_eq!(refused.code, ApiCode::UnknownDataset);
    assert!(refused.detail.contains("no data set tiny to judge with"), "{refused:?}");
    assert!(refused.hint.contains("dunlin serve --data"), "{refused:?}");
}

#[tokio::test]
async fn data_that_cannot_be_read_end_the_broker_at_its_start() {
    let world = World::new().await;
    let (folder, config) = judging(&world);
    std::fs::write(folder.path().join("t10k-labels-idx1-ubyte"), b"none").unwrap();
    let error = Broker::start(config).await.unwrap_err();
    assert!(error.downcast_ref::<datasets::DataError>().is_some(), "{error:#}");
    assert!(error.to_string().contains("data set tiny in "), "{error:#}");
}

/// What a broker says of a round that it took over: it goes on, and judges if it can.
#[tokio::test]
async fn the_broker_that_takes_over_judges_or_says_why_not() {
    for has_data in [true, false] {
        let world = World::new().await;
        let (_folder, config) = judging(&world);
        let first_runtime = tokio::runtime::Runtime::new().unwrap();
        let first = first_runtime.spawn(Broker::start(config.clone())).await.unwrap().unwrap();
        let (mut device, gate) = gated(&world).await;
        joined(&first, 1).await;
        let job = submit(&first, asked(1, Evaluate::Broker, |_| ())).await;
        device.offered(Purpose::Train).await;
        let second =
            if has_data { Broker::start(config).await.unwrap() } else { world.broker().await };
        first_runtime.shutdown_background();
        gate.send(true).unwrap();
        let record = ended(&second, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        match record.rounds[0].judgement.as_ref().unwrap() {
            Judgement::Judged(judged) if has_data => assert_eq!(judged.examples, 9),
            Judgement::Missing(why) if !has_data => {
                assert_eq!(why.code, FailureCode::UnknownDataset);
                assert!(why.message.contains("leads the training has no data set tiny"));
            }
            other @ (Judgement::Judged(_) | Judgement::Missing(_)) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_judgement_that_takes_too_long_holds_no_round_up() {
    let world = World::new().await;
    let (_folder, config) = judging(&world);
    let broker = Broker::start(config).await.unwrap();
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    // Something else is judged all the time.
    let _turn = broker.core.judge.turn(std::time::Instant::now() + PATIENCE).await.unwrap();
    let spec = asked(1, Evaluate::Broker, |train| {
        train.participation.deadline_ms = jobs::id::Millis(2000);
    });
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let Some(Judgement::Missing(why)) = &record.rounds[0].judgement else { panic!("{record:?}") };
    assert_eq!(why.code, FailureCode::DeadlineExceeded);
    assert_eq!(record.rounds[0].accuracy(), None);
}

#[tokio::test]
async fn data_of_another_kind_are_no_judge() {
    let world = World::new().await;
    let (folder, config) = judging(&world);
    std::fs::write(folder.path().join("labels.txt"), "c\nb\na\n").unwrap();
    let broker = Broker::start(config).await.unwrap();
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let job = submit(&broker, asked(1, Evaluate::Broker, |_| ())).await;
    let record = ended(&broker, &job).await;
    let Some(Judgement::Missing(why)) = &record.rounds[0].judgement else { panic!("{record:?}") };
    assert_eq!(why.code, FailureCode::InvalidDataset, "{why:?}");
}
