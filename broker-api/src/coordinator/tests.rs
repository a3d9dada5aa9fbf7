use std::sync::Mutex;

use jobs::id::BlobRef;
use jobs::job::JobState;
use jobs::report::FailureCode;
use jobs::spec::{JobSpec, Loss, Purpose, Schedule, TaskWork, WorkSpec};
use models::params::{Parameter, Parameters};
use tokio::sync::watch;

use super::*;
use crate::broker::Broker;
use crate::record::JobRecord;
use crate::testing::*;

mod beforehand;
mod carried;
mod encodings;
mod evaluate;
mod gone;
mod late;
mod leftovers;
mod listening;
mod masked;
mod normalised;
mod private;
mod refusals;
mod resume;
mod selection;
mod slow;
mod stopping;
mod strategies;
mod waiting;

async fn submit(broker: &Broker, spec: JobSpec) -> JobId {
    broker.submit(spec, bytes::Bytes::new(), None, None).await.unwrap().id
}

/// The mean of what `d1` and `d2` make of these parameters, the slow way: each adds its number,
/// and counts 10 and 30 examples.
fn mean_after_a_round(given: &Parameters) -> Parameters {
    let mean = |value: &f32| {
        let sum = 10.0 * f64::from(value + 1.0) + 30.0 * f64::from(value + 2.0);
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        let mean = (sum / 40.0) as f32;
        mean
    };
    let items = given.items().iter().map(|item| Parameter {
        name: item.name.clone(),
        shape: item.shape.clone(),
        values: item.values.iter().map(mean).collect(),
    });
    Parameters::new(items.collect()).unwrap()
}

fn assert_exact(given: &watch::Receiver<BTreeMap<u32, Parameters>>, rounds: u32) {
    let given = given.borrow();
    assert_eq!(given.keys().copied().collect::<Vec<_>>(), (1..=rounds).collect::<Vec<_>>());
    for round in 1..rounds {
        // Safetensors compares bits, not values.
        let expected = mean_after_a_round(&given[&round]).to_safetensors();
        assert_eq!(given[&(round + 1)].to_safetensors(), expected, "after round {round}");
    }
}

fn participants(record: &JobRecord) -> Vec<Vec<&str>> {
    let rounds = record.rounds.iter();
    rounds.map(|round| round.updates.iter().map(|(device, _)| device.as_str()).collect()).collect()
}

#[tokio::test]
async fn every_round_begins_from_the_exact_mean_of_the_one_before() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start_as(&world, "d1", |_| Action::Repeat).await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let job = submit(&broker, train_spec(4, 2)).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), vec![["d1", "d2"]; 4]);
    assert_exact(&d1.given, 4);
    let metrics = broker.metrics();
    assert!(metrics.contains("dunlin_updates_total{reason=\"accepted\"} 8"), "{metrics}");
    let query = "tiny-mlp".parse().unwrap();
    let lineage = broker.model(&query).await.unwrap().config.lineage.unwrap();
    assert_eq!((lineage.rounds, lineage.devices.len()), (4, 2));
    assert_eq!(lineage.began_with.unwrap(), "the built-in family mlp, seed 7");
    // What was registered is trained further, and says so.
    let mut further = train_spec(1, 2);
    let WorkSpec::Train(train) = &mut further.work else { panic!() };
    train.model = query.clone();
    let record = ended(&broker, &submit(&broker, further).await).await;
    assert_eq!(record.notes, ["begins with model tiny-mlp:1"]);
    let lineage = broker.model(&query).await.unwrap().config.lineage.unwrap();
    assert_eq!(lineage.began_with.unwrap(), "model tiny-mlp:1");
}

/// A round that failed moves no schedule on.
#[tokio::test]
async fn devices_are_told_how_many_rounds_are_done() {
    let world = World::new().await;
    let broker = world.broker().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let _device = Device::start_as(&world, "d1", move |task| match &task.work {
        TaskWork::Train(work) => {
            let mut told = heard.lock().unwrap();
            told.push((task.id.round.0, work.rounds_done, work.rounds));
            let first = task.id.round.0 == 1;
            if first { Action::Fail(FailureCode::Diverged) } else { Action::Work }
        }
        TaskWork::Evaluate(work) => {
            assert_eq!(work.loss, Loss::Bce);
            Action::Work
        }
        TaskWork::TrainMasked(_)
        | TaskWork::Exchange
        | TaskWork::Infer(_)
        | TaskWork::Telemetry => Action::Work,
    })
    .await;
    joined(&broker, 1).await;
    for (schedule, expected) in [
        (Schedule::Cosine { floor: 0.0, steps: None }, [(1, 0, 2), (2, 0, 2), (3, 1, 2)]),
        (Schedule::Constant, [(1, 0, 0), (2, 0, 0), (3, 0, 0)]),
    ] {
        let mut spec = train_spec(2, 1);
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        (train.local.schedule, train.local.loss) = (schedule, Loss::Bce);
        let job = submit(&broker, spec).await;
        assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), expected);
    }
}

/// This when a device is to train, the work otherwise.
fn at_training(
    action: impl Fn() -> Action + Send + Sync + 'static,
) -> impl Fn(&jobs::spec::Task) -> Action + Send + Sync + 'static {
    move |task| if task.id.purpose == Purpose::Train { action() } else { Action::Work }
}

/// A round of `d1`, which works, and `d2`, which behaves so: why `d2` is missing.
async fn refused(
    behaviour: impl Fn() -> Action + Send + Sync + 'static,
    code: FailureCode,
) -> String {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let bad = at_training(behaviour);
    let _d2 = Device::start_as(&world, "d2", bad).await;
    joined(&broker, 2).await;
    let mut spec = train_spec(1, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), [["d1"]]);
    let [(device, failure)] = &record.rounds[0].missing[..] else { panic!("{record:?}") };
    assert_eq!((device.as_str(), failure.code), ("d2", code), "{failure:?}");
    failure.message.clone()
}

fn tiny(change: impl FnOnce(&mut Vec<Parameter>)) -> Vec<u8> {
    let onnx = models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    let sgd = models::train::Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let trainer = models::train::Trainer::new(&onnx, sgd).unwrap();
    let mut items = trainer.parameters().items().to_vec();
    change(&mut items);
    Parameters::new(items).unwrap().to_safetensors()
}

#[tokio::test]
async fn updates_that_do_not_fit_are_refused_with_the_device_named() {
    let cases: [(Vec<u8>, &str); 9] = [
        (tiny(|items| items[0].name = "other".to_owned()), "classes.bias"),
        (tiny(|items| drop(items.pop())), "missing"),
        (tiny(|items| items[0].shape.push(1)), "shape"),
        (tiny(|items| items[0].values[0] = f32::NAN), "NaN"),
        (tiny(|items| items[0].values[0] = f32::NEG_INFINITY), "inf"),
        (tiny(|items| items[0].values[1] = -1e21), "value 1 is -1e21, expected a magnitude of 1.4"),
        (tiny(|_| ())[..200].to_vec(), "ends after"),
        ([tiny(|_| ()), vec![0; 4]].concat(), "more bytes"),
        (vec![7; 100_000], "100000 bytes"),
    ];
    for (bytes, expected) in cases {
        let upload = move || Action::Upload(bytes.clone());
        let text = refused(upload, FailureCode::InvalidUpdate).await;
        assert!(text.contains("d2") && text.contains(expected), "{text:?} lacks {expected:?}");
    }
}

#[tokio::test]
async fn blobs_that_are_not_what_was_reported_are_refused() {
    let bytes = tiny(|_| ());
    let size = jobs::id::Bytes(bytes.len() as u64);
    let digest = link::digest::of(&bytes);
    let named = |name: &str| BlobRef {
        name: Some(name.to_owned()),
        ..BlobRef::by_digest(digest.clone(), size)
    };
    let other = named("update/other/1/d2/1");
    let text = refused(move || Action::Claim(other.clone()), FailureCode::InvalidUpdate).await;
    assert!(text.contains("d2") && text.contains("not of this job"), "{text}");
    let absent = BlobRef::by_digest(digest.clone(), size);
    let text = refused(move || Action::Claim(absent.clone()), FailureCode::BlobUnavailable).await;
    assert!(text.contains("d2") && text.contains(digest.as_str()), "{text}");
}

/// `d2`, which works once its gate is open.
async fn gated(world: &World) -> (Device, watch::Sender<bool>) {
    gated_as(world, "d2").await
}

async fn gated_as(world: &World, name: &str) -> (Device, watch::Sender<bool>) {
    let (gate, open) = watch::channel(false);
    let waits = at_training(move || Action::After(open.clone()));
    (Device::start_as(world, name, waits).await, gate)
}

/// A training of two rounds of `d1`, which works, and `d2`, which waits at its gate.
struct Midway {
    d1: Device,
    d2: Device,
    gate: watch::Sender<bool>,
    job: JobId,
}

async fn midway(world: &World, broker: &Broker) -> Midway {
    let d1 = Device::start(world, "d1").await;
    let (mut d2, gate) = gated(world).await;
    joined(broker, 2).await;
    let job = submit(broker, train_spec(2, 2)).await;
    d2.offered(Purpose::Train).await;
    Midway { d1, d2, gate, job }
}

#[tokio::test]
async fn another_broker_goes_on_with_the_round_of_one_that_is_gone() {
    let world = World::new().await;
    let first_runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&first_runtime).await;
    let Midway { d1, d2, gate, job } = midway(&world, &first).await;
    let second = world.broker().await;
    // All its tasks end where they are, and nothing is let go of.
    first_runtime.shutdown_background();
    let found = second.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    assert_eq!(found.value.owner, Some(first.core.name.clone()));
    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), vec![["d1", "d2"]; 2]);
    assert_exact(&d1.given, 2);
    assert_exact(&d2.given, 2);
}

/// Waits for something that shows within [`PATIENCE`].
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what);
}

/// Waits until nothing of a job's is in the object store but what its strategy kept last.
async fn forgotten(world: &World, job: &JobId) {
    use base64::Engine as _;
    use futures::TryStreamExt as _;
    let context = async_nats::jetstream::new(world.client().await);
    let names = async || -> Vec<String> {
        let store = context.get_stream_no_info("OBJ_blobs").await.unwrap();
        let found = store.info_with_subjects("$O.blobs.M.>").await.unwrap();
        let found: Vec<(String, usize)> = found.try_collect().await.unwrap();
        let name = |(subject, _): (String, usize)| {
            let encoded = subject.trim_start_matches("$O.blobs.M.");
            let name = base64::engine::general_purpose::URL_SAFE.decode(encoded).unwrap();
            String::from_utf8(name).unwrap()
        };
        found.into_iter().map(name).collect()
    };
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut left = names().await;
        left.retain(|name| name.contains(job.as_str()));
        let states = left.iter().filter(|name| name.starts_with("server-state/")).count();
        if left.len() == states && states <= 1 {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "these stay: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_device_that_came_back_while_no_broker_was_there_is_waited_for() {
    let world = World::new().await;
    let first_runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&first_runtime).await;
    let (mut d1, gate1) = gated_as(&world, "d1").await;
    let mut d2 = Device::start_as(&world, "d2", |_| Action::Silence).await;
    joined(&first, 2).await;
    let mut spec = train_spec(1, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let job = submit(&first, spec).await;
    d1.offered(Purpose::Train).await;
    d2.offered(Purpose::Train).await;
    drop(d2);
    let trainings = &first.core.store.trainings;
    until("d2 is lost", async || {
        let stored = trainings.get(job.as_str()).await.unwrap().unwrap().value;
        stored.machine.is_some_and(|machine| machine.round().unwrap().status().lost == 1)
    })
    .await;
    first_runtime.shutdown_background();
    let (mut d2, gate2) = gated(&world).await;
    let second = world.broker().await;
    joined(&second, 2).await;
    d2.offered(Purpose::Train).await;
    gate1.send(true).unwrap();
    let accepted = "dunlin_updates_total{reason=\"accepted\"} 1";
    until("d1's update is accepted", async || second.metrics().contains(accepted)).await;
    gate2.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(participants(&record), [["d1", "d2"]], "{record:?}");
}

#[tokio::test]
async fn a_broker_that_ends_lets_go_of_its_trainings_at_once() {
    let world = World::new().await;
    let (first, second) = (world.broker().await, world.broker().await);
    let Midway { d1, d2, gate, job } = midway(&world, &first).await;
    let gone = first.core.name.clone();
    first.stop().await;
    let found = second.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    assert_ne!(found.value.owner, Some(gone), "it is free, or someone else has it by now");
    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_exact(&d1.given, 2);
    assert_exact(&d2.given, 2);
}

#[tokio::test]
async fn a_broker_that_lost_its_lease_stops() {
    let world = World::new().await;
    let (first, second) = (world.broker().await, world.broker().await);
    let Midway { d1, d2, gate, job } = midway(&world, &first).await;
    let found = second.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    assert_eq!(found.value.owner.as_deref(), Some(first.core.name.as_str()));
    // What `second` does when it hears nothing of `first` for too long.
    let taken = loop {
        let found = second.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
        if let Some(taken) = take_over(&second.core, &job, &found).await.unwrap() {
            break taken;
        }
    };
    assert_eq!(taken.value.term, found.value.term + 1);
    let metrics = &first.core.metrics;
    let stopped = async || metrics.trainings.value() == 0;
    until("the first broker stops", stopped).await;
    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_exact(&d1.given, 2);
    assert_exact(&d2.given, 2);
}

#[tokio::test]
async fn a_training_begins_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (mut device, _gate) = gated(&world).await;
    joined(&broker, 1).await;
    let job = submit(&broker, train_spec(1, 1)).await;
    device.offered(Purpose::Train).await;
    let before = broker.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    broker.core.trainings.begin(&job).await.unwrap();
    let after = broker.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    assert_eq!((after.value.term, after.value.prepared), (1, before.value.prepared));
    assert_eq!(broker.core.metrics.trainings.value(), 1);
}

#[tokio::test]
async fn cancelling_a_training_withdraws_its_tasks() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (mut device, _gate) = gated(&world).await;
    joined(&broker, 1).await;
    let job = submit(&broker, train_spec(3, 1)).await;
    let task = device.offered(Purpose::Train).await;
    broker.cancel(&job).await.unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    let withdrawn = device.withdrawn.wait_for(|tasks| tasks.contains(&task.id));
    tokio::time::timeout(PATIENCE, withdrawn).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn nothing_of_a_training_that_ended_stays_behind() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start_as(&world, "d2", |_| Action::Upload(b"no update".to_vec())).await;
    joined(&broker, 2).await;
    let mut spec = train_spec(3, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let job = submit(&broker, spec).await;
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let record = broker.job(&job).await.unwrap();
    assert_eq!(record.rounds.len(), 3);
    let store = &broker.core.store;
    let leftovers = async || {
        let mut blobs: Vec<&BlobRef> =
            record.rounds.iter().map(|round| &round.parameters).collect();
        let updates = record.rounds.iter().flat_map(|round| &round.updates);
        blobs.extend(updates.map(|(_, update)| &update.parameters));
        let mut left = usize::from(store.trainings.get(job.as_str()).await.unwrap().is_some());
        for blob in &blobs {
            left += usize::from(store.blobs.size(blob).await.unwrap().is_some());
        }
        left > 0
    };
    until("it is cleaned up", async || !leftovers().await).await;
}
