//! Brokers whose way to the object store is slow.

use super::*;

/// Bytes a second that a broker moves: to store a model takes longer than a lease.
const SLOW: u64 = 80_000;

#[tokio::test]
async fn a_training_that_takes_longer_than_a_lease_to_prepare_begins_where_it_was_begun() {
    let world = World::new().await;
    let start = || Broker::start_slow(world.broker_config(), SLOW);
    let (first, second) = (start().await.unwrap(), start().await.unwrap());
    let mut large = hello("d1");
    large.datasets[0].shape = vec![1, 40, 50];
    let (_gate, open) = watch::channel(false);
    let waits = at_training(move || Action::After(open.clone()));
    let mut device = Device::start_with(&world, large, waits).await;
    joined(&first, 1).await;
    joined(&second, 1).await;
    let job = submit(&first, train_spec(1, 1)).await;
    device.offered(Purpose::Train).await;
    let stored = first.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    assert_eq!(stored.value.term, 1, "nobody took it over");
}
