//! Devices learn why their updates are not used, and are not asked for some time.

use jobs::id::Millis;

use super::*;

/// Waits until a device was told of a round.
async fn told(device: &mut Device, round: u32) -> String {
    let is_it = |told: &Vec<(jobs::spec::TaskId, String)>| {
        told.iter().any(|(task, _)| task.round.0 == round)
    };
    let told = tokio::time::timeout(PATIENCE, device.refused.wait_for(is_it)).await;
    let told = told.expect("the device is told").unwrap();
    let (task, reason) = told.iter().find(|(task, _)| task.round.0 == round).unwrap();
    assert_eq!(task.purpose, Purpose::Train);
    reason.clone()
}

/// A device whose updates are not finite.
async fn not_finite(world: &World, name: &str) -> Device {
    let bytes = tiny(|items| items[0].values[0] = f32::NAN);
    let bad = at_training(move || Action::Upload(bytes.clone()));
    Device::start_as(world, name, bad).await
}

#[tokio::test]
async fn a_device_learns_that_its_update_cannot_be_used() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let mut d2 = not_finite(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = train_spec(2, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let job = submit(&broker, spec).await;
    for round in [1, 2] {
        let reason = told(&mut d2, round).await;
        assert!(reason.starts_with("invalid_update: the update of device d2"), "{reason}");
        assert!(reason.contains("NaN"), "{reason}");
    }
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    assert_eq!(d1.refused.borrow().len(), 0);
    assert!(d2.refused.borrow().iter().all(|(task, _)| task.job == job));
    assert_eq!(d2.withdrawn.borrow().len(), 0, "nothing is to stop");
}

#[tokio::test]
async fn a_device_learns_that_a_rule_left_its_update_out() {
    let world = World::new().await;
    let broker = world.broker().await;
    let mut near = Vec::new();
    for name in ["a1", "b1", "c1", "d1"] {
        near.push(Device::start(&world, name).await);
    }
    let mut far = Device::start(&world, "e9").await;
    joined(&broker, 5).await;
    let mut spec = train_spec(1, 5);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = "multikrum:byzantine=1,selected=4".parse().unwrap();
    let job = submit(&broker, spec).await;
    let reason = told(&mut far, 1).await;
    assert!(reason.starts_with("left out: "), "{reason}");
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    assert!(near.iter().all(|device| device.refused.borrow().is_empty()));
}

/// Rounds in which a device was asked to train.
fn asked(device: &Device) -> Vec<u32> {
    let offered = device.offered.borrow();
    let trainings = offered.iter().filter(|task| task.id.purpose == Purpose::Train);
    trainings.map(|task| task.id.round.0).collect()
}

#[tokio::test]
async fn a_device_that_sends_what_cannot_be_used_is_left_out_for_some_rounds() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let mut d2 = not_finite(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = train_spec(7, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.devices = None;
    train.participation.quorum = 1;
    train.participation.quarantine = Some("refused=2,within=3,rounds=3".parse().unwrap());
    let job = submit(&broker, spec).await;
    assert!(told(&mut d2, 2).await.ends_with("; not invited up to round 5"));
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    // It begins anew after its quarantine.
    assert_eq!(asked(&d2), [1, 2, 6, 7]);
    assert_eq!(participants(&record), [["d1"]; 7]);
    let missing = record.rounds.iter().map(|round| {
        let [(device, failure)] = &round.missing[..] else { panic!("{round:?}") };
        assert_eq!(device.as_str(), "d2");
        failure.code
    });
    let (refused, out) = (FailureCode::InvalidUpdate, FailureCode::Quarantined);
    let expected = [refused, refused, out, out, out, refused, refused];
    assert_eq!(missing.collect::<Vec<_>>(), expected);
    let shown = broker.round(&job, 4).await.unwrap().unwrap();
    assert_eq!((shown.invited, shown.devices), (1, 1));
    let why = "quarantined: not invited up to round 5: its updates were refused";
    assert_eq!(shown.members[1].why(), why);
}

#[tokio::test]
async fn a_job_without_enough_devices_that_may_be_asked_says_so() {
    let world = World::new().await;
    let broker = world.broker().await;
    let mut near = Vec::new();
    for name in ["a1", "b1", "c1", "d1"] {
        near.push(Device::start(&world, name).await);
    }
    let far = Device::start(&world, "e9").await;
    joined(&broker, 5).await;
    let mut spec = train_spec(3, 5);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = "multikrum:byzantine=1,selected=4".parse().unwrap();
    train.participation.quarantine = Some("refused=1,rounds=9,left_out=true".parse().unwrap());
    train.participation.deadline_ms = Millis(2000);
    train.participation.failed_rounds_max = 1;
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Failed, "{record:?}");
    let failure = record.failure.unwrap();
    assert_eq!(failure.code, FailureCode::NoQuorum);
    let text = "4 eligible devices online, quorum is 5; in quarantine: e9 up to round 10";
    assert!(failure.message.ends_with(text), "{failure:?}");
    assert_eq!(asked(&far), [1]);
    assert_eq!(record.rounds[0].influences[4].1.verdict, jobs::round::Verdict::Refused);
}
