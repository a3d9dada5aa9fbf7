//! Brokers that stop in the middle of storing new parameters.

use jobs::id::Bytes;
use tokio::runtime::Runtime;

use super::state::parameters_name;
use super::*;

/// Bytes a second that a broker moves: a model takes a second.
const SLOW: u64 = 500_000;

/// A slow broker, which has begun to store what comes of the first round.
struct Storing {
    world: World,
    runtime: Runtime,
    broker: Broker,
    device: Device,
    job: JobId,
}

async fn storing(change: impl FnOnce(&mut jobs::spec::TrainSpec)) -> Storing {
    let world = World::new().await;
    let runtime = Runtime::new().unwrap();
    let starting = Broker::start_slow(world.broker_config(), SLOW);
    let broker = runtime.spawn(starting).await.unwrap().unwrap();
    let mut large = hello("d1");
    large.datasets[0].shape = vec![1, 40, 50];
    let device = Device::start_with(&world, large, |_| Action::Work).await;
    joined(&broker, 1).await;
    let mut spec = train_spec(2, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    change(train);
    let job = submit(&broker, spec).await;
    let trainings = &broker.core.store.trainings;
    until("the update is combined", async || {
        let stored = trainings.get(job.as_str()).await.unwrap();
        let machine = stored.and_then(|stored| stored.value.machine);
        machine.is_some_and(|machine| machine.round().unwrap().status().phase == "aggregating")
    })
    .await;
    Storing { world, runtime, broker, device, job }
}

/// Whether a blob of this name is stored.
async fn is_stored(broker: &Broker, name: String) -> bool {
    let blob = BlobRef { name: Some(name), digest: link::digest::of(b""), size: Bytes(0) };
    broker.core.store.blobs.size(&blob).await.unwrap().is_some()
}

#[tokio::test]
async fn what_a_training_stores_while_it_is_cancelled_is_removed() {
    for (strategy, download) in [("fedavg", "plain"), ("fedadam", "int8")] {
        let storing = storing(|train| {
            train.strategy = strategy.parse().unwrap();
            train.update = "float32:delta=true".parse().unwrap();
            train.download = download.parse().unwrap();
        });
        let Storing { world, runtime, broker, device: _device, job } = storing.await;
        broker.cancel(&job).await.unwrap();
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Cancelled, "{record:?}");
        assert_eq!(record.rounds[0].failure.as_ref().unwrap().code, FailureCode::Cancelled);
        assert!(!is_stored(&broker, parameters_name(&job, 1, 1)).await, "it is under way");
        // What it is about is done first.
        broker.stop().await;
        runtime.shutdown_background();
        forgotten(&world, &job).await;
    }
}

/// Another broker has made its own, and ended the training, before the first is done.
#[tokio::test]
async fn what_a_broker_stores_that_lets_go_of_a_training_is_removed() {
    let Storing { world, runtime, broker, device: _device, job } = storing(|_| ()).await;
    let second = world.broker().await;
    let stopping = tokio::spawn(broker.stop());
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert!(!stopping.is_finished(), "it is under way");
    stopping.await.unwrap();
    runtime.shutdown_background();
    forgotten(&world, &job).await;
}

#[tokio::test]
async fn another_broker_forgets_a_training_whose_broker_was_gone_at_its_end() {
    let Storing { world, runtime, broker, device: _device, job } = storing(|_| ()).await;
    broker.cancel(&job).await.unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    runtime.shutdown_background();
    let second = world.broker().await;
    let trainings = &second.core.store.trainings;
    assert!(trainings.get(job.as_str()).await.unwrap().is_some(), "it is not forgotten yet");
    forgotten(&world, &job).await;
    until("it is", async || trainings.get(job.as_str()).await.unwrap().is_none()).await;
}
