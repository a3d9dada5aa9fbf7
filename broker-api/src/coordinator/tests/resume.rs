//! Trainings that go on from another.

use jobs::spec::RoundOf;

use super::*;
use crate::error::{ApiCode, ApiError};

fn from(job: &JobId, round: Option<u32>) -> JobSpec {
    let mut spec = train_spec(1, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    let round = round.map(jobs::id::RoundNumber);
    train.begin_from = Some(RoundOf { job: job.clone(), round });
    spec
}

/// What a training of one round began with.
async fn began_with(broker: &Broker, device: &Device, spec: JobSpec) -> Vec<u8> {
    let job = submit(broker, spec).await;
    let record = ended(broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    device.given.borrow()[&1].to_safetensors()
}

#[tokio::test]
async fn a_training_goes_on_from_one_that_was_stopped() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (open, gate) = watch::channel(false);
    let device = Device::start_as(&world, "d1", move |task| match task.id.round.0 {
        4 => Action::After(gate.clone()),
        _ => Action::Work,
    })
    .await;
    joined(&broker, 1).await;
    let job = submit(&broker, train_spec(9, 1)).await;
    let mut offered = device.offered.clone();
    let fourth = |tasks: &Vec<jobs::spec::Task>| tasks.iter().any(|task| task.id.round.0 == 4);
    tokio::time::timeout(PATIENCE, offered.wait_for(fourth)).await.unwrap().unwrap();
    let second = device.given.borrow()[&3].to_safetensors();
    let early = broker.job(&job).await.unwrap().rounds[1].parameters.clone();
    let again = |spec| broker.submit(spec, bytes::Bytes::new(), Some(id("again")), None);
    let asked = again(from(&job, Some(2))).await.unwrap();
    assert_eq!(ended(&broker, &asked.id).await.state, JobState::Succeeded);
    assert_eq!(device.given.borrow()[&1].to_safetensors(), second);
    broker.cancel(&job).await.unwrap();
    open.send(true).unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    let store = &broker.core.store;
    until("older rounds are forgotten", async || store.blobs.size(&early).await.unwrap().is_none())
        .await;
    let last = store.jobs.get(job.as_str()).await.unwrap().unwrap().value.parameters.unwrap();
    let last = store.blobs.get(&last).await.unwrap();
    assert_eq!(began_with(&broker, &device, from(&job, None)).await, last);
    for (spec, words) in [
        (from(&job, Some(2)), "the parameters of round 2 of job"),
        (from(&job, Some(1)), "those of round 3 are there"),
        (from(&job, Some(8)), "has no round 8 that ended"),
        (from(&"nothing".parse().unwrap(), None), "no job nothing"),
    ] {
        let error = refused(&broker, spec).await;
        assert!(error.detail.contains(words), "{error:?}");
    }
    // What was accepted while round 2 was there, asked for again.
    let known = again(from(&job, Some(2))).await.unwrap();
    assert_eq!((known.id, known.state), (asked.id, JobState::Succeeded));
    let other = again(from(&job, Some(1))).await.unwrap_err();
    assert_eq!(other.code, ApiCode::InvalidSpec, "{other:?}");
}

/// A job that goes on from no round that is there is not accepted.
async fn refused(broker: &Broker, spec: JobSpec) -> ApiError {
    let checked = broker.check(&spec).await.unwrap_err();
    let error = broker.submit(spec, bytes::Bytes::new(), None, None).await.unwrap_err();
    assert_eq!((error.code, &error), (ApiCode::InvalidSpec, &checked));
    error
}

#[tokio::test]
async fn a_training_goes_on_from_each_of_the_rounds_that_another_keeps() {
    let world = World::new().await;
    let broker = world.broker().await;
    let device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let mut keeps = train_spec(5, 1);
    let WorkSpec::Train(train) = &mut keeps.work else { unreachable!() };
    train.keep_rounds = Some(3);
    let job = submit(&broker, keeps).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let given = device.given.borrow().clone();
    let store = &broker.core.store;
    let trainings = &store.trainings;
    let forgotten = async || trainings.get(job.as_str()).await.unwrap().is_none();
    until("the training is forgotten", forgotten).await;
    for round in [3, 4] {
        let found = began_with(&broker, &device, from(&job, Some(round))).await;
        assert_eq!(found, given[&(round + 1)].to_safetensors(), "round {round}");
    }
    for (round, words) in [(2, "are gone"), (9, "has no round 9 that ended")] {
        let error = refused(&broker, from(&job, Some(round))).await;
        assert!(error.detail.contains(words), "{error:?}");
        assert!(error.detail.contains("those of rounds 3-5 are there"), "{error:?}");
    }
    // Another model.
    let mut wider = from(&job, Some(4));
    let WorkSpec::Train(train) = &mut wider.work else { unreachable!() };
    train.model.name = id("wider");
    let onnx = models::zoo::build("mlp", [1, 2, 2], 4, 7).unwrap();
    let config = models::artifact::ModelConfig::default();
    broker.register(&id("wider"), None, onnx.into(), config).await.unwrap();
    let error = refused(&broker, wider).await;
    assert!(error.detail.contains("has another model: "), "{error:?}");
    // Of the job nothing else is left, and with it this.
    let stored = store.jobs.get(job.as_str()).await.unwrap().unwrap().value;
    let kept: Vec<u32> = stored.kept_rounds.iter().map(|(round, _)| round.0).collect();
    assert_eq!((kept, stored.parameters), (vec![3, 4, 5], None));
    let early = &record.rounds[1].parameters;
    assert!(store.blobs.size(early).await.unwrap().is_none(), "round 2 is not kept");
}

#[tokio::test]
async fn a_training_goes_on_from_what_another_registered() {
    let world = World::new().await;
    let broker = world.broker().await;
    let device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let job = submit(&broker, train_spec(2, 1)).await;
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let registered = broker.model(&"tiny-mlp".parse().unwrap()).await.unwrap();
    let onnx = broker.blob(&registered.training.unwrap().digest).await.unwrap();
    let (_, parameters) = models::train::Definition::read_with_parameters(&onnx).unwrap();
    assert_eq!(began_with(&broker, &device, from(&job, None)).await, parameters);
}
