//! Devices learn why their updates are not used.

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

#[tokio::test]
async fn a_device_learns_that_its_update_cannot_be_used() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let bytes = tiny(|items| items[0].values[0] = f32::NAN);
    let bad = at_training(move || Action::Upload(bytes.clone()));
    let mut d2 = Device::start_as(&world, "d2", bad).await;
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
