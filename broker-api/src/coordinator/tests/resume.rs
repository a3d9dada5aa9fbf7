//! Trainings that go on from another.

use jobs::spec::RoundOf;

use super::*;

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
    assert_eq!(began_with(&broker, &device, from(&job, Some(2))).await, second);
    broker.cancel(&job).await.unwrap();
    open.send(true).unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    let store = &broker.core.store;
    until("older rounds are forgotten", async || store.blobs.size(&early).await.unwrap().is_none())
        .await;
    let last = store.jobs.get(job.as_str()).await.unwrap().unwrap().value.parameters.unwrap();
    let last = store.blobs.get(&last).await.unwrap();
    assert_eq!(began_with(&broker, &device, from(&job, None)).await, last);
    for (spec, code, words) in [
        (from(&job, Some(2)), FailureCode::BlobUnavailable, "the parameters of round 2 of job"),
        (from(&job, Some(8)), FailureCode::InvalidSpec, "has no round 8 that ended"),
        (from(&"nothing".parse().unwrap(), None), FailureCode::InvalidSpec, "no job nothing"),
    ] {
        let job = submit(&broker, spec).await;
        let failure = ended(&broker, &job).await.failure.unwrap();
        assert_eq!(failure.code, code, "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?}");
    }
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
