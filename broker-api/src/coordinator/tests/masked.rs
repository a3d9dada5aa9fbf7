//! Rounds whose updates are masked: the sum is that of the plain levels, to the bit, whoever drops
//! out and whichever broker goes on.

use jobs::spec::{Levels, Rounding, SecureAggregation};
use secagg::{Keys, PublicKey, Quantisation};

use super::*;

fn spec(rounds: u32, devices: u32, secure: &str) -> JobSpec {
    let mut spec = train_spec(rounds, devices);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 3;
    train.evaluate = jobs::spec::Evaluate::None;
    train.secure_aggregation = Some(secure.parse().unwrap());
    spec
}

/// The parameters after a round in which these took part, the plain way.
fn after(given: &Parameters, devices: &[&str], of: u32, secure: SecureAggregation) -> Parameters {
    let levels = Levels {
        clip: secure.clip,
        weight_max: secure.weight_max,
        rounding: Rounding::Nearest,
        devices: of,
        within: false,
    };
    let mut sum: Vec<u32> = Vec::new();
    for name in devices {
        let device = id(name);
        let weight = u32::try_from(examples(&device)).unwrap().min(secure.weight_max);
        let levels = crate::testing::masked::levels(given, number(&device), weight, levels, None);
        sum.resize(levels.len(), 0);
        for (sum, level) in sum.iter_mut().zip(levels) {
            *sum = sum.checked_add(level).expect("no sum is too large");
        }
    }
    let weight = sum.pop().unwrap();
    let quantisation = Quantisation::new(secure.clip, of, secure.weight_max).unwrap();
    let mut sums = sum.into_iter();
    let items = given.items().iter().map(|item| {
        let moved = item.values.iter().map(|value| {
            let mean = quantisation.mean(sums.next().unwrap(), weight);
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let value = (f64::from(*value) + mean) as f32;
            value
        });
        Parameter { name: item.name.clone(), shape: item.shape.clone(), values: moved.collect() }
    });
    Parameters::new(items.collect()).unwrap()
}

fn assert_sums(
    given: &watch::Receiver<BTreeMap<u32, Parameters>>,
    participants: &[Vec<&str>],
    of: u32,
    secure: &str,
) {
    let given = given.borrow();
    for round in 1..u32::try_from(participants.len()).unwrap() {
        let devices = &participants[round as usize - 1];
        let expected = after(&given[&round], devices, of, secure.parse().unwrap());
        let found = given[&(round + 1)].to_safetensors();
        assert_eq!(found, expected.to_safetensors(), "after round {round}");
    }
}

#[tokio::test]
async fn every_round_adds_up_the_levels_of_its_updates() {
    // The fourth device's step of 4 is beyond the first clip.
    for secure in ["clip=3", "clip=8,weight_max=30"] {
        let world = World::new().await;
        let broker = world.broker().await;
        let d1 = Device::start_as(&world, "d1", |_| Action::Repeat).await;
        let _d2 = Device::start(&world, "d2").await;
        let _d3 = Device::start(&world, "d3").await;
        let _d4 = Device::start(&world, "d4").await;
        joined(&broker, 4).await;
        let job = submit(&broker, spec(3, 4, secure)).await;
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let names = participants(&record);
        assert_eq!(names, vec![["d1", "d2", "d3", "d4"]; 3]);
        assert_sums(&d1.given, &names, 4, secure);
        let values =
            d1.given.borrow()[&1].items().iter().map(|item| item.values.len() as u64).sum::<u64>();
        for round in &record.rounds {
            let sent = round.updates.iter().map(|(device, _)| round.sent(device).0);
            let sent: Vec<u64> = sent.collect();
            assert!(sent.iter().all(|sent| *sent > 4 * (values + 1)), "{sent:?}");
            assert_eq!(round.moved.unwrap().up.0, sent.iter().sum::<u64>());
            // Four rosters of four devices, and what neighbours sealed.
            let asked = round.moved.unwrap().down.0 - 4 * round.parameters.size.0;
            assert!(asked > 4 * 4 * 2 * 64, "{asked}");
        }
    }
}

#[tokio::test]
async fn devices_that_drop_out_at_any_stage_are_missing_and_the_sum_is_that_of_the_others() {
    let world = World::new().await;
    let broker = world.broker().await;
    let drops = |stage: Purpose| {
        move |task: &jobs::spec::Task| {
            if task.id.purpose == stage {
                Action::Fail(FailureCode::Diverged)
            } else {
                Action::Work
            }
        }
    };
    let mut devices = Vec::new();
    for index in 1..=7 {
        devices.push(Device::start(&world, &format!("d{index}")).await);
    }
    let _d8 = Device::start_as(&world, "d8", drops(Purpose::Share)).await;
    let _d9 = Device::start_as(&world, "d9", drops(Purpose::Mask)).await;
    let _e0 = Device::start_as(&world, "e0", drops(Purpose::Unmask)).await;
    joined(&broker, 10).await;
    let secure = "clip=16";
    let job = submit(&broker, spec(3, 10, secure)).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let names = participants(&record);
    // Who only does not help to unmask is in the sum.
    assert_eq!(names, vec![["d1", "d2", "d3", "d4", "d5", "d6", "d7", "e0"]; 3]);
    assert_sums(&devices[0].given, &names, 10, secure);
    for round in &record.rounds {
        let missing: Vec<&str> = round.missing.iter().map(|(it, _)| it.as_str()).collect();
        assert_eq!(missing, ["d8", "d9"]);
        let text = &round.missing[1].1.message;
        assert!(text.contains("dropped out of the secure aggregation"), "{text}");
    }
}

#[tokio::test]
async fn too_many_drop_outs_fail_the_round_with_the_reason() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let mut devices = Vec::new();
    for name in ["d2", "d3", "d4"] {
        let drops = |task: &jobs::spec::Task| {
            let last = task.id.purpose == Purpose::Unmask;
            if last { Action::Fail(FailureCode::Diverged) } else { Action::Work }
        };
        devices.push(Device::start_as(&world, name, drops).await);
    }
    joined(&broker, 4).await;
    let mut spec = spec(1, 4, "");
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.failed_rounds_max = 1;
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Failed, "{record:?}");
    let text = record.failure.unwrap().message;
    assert!(text.contains("2 are needed to take its masks off"), "{text}");
}

/// Also where another broker took their keys that reported before.
#[tokio::test]
async fn who_reports_keys_that_are_no_good_is_refused_by_name_and_the_round_goes_on() {
    let own = crate::testing::masked::keys;
    for taken_over in [false, true] {
        let world = World::new().await;
        let mut runtime = Some(tokio::runtime::Runtime::new().unwrap());
        let first = world.broker_on(runtime.as_ref().unwrap()).await;
        let mut devices = Vec::new();
        for name in ["d1", "d2", "d3"] {
            devices.push(Device::start(&world, name).await);
        }
        let (gate, open) = watch::channel(false);
        let replayed = Keys { masking: own("d1").sealing, ..own("d4") };
        let twice = Keys { masking: own("d5").sealing, ..own("d5") };
        let low = Keys { sealing: PublicKey([0; 32]), ..own("d6") };
        for (name, keys) in [("d4", replayed), ("d5", twice), ("d6", low)] {
            let (open, keys) = (open.clone(), serde_json::to_vec(&keys).unwrap());
            let says = move |task: &jobs::spec::Task| match (task.id.purpose, task.id.round.0) {
                (Purpose::Train, 1) => Action::UploadAfter(open.clone(), keys.clone()),
                _ => Action::Work,
            };
            devices.push(Device::start_as(&world, name, says).await);
        }
        joined(&first, 6).await;
        let job = submit(&first, spec(2, 6, "clip=8")).await;
        let trainings = &first.core.store.trainings;
        until("three are usable", async || {
            let stored = trainings.get(job.as_str()).await.unwrap();
            let machine = stored.and_then(|stored| stored.value.machine);
            machine.is_some_and(|machine| machine.round().unwrap().keys().len() == 3)
        })
        .await;
        let broker = if taken_over {
            if let Some(runtime) = runtime.take() {
                runtime.shutdown_background();
            }
            world.broker().await
        } else {
            first
        };
        gate.send(true).unwrap();
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let names = participants(&record);
        assert_eq!(names[0], ["d1", "d2", "d3"]);
        assert_eq!(names[1], ["d1", "d2", "d3", "d4", "d5", "d6"]);
        assert_sums(&devices[0].given, &names, 6, "clip=8");
        let missing = &record.rounds[0].missing;
        for ((name, words), (device, failure)) in [
            ("d4", "is that of device d1, which reported it before"),
            ("d5", "is there twice"),
            ("d6", "agrees on nothing"),
        ]
        .into_iter()
        .zip(missing)
        {
            assert_eq!((device.as_str(), failure.code), (name, FailureCode::InvalidUpdate));
            assert!(
                failure.message.contains(name) && failure.message.contains(words),
                "{failure:?}"
            );
        }
        assert_eq!(missing.len(), 3);
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

/// At each stage in turn a broker is gone without a word; the next one goes on with the same
/// session.
#[tokio::test]
async fn another_broker_goes_on_at_every_stage() {
    for stage in [Purpose::Share, Purpose::Mask, Purpose::Unmask] {
        let world = World::new().await;
        let first_runtime = tokio::runtime::Runtime::new().unwrap();
        let first = world.broker_on(&first_runtime).await;
        let d1 = Device::start(&world, "d1").await;
        let _d2 = Device::start(&world, "d2").await;
        let (gate, open) = watch::channel(false);
        let waits = move |task: &jobs::spec::Task| {
            if task.id.purpose == stage { Action::After(open.clone()) } else { Action::Work }
        };
        let mut d3 = Device::start_as(&world, "d3", waits).await;
        joined(&first, 3).await;
        let secure = "clip=4,drop_out=0";
        let job = submit(&first, spec(2, 3, secure)).await;
        d3.offered(stage).await;
        let second = world.broker().await;
        first_runtime.shutdown_background();
        gate.send(true).unwrap();
        let record = ended(&second, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{stage:?}: {record:?}");
        let names = participants(&record);
        assert_eq!(names, vec![["d1", "d2", "d3"]; 2], "{stage:?}");
        assert_sums(&d1.given, &names, 3, secure);
    }
}

#[tokio::test]
async fn a_server_optimizer_steps_against_the_masked_mean() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    let _d3 = Device::start(&world, "d3").await;
    joined(&broker, 3).await;
    let mut spec = spec(2, 3, "clip=4");
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = "fedavgm:learning_rate=0.5,momentum=0".parse().unwrap();
    let job = submit(&broker, spec).await;
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let given = d1.given.borrow();
    let mean = after(&given[&1], &["d1", "d2", "d3"], 3, "clip=4".parse().unwrap());
    let values = |parameters: &Parameters| -> Vec<f32> {
        parameters.items().iter().flat_map(|item| item.values.clone()).collect()
    };
    for ((before, mean), found) in
        values(&given[&1]).iter().zip(values(&mean)).zip(values(&given[&2]))
    {
        let half = f32::midpoint(*before, mean);
        assert!((found - half).abs() <= 1e-6 * half.abs().max(1.0), "{found} {half}");
    }
}
