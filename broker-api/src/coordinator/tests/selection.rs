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
