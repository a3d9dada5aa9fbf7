//! What becomes of the mean when a server optimizer takes it for a gradient.

use jobs::report::UpdateReport;
use jobs::spec::{LocalTraining, Strategy, TrainTask};
use models::federated::server::{Aggregate, ServerOptimizer};

use super::*;
use crate::coordinator::updates::server::optimizer;

pub(super) fn spec(rounds: u32, strategy: Strategy) -> JobSpec {
    let mut spec = train_spec(rounds, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = strategy;
    spec
}

pub(super) fn values(parameters: &Parameters) -> Vec<f32> {
    parameters.items().iter().flat_map(|item| item.values.clone()).collect()
}

/// Holds what devices were given to steps over whole vectors, from round to round.
pub(super) fn assert_stepped(
    given: &BTreeMap<u32, Parameters>,
    rounds: u32,
    optimizer: &ServerOptimizer,
) {
    assert_eq!(given.keys().copied().collect::<Vec<_>>(), (1..=rounds).collect::<Vec<_>>());
    let mut x = values(&given[&1]);
    let mut state = optimizer.state(x.len());
    for round in 1..rounds {
        let mean = values(&mean_after_a_round(&given[&round]));
        assert_ne!(x, mean);
        let moments = state.piece(0, x.len());
        optimizer.step(moments, &mut x, Aggregate::Parameters(&mean)).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values(&given[&(round + 1)])), bits(&x), "after round {round}");
    }
}

#[tokio::test]
async fn a_server_optimizer_steps_from_round_to_round() {
    for text in
        ["fedavgm:learning_rate=0.5", "fedadagrad:v0=1e-6", "fedadam:tau=0.1", "fedyogi:v0=0.01"]
    {
        let strategy: Strategy = text.parse().unwrap();
        let world = World::new().await;
        let broker = world.broker().await;
        let d1 = Device::start(&world, "d1").await;
        let _d2 = Device::start(&world, "d2").await;
        joined(&broker, 2).await;
        let job = submit(&broker, spec(4, strategy)).await;
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        assert_stepped(&d1.given.borrow(), 4, &optimizer(&strategy).unwrap());
        let states: Vec<&BlobRef> =
            record.rounds.iter().filter_map(|round| round.server_state.as_ref()).collect();
        assert_eq!(states.len(), 4, "{text}");
        let blobs = &broker.core.store.blobs;
        until("the states are cleaned up, but for the last one", async || {
            let mut left = Vec::new();
            for state in &states {
                left.push(blobs.size(state).await.unwrap().is_some());
            }
            left == [false, false, false, true]
        })
        .await;
    }
}

#[tokio::test]
async fn another_broker_goes_on_with_what_the_optimizer_kept() {
    let strategy: Strategy = "fedadam".parse().unwrap();
    let world = World::new().await;
    let first_runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&first_runtime).await;
    let d1 = Device::start(&world, "d1").await;
    let (gate, open) = watch::channel(false);
    let waits = move |task: &jobs::spec::Task| match task.id.purpose {
        Purpose::Train if task.id.round.0 == 3 => Action::After(open.clone()),
        Purpose::Train
        | Purpose::Evaluate
        | Purpose::Share
        | Purpose::Mask
        | Purpose::Unmask
        | Purpose::Infer
        | Purpose::Telemetry => Action::Work,
    };
    let d2 = Device::start_as(&world, "d2", waits).await;
    joined(&first, 2).await;
    let job = submit(&first, spec(5, strategy)).await;
    until("the third round", async || d1.given.borrow().contains_key(&3)).await;
    let second = world.broker().await;
    first_runtime.shutdown_background();
    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let optimizer = optimizer(&strategy).unwrap();
    assert_stepped(&d1.given.borrow(), 5, &optimizer);
    assert_stepped(&d2.given.borrow(), 5, &optimizer);
}

/// With these a device of 10 examples takes one step, and one of 30 takes two.
pub(super) fn plain_steps() -> LocalTraining {
    LocalTraining { momentum: 0.0, learning_rate: 0.5, batch_size: 15, ..LocalTraining::default() }
}

/// Three rounds of two devices; what the first one was given in each.
async fn rounds(strategy: &str) -> (JobRecord, Vec<Vec<f32>>, Device) {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = spec(3, strategy.parse().unwrap());
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.local = plain_steps();
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let given = d1.given.borrow().values().map(values).collect();
    (record, given, d1)
}

fn assert_moved_by(given: &[Vec<f32>], step: f64) {
    assert_eq!(given.len(), 3);
    for pair in given.windows(2) {
        for (before, after) in pair[0].iter().zip(&pair[1]) {
            let expected = f64::from(*before) + step;
            assert!((f64::from(*after) - expected).abs() < 1e-5, "{before} {after} {step}");
        }
    }
}

pub(super) fn trainings(device: &Device) -> Vec<TrainTask> {
    let offered = device.offered.borrow();
    let training = |task: &jobs::spec::Task| match &task.work {
        TaskWork::Train(work) => Some(work.clone()),
        TaskWork::TrainMasked(_)
        | TaskWork::Exchange
        | TaskWork::Evaluate(_)
        | TaskWork::Infer(_)
        | TaskWork::Telemetry => None,
    };
    offered.iter().filter_map(training).collect()
}

/// The two devices add 1 and 2 to every value, in 1 and 2 steps, and weigh 10 and 30.
#[tokio::test]
async fn fed_nova_weighs_steps() {
    let (record, given, _) = rounds("fednova").await;
    let effective = 0.25 * 1.0 + 0.75 * 2.0;
    assert_moved_by(&given, effective * (0.25 * 1.0 / 1.0 + 0.75 * 2.0 / 2.0));
    let (_, influence) = &record.rounds[0].influences[1];
    assert!(influence.reason.starts_with("steps of weight 2.00, share 0.65"), "{influence:?}");
}

/// The third device says three steps, and its examples make two.
#[tokio::test]
async fn steps_that_examples_do_not_make_are_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    let _d3 = Device::start(&world, "d3").await;
    joined(&broker, 3).await;
    let mut spec = spec(1, "fednova".parse().unwrap());
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    (train.participation.devices, train.local) = (Some(3), plain_steps());
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let (missing, failure) = &record.rounds[0].missing[0];
    assert_eq!((missing.as_str(), failure.code), ("d3", FailureCode::InvalidUpdate));
    let expected = "the update of device d3: 3 steps, expected 2: epochs 1 of 30 examples";
    assert!(failure.message.starts_with(expected), "{failure:?}");
    assert_eq!(record.rounds[0].updates.len(), 2);
}

/// The losses before the training are 0.5 and 1.
#[tokio::test]
async fn q_fed_avg_weighs_losses() {
    let (record, given, d1) = rounds("qfedavg:q=1").await;
    let length = f64::from(u32::try_from(given[0].len()).unwrap());
    let (first, second) = ((0.5, 1.0), (1.0, 2.0));
    let pull = |(loss, step): (f64, f64)| 2.0 * loss * step;
    let weight = |(loss, step): (f64, f64)| 4.0 * step * step * length + 2.0 * loss;
    let step = (pull(first) + pull(second)) / (weight(first) + weight(second));
    assert_moved_by(&given, step);
    assert!(record.rounds[2].influences[0].1.reason.starts_with("loss 0.5000 before"));
    let asked: Vec<bool> = trainings(&d1).iter().map(|work| work.initial_loss).collect();
    assert_eq!(asked, [true; 3]);
}

/// The control variates of the two devices change by 1/8 and 2/8 in each round.
#[tokio::test]
async fn scaffold_moves_the_servers_control_variate() {
    let (record, given, d1) = rounds("scaffold:learning_rate=0.5").await;
    assert_moved_by(&given, 0.5 * 1.5);
    let controls = d1.controls.borrow();
    assert_eq!(controls.keys().copied().collect::<Vec<_>>(), [2, 3], "0 in the first round");
    for (round, control) in controls.iter() {
        let expected = (f32::from(u8::try_from(*round).unwrap()) - 1.0) * (0.125 + 0.25) / 2.0;
        assert!(
            values(control).iter().all(|value| (value - expected).abs() < 1e-6),
            "{round}: {control:?}"
        );
    }
    let own = |work: &TrainTask| work.control.as_ref().unwrap().device.map(|round| round.0);
    let own: Vec<Option<u32>> = trainings(&d1).iter().map(own).collect();
    assert_eq!(own, [None, Some(1), Some(2)]);
    assert!(record.rounds.iter().all(|round| round.server_state.is_some()));
    // They travel too: a change up with each update, the server's down with the parameters.
    for (index, round) in record.rounds.iter().enumerate() {
        let change = |update: &UpdateReport| update.control_change.as_ref().unwrap().size.0;
        let up = round.updates.iter().map(|(_, it)| it.parameters.size.0 + change(it)).sum::<u64>();
        assert_eq!(round.moved.unwrap().up.0, up);
        let control = index.checked_sub(1).map(|before| &record.rounds[before].server_state);
        let control = control.map_or(0, |control| control.as_ref().unwrap().size.0);
        let parameters = round.parameters.size.0;
        let offered = round.moved.unwrap().down.0 - 2 * control;
        assert!([2, 4].map(|times| times * parameters).contains(&offered), "{index}: {offered}");
    }
}

/// An agent that does not know of control variates sends none.
#[tokio::test]
async fn an_update_without_a_control_variate_is_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let bytes = tiny(|_| ());
    let old = at_training(move || Action::Upload(bytes.clone()));
    let _d2 = Device::start_as(&world, "d2", old).await;
    joined(&broker, 2).await;
    let mut spec = spec(1, "scaffold".parse().unwrap());
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.local = LocalTraining { momentum: 0.0, ..LocalTraining::default() };
    train.participation.quorum = 1;
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let (device, failure) = &record.rounds[0].missing[0];
    assert_eq!((device.as_str(), failure.code), ("d2", FailureCode::InvalidUpdate));
    assert!(failure.message.contains("control variate is missing"), "{failure:?}");
}

/// What a rule makes of rows that lie whole in memory, from `x` on: however many examples devices
/// say they have.
fn whole(rule: &str, x: &[f32], rows: &[&[f32]]) -> Vec<f32> {
    use models::federated::{combination, distances, robust};
    let mut combined = vec![0.0; x.len()];
    let points = |rows: &[&[f32]]| {
        let mut sums = distances::PairwiseDistances::new(rows.len());
        sums.add(0, rows).unwrap();
        sums.distances()
    };
    let mut linear = |centre, coefficients: &[f64]| {
        combination::combine(centre, rows, coefficients, &mut combined).unwrap();
    };
    match rule {
        "krum" | "multikrum" => {
            let selected = if rule == "krum" { 1 } else { rows.len() - 1 };
            let krum = robust::krum::MultiKrum { byzantine: 1, selected };
            linear(None, &krum.select(&points(rows)).unwrap().coefficients());
        }
        "geometricmedian" => {
            let median = robust::geometric_median::GeometricMedian::default();
            linear(None, &median.locate(&points(rows)).unwrap().shares);
        }
        "centredclipping" => {
            let rule = robust::centred_clipping::CentredClipping { radius: 2.0, iterations: 3 };
            let points = points(&[&[x], rows].concat());
            linear(Some(x), &rule.coefficients(&points).unwrap().coefficients);
        }
        "normbound" => {
            let mut norms = distances::UpdateNorms::new(rows.len());
            norms.add(0, Some(x), rows).unwrap();
            let shares = vec![1.0 / 7.0; 7];
            let bound = robust::norm_bound::NormBound::new(2.0).unwrap();
            linear(Some(x), &bound.clip(&norms.norms(), &shares).unwrap().coefficients);
        }
        "bulyan" => {
            let mut bulyan = robust::bulyan::Bulyan::new(&points(rows), 1).unwrap();
            bulyan.tile(rows, &mut combined).unwrap();
        }
        "fedmedian" => {
            let mut median = robust::trimmed_mean::TrimmedMean::median(rows.len()).unwrap();
            median.tile(rows, &mut combined).unwrap();
        }
        "fedtrimmedavg" => {
            let mut mean = robust::trimmed_mean::TrimmedMean::new(rows.len(), 0.2).unwrap();
            mean.tile(rows, &mut combined).unwrap();
        }
        other => panic!("{other}"),
    }
    combined
}

/// The last of seven devices sends something that is far off; the server optimizer goes its steps
/// against what the rule makes of the others.
#[tokio::test]
async fn a_server_optimizer_steps_against_the_result_of_a_rule() {
    for (strategy, rule) in [
        ("fedadam:tau=0.1", "krum:byzantine=1"),
        ("fedyogi", "fedmedian"),
        ("fedavgm:learning_rate=0.5", "centredclipping:radius=2,iterations=3"),
    ] {
        let world = World::new().await;
        let broker = world.broker().await;
        let devices = seven(&world).await;
        joined(&broker, 7).await;
        let strategy: Strategy = strategy.parse().unwrap();
        let mut spec = spec(4, strategy);
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        train.rule = Some(rule.parse().unwrap());
        (train.participation.devices, train.participation.quorum) = (Some(7), 7);
        let record = ended(&broker, &submit(&broker, spec).await).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let given = devices[0].given.borrow();
        let mut x = values(&given[&1]);
        let optimizer = optimizer(&strategy).unwrap();
        let mut state = optimizer.state(x.len());
        for round in 1..4 {
            let rows = rows_of_seven(&x);
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let result = whole(rule.split(':').next().unwrap(), &x, &rows);
            let moments = state.piece(0, x.len());
            optimizer.step(moments, &mut x, Aggregate::Parameters(&result)).unwrap();
            assert_eq!(values(&given[&(round + 1)]), x, "{strategy} with {rule}, round {round}");
        }
        for outcome in &record.rounds {
            assert!(outcome.server_state.is_some());
            let (device, influence) = &outcome.influences[6];
            assert_eq!(device.as_str(), "d7");
            assert_ne!(influence.verdict, jobs::round::Verdict::Kept, "{influence:?}");
        }
    }
}

/// Seven devices, the last of which sends something that is far off.
async fn seven(world: &World) -> Vec<Device> {
    let mut devices = Vec::new();
    for name in ["d1", "d2", "d3", "d4", "d5", "d6"] {
        devices.push(Device::start(world, name).await);
    }
    let off = tiny(|items| items.iter_mut().for_each(|item| item.values.fill(1e6)));
    let wrong = at_training(move || Action::Upload(off.clone()));
    devices.push(Device::start_as(world, "d7", wrong).await);
    devices
}

/// What they make of `x`, the last of them something that is far off.
fn rows_of_seven(x: &[f32]) -> Vec<Vec<f32>> {
    let row = |number: u8| match number {
        7 => vec![1e6; x.len()],
        number => x.iter().map(|value| value + f32::from(number)).collect::<Vec<f32>>(),
    };
    (1..=7).map(row).collect()
}

/// Seven devices, the last of which sends something that is far off.
#[tokio::test]
async fn a_robust_strategy_bears_a_device_that_is_wrong() {
    for text in [
        "krum:byzantine=1",
        "multikrum:byzantine=1",
        "bulyan:byzantine=1",
        "fedmedian",
        "fedtrimmedavg",
        "geometricmedian",
        "centredclipping:radius=2,iterations=3",
        "normbound:norm=2",
    ] {
        let world = World::new().await;
        let broker = world.broker().await;
        let devices = seven(&world).await;
        joined(&broker, 7).await;
        let mut spec = spec(2, text.parse().unwrap());
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        train.participation.devices = Some(7);
        train.participation.quorum = 7;
        let record = ended(&broker, &submit(&broker, spec).await).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let given = devices[0].given.borrow();
        let x = values(&given[&1]);
        let rows = rows_of_seven(&x);
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let rule = text.split(':').next().unwrap();
        assert_eq!(values(&given[&2]), whole(rule, &x, &rows), "{text}");
        let influences = &record.rounds[0].influences;
        assert_eq!(influences.len(), 7, "{text}");
        let (device, influence) = &influences[6];
        assert_eq!(device.as_str(), "d7");
        assert_ne!(influence.verdict, jobs::round::Verdict::Kept, "{text}: {influence:?}");
    }
}
