//! Brokers that stop in the middle of storing new parameters.

use async_nats::header::HeaderMap;
use jobs::id::{Attempt, Bytes};
use jobs::report::TaskReport;
use jobs::spec::TrainTask;
use jobs::{subject, wire};
use link::blobs::Blobs;
use models::federated::encoding::decode_parameters;
use serde_json::json;
use tokio::runtime::Runtime;

use super::state::{encoded_name, parameters_name};
use super::*;

/// Bytes a second that a broker moves: a model takes a second.
const SLOW: u64 = 500_000;

/// A slow broker, which has begun to store what comes of the first round. In the second the device
/// waits at its gate.
struct Storing {
    world: World,
    runtime: Runtime,
    broker: Broker,
    device: Device,
    gate: watch::Sender<bool>,
    job: JobId,
}

async fn storing(change: impl FnOnce(&mut jobs::spec::TrainSpec)) -> Storing {
    let world = World::new().await;
    let runtime = Runtime::new().unwrap();
    let starting = Broker::start_slow(world.broker_config(), SLOW);
    let broker = runtime.spawn(starting).await.unwrap().unwrap();
    let mut large = hello("d1");
    large.datasets[0].shape = vec![1, 40, 50];
    let (gate, open) = watch::channel(false);
    let device = Device::start_with(&world, large, move |task| match task.id.round.0 {
        2 => Action::After(open.clone()),
        _ => Action::Work,
    })
    .await;
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
    Storing { world, runtime, broker, device, gate, job }
}

/// Whether a blob of this name is stored.
async fn is_stored(blobs: &Blobs, name: String) -> bool {
    let blob = BlobRef { name: Some(name), ..BlobRef::by_digest(link::digest::of(b""), Bytes(0)) };
    blobs.size(&blob).await.unwrap().is_some()
}

#[tokio::test]
async fn what_a_training_stores_while_it_is_cancelled_is_removed() {
    for (strategy, download) in [("fedavg", "plain"), ("fedadam", "int8")] {
        let storing = storing(|train| {
            train.strategy = strategy.parse().unwrap();
            train.update = "float32:delta=true".parse().unwrap();
            train.download = download.parse().unwrap();
        });
        let Storing { world, runtime, broker, device: _device, job, .. } = storing.await;
        broker.cancel(&job).await.unwrap();
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Cancelled, "{record:?}");
        assert_eq!(record.rounds[0].failure.as_ref().unwrap().code, FailureCode::Cancelled);
        assert!(
            !is_stored(&broker.core.store.blobs, parameters_name(&job, 1, 1)).await,
            "it is under way"
        );
        // What it is about is done first.
        broker.stop().await;
        runtime.shutdown_background();
        forgotten(&world, &job).await;
    }
}

/// Another broker has made its own, and ended the training, before the first is done.
#[tokio::test]
async fn what_a_broker_stores_that_lets_go_of_a_training_is_removed() {
    let Storing { world, runtime, broker, device: _device, gate, job } = storing(|_| ()).await;
    gate.send(true).unwrap();
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
    let Storing { world, runtime, broker, device: _device, job, .. } = storing(|_| ()).await;
    broker.cancel(&job).await.unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    runtime.shutdown_background();
    let second = world.broker().await;
    let trainings = &second.core.store.trainings;
    assert!(trainings.get(job.as_str()).await.unwrap().is_some(), "it is not forgotten yet");
    forgotten(&world, &job).await;
    until("it is", async || trainings.get(job.as_str()).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_device_that_reports_more_blobs_than_it_can_have_is_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let (mut d2, gate) = gated_as(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = train_spec(1, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let job = submit(&broker, spec).await;
    let task = d2.offered(Purpose::Train).await.id;
    let context = async_nats::jetstream::new(world.client().await);
    for number in 0..100 {
        // Of an attempt that nobody asked for.
        let name = format!("update/{job}/1/d2/9/{number}");
        let blob = json!({"digest": link::digest::of(b""), "size": 0, "name": name});
        let update = json!({"type": "trained", "parameters": blob, "examples": 1, "loss": 0,
            "accuracy": 0, "steps": 1, "duration_ms": 1, "engine": "test"});
        let body = serde_json::from_value(update).unwrap();
        let task = jobs::spec::TaskId { attempt: Attempt(9), ..task.clone() };
        let report = TaskReport { task, device: id("d2"), body };
        let (subject, message_id) = (subject::report(&job, &id("d2")), number.to_string());
        let (headers, payload) = (HeaderMap::new(), wire::encode(&report));
        link::publish::store(&context, &subject, &message_id, headers, payload).await.unwrap();
    }
    let trainings = &broker.core.store.trainings;
    until("they are heard", async || {
        let stored = trainings.get(job.as_str()).await.unwrap().unwrap().value;
        assert!(stored.updates.len() <= 65, "{} are on the list", stored.updates.len());
        stored.updates.len() >= 64
    })
    .await;
    gate.send(true).unwrap();
    let record = ended(&broker, &job).await;
    assert_eq!(participants(&record), [["d1"]], "{record:?}");
    let (device, failure) = &record.rounds[0].missing[0];
    assert_eq!((device.as_str(), failure.code), ("d2", FailureCode::InvalidUpdate));
    assert!(failure.message.contains("d2: more than 64 blobs of this device"), "{failure:?}");
}

/// The task of a training that a device is offered in a round.
async fn offered(device: &Device, round: u32) -> TrainTask {
    let mut offered = device.offered.clone();
    let train = |tasks: &Vec<jobs::spec::Task>| {
        tasks.iter().find_map(|task| match &task.work {
            TaskWork::Train(work) if task.id.round.0 == round => Some(work.clone()),
            TaskWork::Train(_)
            | TaskWork::TrainMasked(_)
            | TaskWork::Exchange
            | TaskWork::Evaluate(_)
            | TaskWork::Infer(_)
            | TaskWork::Telemetry => None,
        })
    };
    let waiting = offered.wait_for(|tasks| train(tasks).is_some());
    let tasks = tokio::time::timeout(PATIENCE, waiting).await.expect("an offer comes").unwrap();
    train(&tasks).unwrap()
}

fn values(safetensors: &[u8]) -> Vec<f32> {
    let parameters = Parameters::from_safetensors(safetensors).unwrap();
    parameters.items().iter().flat_map(|item| item.values.clone()).collect()
}

#[tokio::test]
async fn another_broker_encodes_parameters_that_were_only_stored() {
    let storing = storing(|train| {
        train.update = "float32:delta=true".parse().unwrap();
        train.download = "int8".parse().unwrap();
    });
    let Storing { world, runtime, broker, device, gate, job } = storing.await;
    let blobs = Blobs::new(world.client().await);
    let initial = values(&blobs.get(&offered(&device, 1).await.parameters).await.unwrap());
    until("the exact parameters are stored", async || {
        is_stored(&blobs, parameters_name(&job, 1, 1)).await
    })
    .await;
    drop(broker);
    runtime.shutdown_background();
    let second = world.broker().await;
    assert!(!is_stored(&blobs, encoded_name(&job, 1, 1)).await, "they are not encoded");

    let TrainTask { parameters: exact, encoded, .. } = offered(&device, 2).await;
    let encoded = encoded.expect("they are encoded");
    assert_eq!(exact.name, Some(parameters_name(&job, 1, 2)));
    assert_eq!(encoded.name, Some(encoded_name(&job, 1, 2)));
    // Under another digest it could not be read.
    let first = BlobRef { name: Some(parameters_name(&job, 1, 1)), object: None, ..exact.clone() };
    let first = blobs.get(&first).await.expect("both made the same");
    let rounded = decode_parameters(&blobs.get(&encoded).await.unwrap()).unwrap();
    let (exact, given) = (values(&first), values(&rounded));
    let largest = exact.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    for ((initial, exact), given) in initial.iter().zip(&exact).zip(&given) {
        assert!((initial + 1.0 - exact).abs() <= 1e-5, "the device adds 1 to {initial}");
        assert!((given - exact).abs() <= largest / 127.0, "{given} is {exact}, rounded");
    }
    assert_ne!(given, exact);

    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), vec![["d1"]; 2]);
    assert_eq!(device.given.borrow()[&2].to_safetensors(), rounded);
    forgotten(&world, &job).await;
}

/// Brokers come and go while a round waits for `d2`: what `d1` has stored for it is there at its end.
#[tokio::test]
async fn brokers_that_take_over_forget_nothing_of_the_round_at_work() {
    let world = World::new().await;
    let (gate, open) = watch::channel(false);
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start_as(&world, "d2", move |task| match task.id.round.0 {
        2 if task.id.purpose == Purpose::Train => Action::After(open.clone()),
        _ => Action::Work,
    })
    .await;
    let mut broker = world.broker().await;
    joined(&broker, 2).await;
    let job = submit(&broker, train_spec(2, 2)).await;
    for owner in 1..=3 {
        let trainings = &broker.core.store.trainings;
        until("d1's update counts, and this broker has stored the training twice", async || {
            let Some(stored) = trainings.get(job.as_str()).await.unwrap() else { return false };
            let stored = stored.value;
            let round = stored.machine.as_ref().and_then(|machine| machine.round());
            let counts = |round: &jobs::round::Round| {
                let status = round.status();
                status.round.0 == 2 && status.updates == 1
            };
            stored.term == owner
                && stored.owner.as_ref() == Some(&broker.core.name)
                && stored.write >= 2
                && round.is_some_and(counts)
        })
        .await;
        broker.stop().await;
        broker = world.broker().await;
    }
    gate.send(true).unwrap();
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), vec![["d1", "d2"]; 2], "{:?}", record.rounds[1].missing);
}
