use super::*;
use crate::testing::{Device, World, joined};

const PATIENCE: Duration = Duration::from_secs(30);

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what);
}

/// Who says what is known is not stored again: ten thousand devices say hello when a broker starts.
#[tokio::test]
async fn what_a_device_says_is_stored_once() {
    let world = World::new().await;
    let first = world.broker().await;
    let devices = &first.core.store.devices;
    let revision = async |device: &str| Some(devices.get(device).await.unwrap()?.revision);
    let _d1 = Device::start(&world, "d1").await;
    until("it is stored", async || revision("d1").await.is_some()).await;
    let stored = revision("d1").await;
    let second = world.broker().await;
    joined(&second, 1).await;
    let _d2 = Device::start(&world, "d2").await;
    until("the next one is stored", async || revision("d2").await.is_some()).await;
    joined(&second, 2).await;
    assert_eq!(revision("d1").await, stored);
    first.core.fleet.store_all();
    until("it is stored again", async || revision("d1").await > stored).await;
}

#[test]
fn one_that_cannot_be_stored_keeps_nobody_waiting() {
    let id = |name: &str| DeviceId::parse(name).unwrap();
    let unstored = Unstored::default();
    unstored.add(["b", "a", "c", "a"].map(id));
    let mut last = None;
    for expected in ["a", "b", "c", "a", "b"] {
        let next = unstored.take_behind(last.as_ref());
        assert_eq!(next, Some(id(expected)));
        unstored.add(next.clone());
        last = next;
    }
    for _ in 0..3 {
        assert!(unstored.take_behind(None).is_some());
    }
    assert_eq!(unstored.take_behind(last.as_ref()), None);
}
