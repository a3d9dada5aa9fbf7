//! Updates that come when their round is over, and count.

use async_nats::header::HeaderMap;
use jobs::id::DeviceId;
use jobs::report::{Progress, ReportBody, TaskReport};
use jobs::spec::{Evaluate, Task, TaskId};
use jobs::{subject, wire};

use super::*;

/// Devices that train in a round only once it is said.
type Gates = Vec<(u32, watch::Receiver<bool>)>;

fn waiting(gates: Gates) -> impl Fn(&Task) -> Action + Send + Sync + 'static {
    move |task| {
        let gate = gates.iter().find(|(round, _)| task.id.round.0 == *round);
        match gate.filter(|_| task.id.purpose == Purpose::Train) {
            Some((_, open)) => Action::After(open.clone()),
            None => Action::Work,
        }
    }
}

fn spec(strategy: &str, update: &str) -> JobSpec {
    let mut spec = train_spec(4, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = strategy.parse().unwrap();
    train.update = update.parse().unwrap();
    if train.update.is_difference() {
        train.download = "int8".parse().unwrap();
    }
    train.participation.over_selection = 1.0;
    train.evaluate = Evaluate::None;
    if strategy == "fedavg" {
        train.participation.late_updates = "staleness".parse().unwrap();
    }
    spec
}

fn values(parameters: &Parameters) -> Vec<f32> {
    parameters.items().iter().flat_map(|item| item.values.clone()).collect()
}

/// The parameters that a device is offered in a round.
async fn offered(broker: &Broker, device: &Device, round: u32) -> Vec<f32> {
    let found = |task: &Task| {
        let TaskWork::Train(work) = &task.work else { return None };
        (task.id.round.0 == round).then(|| work.parameters.clone())
    };
    let mut offers = device.offered.clone();
    let offers = offers.wait_for(|tasks| tasks.iter().any(|task| found(task).is_some()));
    let offers = tokio::time::timeout(PATIENCE, offers).await.expect("an offer").unwrap();
    let blob = offers.iter().find_map(found).unwrap();
    drop(offers);
    let bytes = broker.core.store.blobs.get(&blob).await.unwrap();
    values(&Parameters::from_safetensors(&bytes).unwrap())
}

fn assert_moved(before: &[f32], after: &[f32], step: f64, tolerance: f64) {
    for (before, after) in before.iter().zip(after) {
        let expected = f64::from(*before) + step;
        let near = (f64::from(*after) - expected).abs() <= tolerance;
        assert!(near, "{before} became {after}, expected a step of {step}");
    }
}

/// One device trains while the other makes two versions; the third is what the late update makes
/// of the second. With `takeover` another broker owns the training by then.
async fn late_update_counts(strategy: &str, update: &str, own: f64, late: f64, takeover: bool) {
    let world = World::new().await;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&runtime).await;
    let (open_slow, slow) = watch::channel(false);
    let (_shut, never) = watch::channel(false);
    // It adds 1 to each value.
    let d1 = Device::start_as(&world, "d1", waiting(vec![(3, never)])).await;
    // It adds 2.
    let d2 = Device::start_as(&world, "d2", waiting(vec![(1, slow)])).await;
    joined(&first, 2).await;
    let job = submit(&first, spec(strategy, update)).await;
    let third = offered(&first, &d1, 3).await;
    let mut runtime = Some(runtime);
    let broker = if takeover {
        let second = world.broker().await;
        runtime.take().unwrap().shutdown_background();
        second
    } else {
        first
    };
    open_slow.send(true).unwrap();
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert!(record.rounds.iter().all(|round| round.failure.is_none()), "{record:?}");

    let given = |device: &Device, round: u32| values(&device.given.borrow()[&round]);
    let x = [given(&d1, 1), given(&d1, 2), third, given(&d2, 4)];
    // With parameters that were rounded too.
    let tolerance = if update == "plain" { 1e-5 } else { 0.1 };
    assert_moved(&x[0], &x[1], own, tolerance);
    assert_moved(&x[1], &x[2], own, tolerance);
    assert_moved(&x[2], &x[3], late, tolerance);
    let third = &record.rounds[2];
    assert_eq!(third.updates.iter().map(|(it, _)| it.as_str()).collect::<Vec<_>>(), ["d2"]);
    assert_eq!(third.stragglers.iter().map(DeviceId::as_str).collect::<Vec<_>>(), ["d1"]);
    let (_, influence) = &third.influences[0];
    assert!(influence.reason.contains("from round 1, 2 versions ago"), "{influence:?}");
    let counted: usize = record.rounds.iter().map(|round| round.updates.len()).sum();
    assert_eq!(counted, 4, "each update once");
    forgotten(&world, &job).await;
    if let Some(runtime) = runtime {
        runtime.shutdown_background();
    }
}

#[tokio::test]
async fn an_old_update_counts_by_its_age_in_fedbuff() {
    let late = 0.5 * 2.0 / 3.0_f64.sqrt();
    late_update_counts("fedbuff:learning_rate=0.5", "plain", 0.5, late, false).await;
}

#[tokio::test]
async fn a_late_difference_is_one_from_what_it_was_trained_from() {
    let late = 2.0 / 3.0_f64.sqrt();
    late_update_counts("fedavg", "int8", 1.0, late, false).await;
}

#[tokio::test]
async fn another_broker_takes_late_updates() {
    let late = 2.0 / 3.0_f64.sqrt();
    late_update_counts("fedbuff", "plain", 1.0, late, true).await;
}

#[tokio::test]
async fn a_late_update_that_is_no_update_is_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (open_slow, slow) = watch::channel(false);
    let (_shut, never) = watch::channel(false);
    let d1 = Device::start_as(&world, "d1", waiting(vec![(2, never)])).await;
    let wrong = move |task: &Task| match task.id.round.0 {
        1 => Action::UploadAfter(slow.clone(), b"nonsense".to_vec()),
        _ => Action::Work,
    };
    let _d2 = Device::start_as(&world, "d2", wrong).await;
    joined(&broker, 2).await;
    let mut spec = spec("fedbuff", "plain");
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.rounds = 3;
    let job = submit(&broker, spec).await;
    offered(&broker, &d1, 2).await;
    open_slow.send(true).unwrap();
    until("a device that is told", async || {
        let stored = broker.core.store.trainings.get(job.as_str()).await.unwrap();
        let machine = stored.and_then(|stored| stored.value.machine);
        machine.is_none_or(|machine| {
            machine.stragglers().devices().all(|device| device.as_str() != "d2")
        })
    })
    .await;
    broker.cancel(&job).await.unwrap();
    let record = ended(&broker, &job).await;
    let missing: Vec<_> = record.rounds.iter().flat_map(|round| &round.missing).collect();
    let refused = missing.iter().find(|(device, failure)| {
        device.as_str() == "d2" && failure.code == FailureCode::InvalidUpdate
    });
    assert!(refused.is_some(), "{missing:?}");
}

#[tokio::test]
async fn an_update_that_comes_too_late_is_removed() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (open_slow, slow) = watch::channel(false);
    let (open_fast, fast) = watch::channel(false);
    let (_closed, closed) = watch::channel(false);
    let _slow = Device::start_as(&world, "d2", waiting(vec![(1, slow), (2, closed)])).await;
    let device = Device::start_as(&world, "d1", waiting(vec![(2, fast)])).await;
    joined(&broker, 2).await;
    let mut spec = train_spec(2, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.over_selection = 1.0;
    let job = submit(&broker, spec).await;
    offered(&broker, &device, 2).await;
    open_slow.send(true).unwrap();
    let nothing = BlobRef::by_digest(link::digest::of(b""), jobs::id::Bytes(0));
    let update = BlobRef { name: Some(format!("update/{job}/1/d2/1")), ..nothing };
    let blobs = &broker.core.store.blobs;
    until("it is stored", async || blobs.size(&update).await.unwrap().is_some()).await;
    open_fast.send(true).unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    forgotten(&world, &job).await;
}

/// A device that was away when its round closed was not told to stop: it is when it tells how far it
/// is, and another one is not.
#[tokio::test]
async fn a_device_that_trains_in_vain_is_told_to_stop() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (open, gate) = watch::channel(false);
    let mut d1 = Device::start_as(&world, "d1", waiting(vec![(2, gate)])).await;
    joined(&broker, 1).await;
    let mut spec = train_spec(2, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.evaluate = Evaluate::None;
    let job = submit(&broker, spec).await;
    let at_work = |tasks: &Vec<Task>| tasks.iter().any(|task| task.id.round.0 == 2);
    tokio::time::timeout(PATIENCE, d1.offered.wait_for(at_work)).await.unwrap().unwrap();

    let tasks: Vec<TaskId> = d1.offered.borrow().iter().map(|task| task.id.clone()).collect();
    let context = async_nats::jetstream::new(world.client().await);
    for task in tasks.iter().rev() {
        let body = ReportBody::Progress(Progress::default());
        let report = TaskReport { task: task.clone(), device: id("d1"), body };
        let subject = subject::report(&job, &report.device);
        let message_id = format!("{task}-progress");
        let (headers, payload) = (HeaderMap::new(), wire::encode(&report));
        link::publish::store(&context, &subject, &message_id, headers, payload).await.unwrap();
    }
    let told = d1.withdrawn.wait_for(|tasks| !tasks.is_empty());
    let told = tokio::time::timeout(PATIENCE, told).await.expect("it is told").unwrap().clone();
    assert_eq!(told, tasks[..1], "of the tasks {tasks:?}");
    open.send(true).unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    assert_eq!(*d1.withdrawn.borrow(), tasks[..1]);
}
