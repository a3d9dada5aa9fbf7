//! Parameters that devices may listen to while they are uploaded.

use jobs::id::ObjectId;
use jobs::spec::TrainSpec;

use super::*;

/// What a device was offered in the rounds of a job: where its parameters were, and where the next
/// ones were going to be.
async fn offers(
    devices: &[&str],
    change: impl FnOnce(&mut TrainSpec),
) -> Vec<(Option<ObjectId>, Option<ObjectId>)> {
    let world = World::new().await;
    let broker = world.broker().await;
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let mut all = Vec::new();
    for device in devices {
        let heard = told.clone();
        let act = move |task: &jobs::spec::Task| {
            if let TaskWork::Train(work) = &task.work {
                let places = (work.parameters.object.clone(), work.next.clone());
                heard.lock().unwrap().insert(task.id.round, places);
            }
            Action::Work
        };
        all.push(Device::start_as(&world, device, act).await);
    }
    joined(&broker, devices.len()).await;
    let mut spec = train_spec(3, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    change(train);
    let job = submit(&broker, spec).await;
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let told = told.lock().unwrap();
    told.values().cloned().collect()
}

#[tokio::test]
async fn devices_know_where_the_next_parameters_are_going_to_be() {
    let offers = offers(&["d1", "d2"], |_| ()).await;
    let [(_, first), (second, third), (last, none)] = &offers[..] else { panic!("{offers:?}") };
    assert!(first.is_some() && third.is_some(), "{offers:?}");
    assert_eq!((first, third, none), (second, last, &None), "{offers:?}");
}

#[tokio::test]
async fn what_is_not_for_all_or_not_the_mean_is_not_listened_to() {
    let changes: [fn(&mut TrainSpec); 3] = [
        |train| train.strategy = "fedavgm".parse().unwrap(),
        |train| {
            train.update = "float32:delta=true".parse().unwrap();
            train.download = "int8".parse().unwrap();
        },
        |train| {
            train.participation.devices = Some(1);
            train.participation.quorum = 1;
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let offers = offers(&["d1", "d2"], change).await;
        assert_eq!(offers.len(), 3);
        assert!(offers.iter().all(|(_, next)| next.is_none()), "{number}: {offers:?}");
    }
}
