//! What a training waits for is told, and who was not there.

use futures::StreamExt as _;
use jobs::device::{Hello, Presence};
use jobs::spec::{Evaluate, Keep, Participation, TrainSpec};

use super::*;
use crate::record::EventBody;

fn training(rounds: u32, change: impl FnOnce(&mut TrainSpec)) -> JobSpec {
    let mut spec = train_spec(rounds, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation = Participation { quorum: 1, devices: None, ..train.participation.clone() };
    change(train);
    spec
}

/// A device that was there, and is not any more.
async fn was_there(world: &World, broker: &Broker, name: &str) {
    let device = Device::start(world, name).await;
    until("it is known", async || broker.core.fleet.presence(&id(name)) == Presence::Online).await;
    drop(device);
    until("it is away", async || broker.core.fleet.presence(&id(name)) == Presence::Offline).await;
}

async fn waits(broker: &Broker, job: &JobId, reason: &str) -> JobRecord {
    let of = async || broker.job(job).await.unwrap();
    until(reason, async || of().await.waiting.is_some_and(|it| it.reason.ends_with(reason))).await;
    of().await
}

fn reasons(events: &[crate::record::JobEvent]) -> Vec<&str> {
    let waiting = events.iter().filter_map(|event| {
        let EventBody::Waiting(waiting) = &event.body else { return None };
        Some(waiting.reason.as_str())
    });
    waiting.collect()
}

/// Told once, and again when it is another reason; not while nothing changes.
#[tokio::test]
async fn a_job_says_which_devices_it_waits_for_until_they_are_there() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d2").await;
    let _d1 = Device::start(&world, "d1").await;
    let without = Hello { datasets: Vec::new(), ..hello("d3") };
    let _d3 = Device::start_with(&world, without, |_| Action::Work).await;
    joined(&broker, 2).await;
    let job = submit(&broker, training(1, |train| train.participation.quorum = 3)).await;
    let first = "1 of quorum 3 eligible (d2 offline, d3 has no data set tiny)";
    let record = waits(&broker, &job, first).await;
    let waiting = record.waiting.unwrap();
    assert_eq!((waiting.round, record.state), (1, JobState::Running));
    let left = waiting.until.since(waiting.since);
    assert!((15_000..=20_000).contains(&left.0), "the round's deadline: {left}");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let _d2 = Device::start(&world, "d2").await;
    let second = "2 of quorum 3 eligible (d3 has no data set tiny)";
    waits(&broker, &job, second).await;
    let _d4 = Device::start(&world, "d4").await;
    let record = ended(&broker, &job).await;
    assert_eq!((record.state, record.waiting.as_ref()), (JobState::Succeeded, None));
    assert_eq!(participants(&record), [["d1", "d2", "d4"]]);
    assert_eq!(record.rounds[0].missing, [], "without the data set it is no device of the job");
    let events: Vec<_> = broker.events(&job, 0).await.unwrap().collect().await;
    let told = reasons(&events);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].ends_with(first) && told[1].ends_with(second), "{told:?}");
}

/// Another training's work, perhaps.
#[tokio::test]
async fn a_round_says_which_busy_devices_it_waits_for() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (free, is_free) = watch::channel(false);
    let when_free = move |_: &jobs::spec::Task| {
        if *is_free.borrow() { Action::Work } else { Action::Fail(FailureCode::Busy) }
    };
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start_as(&world, "d2", when_free).await;
    joined(&broker, 2).await;
    let job = submit(&broker, training(1, |train| train.participation.quorum = 2)).await;
    let record = waits(&broker, &job, "waiting for devices: d2 is busy").await;
    assert_eq!((record.waiting.unwrap().round, record.state), (1, JobState::Running));
    free.send(true).unwrap();
    let record = ended(&broker, &job).await;
    assert_eq!((record.state, record.waiting.as_ref()), (JobState::Succeeded, None));
    assert_eq!(participants(&record), [["d1", "d2"]]);
}

/// Before anything is prepared.
#[tokio::test]
async fn a_job_that_nobody_can_take_says_so() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d1").await;
    let job = submit(&broker, training(1, |_| {})).await;
    let record = waits(&broker, &job, "0 of quorum 1 eligible (d1 offline)").await;
    assert_eq!(record.state, JobState::Accepted);
    assert!(record.waiting.unwrap().until >= record.accepted_at.plus(jobs::id::Millis(59_000)));
    let mut nowhere = training(1, |_| {});
    nowhere.selector = "label.site=zz".parse().unwrap();
    let nowhere = submit(&broker, nowhere).await;
    waits(&broker, &nowhere, "0 of quorum 1 eligible (no device matches label.site=zz)").await;
    let _d1 = Device::start(&world, "d1").await;
    let record = ended(&broker, &job).await;
    assert_eq!((record.state, record.waiting), (JobState::Succeeded, None));
    broker.cancel(&nowhere).await.unwrap();
    let record = ended(&broker, &nowhere).await;
    assert_eq!((record.state, record.waiting), (JobState::Cancelled, None));
}

/// Whose accuracy is asked for is said beforehand, and on the job.
#[tokio::test]
async fn that_no_device_can_judge_is_told() {
    let world = World::new().await;
    let broker = world.broker().await;
    let mut untested = hello("d1");
    untested.datasets[0].test_examples = 0;
    let _d1 = Device::start_with(&world, untested, |_| Action::Work).await;
    joined(&broker, 1).await;
    let asked = training(1, |train| {
        train.evaluate = Evaluate::Devices;
        train.target_accuracy = Some(0.5);
        train.keep = Keep::Best;
    });
    let told = "no device has test examples of tiny: figures are those of training, and cannot \
        decide what is asked for: target_accuracy, keep";
    assert_eq!(broker.check(&asked).await.unwrap().warnings, [told]);
    let record = ended(&broker, &submit(&broker, asked).await).await;
    assert!(record.notes.contains(&told.to_owned()), "{:?}", record.notes);

    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let asked = training(1, |train| train.evaluate = Evaluate::Devices);
    assert_eq!(broker.check(&asked).await.unwrap().warnings, Vec::<String>::new());
}

/// A device whose label is no hours never takes part: it says that, and not that its time will come.
#[tokio::test]
async fn a_window_that_cannot_be_read_is_told() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let mut odd = hello("d2");
    odd.labels.insert("available".to_owned(), "nights".to_owned());
    let _d2 = Device::start_with(&world, odd, |_| Action::Work).await;
    joined(&broker, 2).await;
    let windows = training(1, |train| train.participation.selection = "windows".parse().unwrap());
    let checked = broker.check(&windows).await.unwrap();
    assert_eq!(checked.devices, [id("d1")]);
    let why = "has no window that can be read: available=nights, expected such as 22-06";
    assert_eq!(checked.warnings, [format!("the job would begin without d2 {why}")]);
}

/// Who is outside of its window, or offline, is missing from a round, and a dry run says it before.
#[tokio::test]
async fn who_is_not_there_is_named_with_the_reason() {
    let world = World::new().await;
    let broker = world.broker().await;
    let hour = crate::store::now().0 / 3_600_000;
    let window = format!("{:02}-{:02}", (hour + 3) % 24, (hour + 5) % 24);
    was_there(&world, &broker, "d3").await;
    let _d1 = Device::start(&world, "d1").await;
    let mut asleep = hello("d2");
    asleep.labels.insert("available".to_owned(), window.clone());
    let _d2 = Device::start_with(&world, asleep, |_| Action::Work).await;
    joined(&broker, 2).await;
    let windows = |quorum| {
        training(1, |train| {
            train.participation.selection = "windows".parse().unwrap();
            train.participation.quorum = quorum;
        })
    };
    let outside = format!("outside of its window available={window}");
    let checked = broker.check(&windows(1)).await.unwrap();
    assert_eq!(checked.devices, [id("d1")]);
    let warning = format!("the job would begin without d2 {outside}, d3 offline");
    assert_eq!(checked.warnings, [warning]);
    let checked = broker.check(&windows(3)).await.unwrap();
    let warning = format!(
        "the job would wait for devices: 1 of quorum 3 eligible (d2 {outside}, d3 offline)"
    );
    assert_eq!(checked.warnings, [warning]);
    let record = ended(&broker, &submit(&broker, windows(1)).await).await;
    let round = &record.rounds[0];
    let missing = round.missing.iter();
    let missing: Vec<_> =
        missing.map(|(device, why)| (device.as_str(), why.code, &why.message[..])).collect();
    let not_there = FailureCode::NotThere;
    assert_eq!(missing, [("d2", not_there, &outside[..]), ("d3", not_there, "offline")]);
    assert_eq!(round.invited(), 1);
}

/// A fleet comes back when its NATS server does, and who asks a training to stop is heard meanwhile.
#[tokio::test]
async fn a_round_at_work_does_not_look_for_devices_whenever_one_comes() {
    const MANY: usize = 3000;
    let world = World::new().await;
    let broker = world.broker().await;
    let (mut device, _gate) = gated(&world).await;
    joined(&broker, 1).await;
    let job = submit(&broker, train_spec(1, 1)).await;
    device.offered(Purpose::Train).await;
    let client = world.client().await;
    for number in 0..MANY {
        let mut hello = hello(&format!("many-{number}"));
        hello.heartbeat_ms = jobs::id::Millis(60_000);
        let subject = jobs::subject::fleet(&hello.device, jobs::subject::FleetTopic::Hello);
        client.publish(subject, jobs::wire::encode(&hello)).await.unwrap();
    }
    joined(&broker, MANY + 1).await;
    let began = std::time::Instant::now();
    broker.cancel(&job).await.unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
