//! Trainings that end early, and those that end with the best of their rounds.

use jobs::spec::{EarlyStopping, Keep, Metric};
use jobs::training::Enough;

use super::*;
use crate::record::JobResult;

fn asked(rounds: u32, change: impl FnOnce(&mut jobs::spec::TrainSpec)) -> JobSpec {
    let mut spec = train_spec(rounds, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    change(train);
    spec
}

/// Blobs of global parameters that are still stored.
async fn left(broker: &Broker, record: &JobRecord) -> Vec<u32> {
    let mut left = Vec::new();
    for outcome in &record.rounds {
        let size = broker.core.store.blobs.size(&outcome.parameters).await.unwrap();
        left.extend(size.map(|_| outcome.round.0));
    }
    left
}

/// Devices in tests judge every round alike: the first one is never bettered.
#[tokio::test]
async fn the_best_round_is_kept_until_the_end_and_registered() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (open, gate) = watch::channel(false);
    let device = Device::start_as(&world, "d1", move |task| match task.id.round.0 {
        6 => Action::After(gate.clone()),
        _ => Action::Work,
    })
    .await;
    joined(&broker, 1).await;
    let job = submit(&broker, asked(6, |train| train.keep = Keep::Best)).await;
    let mut offered = device.offered.clone();
    let last = |tasks: &Vec<jobs::spec::Task>| tasks.iter().any(|task| task.id.round.0 == 6);
    tokio::time::timeout(PATIENCE, offered.wait_for(last)).await.unwrap().unwrap();
    until("all but the best and the newest are forgotten", async || {
        left(&broker, &broker.job(&job).await.unwrap()).await == [1, 4, 5]
    })
    .await;
    open.send(true).unwrap();
    let record = ended(&broker, &job).await;
    let Some(JobResult::Train { model, round, enough }) = &record.result else {
        panic!("{record:?}")
    };
    assert_eq!((round.map(|round| round.0), *enough), (Some(1), Some(Enough::Rounds)));
    let query = model.name.as_str().parse().unwrap();
    let registered = broker.model(&query).await.unwrap();
    assert_eq!(registered.config.lineage.unwrap().rounds, 1);
    let onnx = broker.blob(&registered.training.unwrap().digest).await.unwrap();
    let (_, parameters) = models::train::Definition::read_with_parameters(&onnx).unwrap();
    let given = device.given.borrow()[&2].to_safetensors();
    assert_eq!(parameters, given, "the second round began with what is registered");
    until("nothing stays behind", async || left(&broker, &record).await.is_empty()).await;
}

#[tokio::test]
async fn a_training_that_does_not_improve_ends_early_and_successfully() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let early = EarlyStopping { patience: 2, min_delta: 0.0, metric: Metric::Accuracy };
    let job = submit(&broker, asked(9, |train| train.early_stopping = Some(early))).await;
    let record = ended(&broker, &job).await;
    assert_eq!((record.state, record.rounds.len()), (JobState::Succeeded, 3));
    let Some(JobResult::Train { round, enough, .. }) = record.result else { panic!() };
    assert_eq!((round.map(|round| round.0), enough), (Some(3), Some(Enough::EarlyStopping)));
    let best = record.rounds[2].best.unwrap();
    assert_eq!((best.round.0, best.metric, best.stale), (1, Metric::Accuracy, 2));
}
