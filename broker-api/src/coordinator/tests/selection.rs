//! Who takes part in which round.

use super::*;

#[tokio::test]
async fn devices_take_turns() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _devices = [
        Device::start(&world, "d1").await,
        Device::start(&world, "d2").await,
        Device::start(&world, "d3").await,
    ];
    joined(&broker, 3).await;
    let mut spec = train_spec(6, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.selection = "round_robin".parse().unwrap();
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    for turn in participants(&record).chunks(3) {
        let mut devices = turn.concat();
        devices.sort_unstable();
        assert_eq!(devices, ["d1", "d2", "d3"]);
    }
}

/// Everyone begins with what the one before made.
#[tokio::test]
async fn one_device_trains_after_another() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let d2 = Device::start(&world, "d2").await;
    let d3 = Device::start(&world, "d3").await;
    joined(&broker, 3).await;
    let mut spec = train_spec(6, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.selection = "cyclic".parse().unwrap();
    train.participation.devices = None;
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), [["d1"], ["d2"], ["d3"], ["d1"], ["d2"], ["d3"]]);
    let mut given = d1.given.borrow().clone();
    given.extend(d2.given.borrow().clone());
    given.extend(d3.given.borrow().clone());
    for round in 1..6 {
        let step = [1.0, 2.0, 3.0][(round as usize - 1) % 3];
        let mut trained = given[&round].items().to_vec();
        trained.iter_mut().flat_map(|item| &mut item.values).for_each(|value| *value += step);
        let trained = Parameters::new(trained).unwrap();
        assert_eq!(given[&(round + 1)].to_safetensors(), trained.to_safetensors(), "{round}");
    }
}

/// Whose hours it is not waits at home, and so does who says what are no hours.
#[tokio::test]
async fn windows_admit_who_is_within_its_hours() {
    let world = World::new().await;
    let broker = world.broker().await;
    let hour = crate::store::now().0 / 3_600_000;
    // An hour that ends now is no matter.
    let hours = |from: u64| format!("{:02}-{:02}", (hour + from) % 24, (hour + from + 2) % 24);
    let mut devices = Vec::new();
    for (name, label) in
        [("d1", Some(hours(0))), ("d2", Some(hours(3))), ("d3", None), ("d4", Some("night".into()))]
    {
        let mut hello = hello(name);
        hello.labels.extend(label.map(|label| ("available".to_owned(), label)));
        devices.push(Device::start_with(&world, hello, |_| Action::Work).await);
    }
    joined(&broker, 4).await;
    let mut spec = train_spec(2, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.selection = "windows".parse().unwrap();
    train.participation.devices = None;
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), [["d1", "d3"]; 2]);
    assert!(devices[1].offered.borrow().is_empty() && devices[3].offered.borrow().is_empty());
}

/// While it is nobody's time the job waits for one who comes.
#[tokio::test]
async fn a_job_waits_for_hours_to_come() {
    let world = World::new().await;
    let broker = world.broker().await;
    let hour = crate::store::now().0 / 3_600_000;
    let mut asleep = hello("d1");
    let hours = format!("{:02}-{:02}", (hour + 3) % 24, (hour + 5) % 24);
    asleep.labels.insert("available".to_owned(), hours);
    let asleep = Device::start_with(&world, asleep, |_| Action::Work).await;
    joined(&broker, 1).await;
    let mut spec = train_spec(1, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.selection = "windows".parse().unwrap();
    train.participation.deadline_ms = jobs::id::Millis(500);
    let job = submit(&broker, spec).await;
    until("it selects", async || {
        let stored = broker.core.store.trainings.get(job.as_str()).await.unwrap();
        let machine = stored.and_then(|stored| stored.value.machine);
        machine.is_some_and(|machine| machine.round().unwrap().status().phase == "selecting")
    })
    .await;
    // Longer than the round's deadline, which does not count while nobody is within its hours.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let _awake = Device::start(&world, "d2").await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), [["d2"]]);
    assert!(asleep.offered.borrow().is_empty());
}
