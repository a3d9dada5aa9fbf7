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
