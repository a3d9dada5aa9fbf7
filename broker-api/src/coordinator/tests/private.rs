//! Trainings that promise differential privacy.

use jobs::spec::Privacy;

use super::*;
use crate::store::Change;

const TWO_ROUNDS: &str = "central:norm=1,noise_multiplier=2,delta=1e-5,epsilon_budget=3.5";

fn private(rounds: u32, privacy: &str) -> JobSpec {
    let mut spec = train_spec(rounds, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.privacy = Some(privacy.parse().unwrap());
    spec
}

fn values(parameters: &Parameters) -> Vec<f64> {
    let items = parameters.items().iter();
    items.flat_map(|item| item.values.iter().map(|value| f64::from(*value))).collect()
}

/// What `d1` and `d2` move each value by, the slow way: each update, of 1 or 2 in every value, is
/// shortened to the norm 1, and both weigh the same.
#[expect(clippy::cast_precision_loss, reason = "a few values")]
fn moved_by(values: usize) -> f64 {
    let each = 1.0 / (values as f64).sqrt();
    f64::midpoint(each, each)
}

#[tokio::test]
async fn a_private_training_ends_at_its_budget() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let mut spec = private(9, TWO_ROUNDS);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.local.frozen = vec!["*bias".to_owned()];
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let Some(crate::record::JobResult::Train { enough, .. }) = &record.result else {
        panic!("{record:?}")
    };
    assert_eq!(*enough, Some(jobs::training::Enough::PrivacyBudget));
    assert_eq!(participants(&record), vec![["d1", "d2"]; 2]);
    let privacy: Privacy = TWO_ROUNDS.parse().unwrap();
    for (rounds, outcome) in (1..).zip(&record.rounds) {
        let spent = outcome.privacy.unwrap();
        assert_eq!((spent.rounds, spent.planned), (rounds, Some(2)));
        assert!((spent.epsilon - privacy.epsilon(rounds)).abs() < 1e-12);
        assert!(outcome.influences.is_empty(), "norms are not told");
    }
    let given = d1.given.borrow();
    let (before, after) = (&given[&1], &given[&2]);
    for (before, after) in before.items().iter().zip(after.items()) {
        assert_eq!(before.name.ends_with("bias"), before == after, "{}", before.name);
    }
    let differences = values(before).into_iter().zip(values(after)).map(|(x, y)| y - x);
    let differences: Vec<f64> = differences.filter(|it| it.abs() > 0.0).collect();
    let count = differences.len();
    let noise = differences.iter().map(|difference| difference - moved_by(count));
    #[expect(clippy::cast_precision_loss, reason = "a few values")]
    let deviation = (noise.map(|it| it * it).sum::<f64>() / count as f64).sqrt();
    // 2 times 1 / 2, up to chance: six deviations of an estimate of this many.
    #[expect(clippy::cast_precision_loss, reason = "a few values")]
    let slack = 6.0 / (2.0 * count as f64).sqrt();
    assert!(count > 100 && (deviation - 1.0).abs() < slack, "{count} {deviation}");
}

/// Every state that is stored of a training, in order.
fn states(broker: &Broker) -> tokio::sync::mpsc::Receiver<Change<StoredTraining>> {
    broker.core.store.trainings.follow(tokio_util::sync::CancellationToken::new())
}

/// The state before there was noise in the first round.
async fn before_noise(
    changes: &mut tokio::sync::mpsc::Receiver<Change<StoredTraining>>,
) -> StoredTraining {
    let finding = async {
        loop {
            let Some(Change::Put(_, stored, _)) = changes.recv().await else { continue };
            let round = stored.value.machine.as_ref().and_then(|machine| machine.round());
            if round.is_some_and(|round| round.status().phase == "aggregating") {
                return stored.value;
            }
        }
    };
    tokio::time::timeout(PATIENCE, finding).await.expect("it is stored")
}

/// The broker sees no update of a private job, and makes of their sum what it would make of them:
/// to the bit, but for how values become levels.
#[tokio::test]
async fn a_masked_sum_has_its_noise() {
    use crate::testing::masked::levels;
    let world = World::new().await;
    let broker = world.broker().await;
    let mut changes = states(&broker);
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    let _d3 = Device::start(&world, "d3").await;
    let drops = |task: &jobs::spec::Task| {
        let drops = task.id.purpose == Purpose::Mask;
        if drops { Action::Fail(FailureCode::Diverged) } else { Action::Work }
    };
    let _d4 = Device::start_as(&world, "d4", drops).await;
    joined(&broker, 4).await;
    let mut spec = private(2, TWO_ROUNDS);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    (train.participation.devices, train.participation.quorum) = (Some(4), 3);
    train.secure_aggregation = Some("clip=3".parse().unwrap());
    train.local.frozen = vec!["*bias".to_owned()];
    let job = submit(&broker, spec).await;
    let stored = before_noise(&mut changes).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert_eq!(participants(&record), vec![["d1", "d2", "d3"]; 2]);
    let spent: Vec<u32> = record.rounds.iter().map(|it| it.privacy.unwrap().rounds).collect();
    assert_eq!(spent, [1, 2]);

    let machine = stored.machine.unwrap();
    let secure = machine.secure_aggregation().unwrap();
    assert!((secure.clip - 1.0).abs() < f32::EPSILON, "no parameter moves farther than the norm");
    let terms = jobs::spec::Levels {
        clip: secure.clip,
        weight_max: 1,
        rounding: secure.rounding,
        devices: 4,
        within: false,
    };
    let quantisation = secagg::Quantisation::new(1.0, 4, 1).unwrap();
    let given = d1.given.borrow();
    let steps = [1.0, 2.0, 3.0];
    let vectors = steps.map(|step| levels(&given[&1], step, 1, terms, Some(1.0)));
    let model = models::params::Layout::of(&given[&1]);
    let sums = (0..model.total_len()).map(|at| vectors.iter().map(|levels| levels[at]).sum());
    let mut moved: Vec<f64> = sums.map(|sum| quantisation.total(sum, 3)).collect();
    let private = updates::private::Private::of(&machine, &stored.secret.unwrap()).unwrap();
    let exchange = machine.round().unwrap().exchange().unwrap();
    let noised = private.of_sum(&model, quantisation.error(false), &exchange.masked).unwrap();
    noised.sum.mean(0, &mut moved);
    let mut moved = moved.into_iter();
    for (before, after) in given[&1].items().iter().zip(given[&2].items()) {
        let is_frozen = before.name.ends_with("bias");
        for (before, after) in before.values.iter().zip(&after.values) {
            let moved = moved.next().unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            let noised = (f64::from(*before) + moved) as f32;
            // Devices that move what is frozen change nothing.
            let expected = if is_frozen { *before } else { noised };
            assert_eq!(after.to_bits(), expected.to_bits());
        }
    }
}

/// A broker that dies when it has made a private mean, and before anyone knows: the next one makes
/// the very same, which was paid for once.
#[tokio::test]
async fn another_broker_makes_the_same_noise() {
    let adaptive = TWO_ROUNDS.replace("norm=1", "initial=1,count_deviation=4");
    let plans = [(TWO_ROUNDS, false), (&adaptive, false), (TWO_ROUNDS, true), (&adaptive, true)];
    for (privacy, masked) in plans {
        let world = World::new().await;
        let first_runtime = tokio::runtime::Runtime::new().unwrap();
        let first = world.broker_on(&first_runtime).await;
        let second = world.broker().await;
        let mut changes = states(&second);
        let (gate, open) = watch::channel(false);
        let waits = move |task: &jobs::spec::Task| match task.id.purpose {
            Purpose::Train if task.id.round.0 == 2 => Action::After(open.clone()),
            Purpose::Train
            | Purpose::Evaluate
            | Purpose::Share
            | Purpose::Mask
            | Purpose::Unmask
            | Purpose::Infer
            | Purpose::Telemetry => Action::Work,
        };
        let mut d1 = Device::start_as(&world, "d1", waits.clone()).await;
        let _d2 = Device::start_as(&world, "d2", waits.clone()).await;
        let _d3 = Device::start_as(&world, "d3", waits).await;
        joined(&first, 3).await;
        let mut spec = private(9, privacy);
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        train.evaluate = jobs::spec::Evaluate::None;
        (train.participation.devices, train.participation.quorum) = (Some(3), 3);
        train.secure_aggregation = masked.then(jobs::spec::SecureAggregation::default);
        let job = submit(&first, spec).await;
        let rounds = async || first.job(&job).await.unwrap().rounds;
        until("the first round", async || !rounds().await.is_empty()).await;
        let before = rounds().await[0].clone();
        let published = before.parameters;
        assert!(published.name.as_deref().unwrap().ends_with("/1/1"), "{published:?}");
        let stored = before_noise(&mut changes).await;
        let ledger = serde_json::to_value(&stored.machine).unwrap()["ledger"].clone();
        assert_eq!(ledger["rounds"], 1, "it is paid for: {ledger}");
        assert!(stored.secret.is_some());
        first_runtime.shutdown_background();
        // What the store would hold, had the first broker died then.
        let trainings = &second.core.store.trainings;
        let found = trainings.get(job.as_str()).await.unwrap().unwrap();
        trainings.update(job.as_str(), &stored, found.revision).await.unwrap();
        let made = state::parameters_name(&job, 1, stored.term + 1);
        // The second broker offers the second round once more.
        let is_offered = |task: &jobs::spec::Task| task.id.round.0 == 2;
        let twice = |tasks: &Vec<_>| tasks.iter().filter(|task| is_offered(task)).count() == 2;
        let offered = tokio::time::timeout(PATIENCE, d1.offered.wait_for(twice)).await;
        drop(offered.expect("it takes over").unwrap());
        gate.send(true).unwrap();
        let record = ended(&second, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        assert_eq!(record.rounds[0].parameters.name.as_deref(), Some(&made[..]), "made anew");
        assert_eq!(record.rounds[0].parameters.digest, published.digest);
        assert_eq!(record.rounds[0].within, before.within);
        assert_eq!(before.within.is_some(), privacy == adaptive);
        let norms: Vec<f64> = record.rounds.iter().map(|it| it.privacy.unwrap().norm).collect();
        assert_eq!((norms[0] - norms[1]).abs() > 1e-9, privacy == adaptive, "{norms:?}");
        assert_eq!(record.rounds.len(), 2, "{record:?}");
        assert_eq!(record.rounds[1].privacy.unwrap().rounds, 2);
    }
}

/// A server optimizer takes the private mean as it takes any other.
#[tokio::test]
async fn an_optimizer_steps_against_the_private_mean() {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let quiet = "central:norm=60,noise_multiplier=0.002,delta=1e-5,epsilon_budget=1e6";
    let mut spec = private(3, quiet);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.strategy = "fedavgm:learning_rate=0.5,momentum=0.9".parse().unwrap();
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    assert!(record.rounds.iter().all(|round| round.server_state.is_some()));
    let given = d1.given.borrow();
    // By 1.5 each round: half of it, then half of that and 0.9 of it before.
    for (round, expected) in [(1, 0.75), (2, 1.425)] {
        let (before, after) = (values(&given[&round]), values(&given[&(round + 1)]));
        let differences: Vec<f64> = before.iter().zip(&after).map(|(x, y)| y - x).collect();
        #[expect(clippy::cast_precision_loss, reason = "a few values")]
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        assert!((mean - expected).abs() < 0.02, "{round}: {mean}");
        assert!(differences.iter().any(|it| (it - mean).abs() > 1e-3), "there is noise");
    }
}

#[tokio::test]
async fn an_adaptive_norm_follows_what_devices_send() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let text = "central:initial=0.25,count_deviation=0.001,noise_multiplier=0.001,delta=1e-5,\
                epsilon_budget=1e6";
    let record = ended(&broker, &submit(&broker, private(3, text)).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    // Both updates are longer: the norm grows by a factor of exp(0.1).
    for (index, outcome) in record.rounds.iter().enumerate() {
        let grown = 0.25 * (0.1 * f64::from(u32::try_from(index).unwrap())).exp();
        let norm = outcome.privacy.unwrap().norm;
        assert!((norm - grown).abs() < 0.01, "{norm}, {grown}");
        assert!(outcome.within.unwrap().abs() < 0.01);
    }
}

/// The same plan with and without masks, of the same updates and with next to no noise: the norm
/// takes the same way, and who reads what devices send learns of none whether it was shortened.
#[tokio::test]
async fn a_norm_follows_masked_updates_as_it_follows_others() {
    let text = "central:initial=1,rate=10,count_deviation=0.004,noise_multiplier=0.004,delta=1e-5,\
                epsilon_budget=1e6";
    let mut ways = Vec::new();
    for masked in [false, true] {
        let world = World::new().await;
        let broker = world.broker().await;
        let mut changes = states(&broker);
        let (gate, open) = watch::channel(!masked);
        let waits = move |task: &jobs::spec::Task| {
            let waits = task.id.purpose == Purpose::Train && task.id.round.0 == 2;
            if waits { Action::After(open.clone()) } else { Action::Work }
        };
        let _d1 = Device::start_as(&world, "d1", waits).await;
        let _d2 = Device::start(&world, "d2").await;
        let _d3 = Device::start(&world, "d3").await;
        let drops = move |task: &jobs::spec::Task| {
            let drops = task.id.purpose == if masked { Purpose::Mask } else { Purpose::Train };
            if drops { Action::Fail(FailureCode::Diverged) } else { Action::Work }
        };
        let _d4 = Device::start_as(&world, "d4", drops).await;
        joined(&broker, 4).await;
        let mut spec = private(5, text);
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        train.evaluate = jobs::spec::Evaluate::None;
        (train.participation.devices, train.participation.quorum) = (Some(4), 3);
        train.secure_aggregation = masked.then(|| "clip=16".parse().unwrap());
        let job = submit(&broker, spec).await;
        if masked {
            hides(&broker, &before_noise(&mut changes).await).await;
            gate.send(true).unwrap();
        }
        let record = ended(&broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        assert_eq!(participants(&record), vec![["d1", "d2", "d3"]; 5]);
        let norms = record.rounds.iter().map(|it| it.privacy.unwrap().norm);
        ways.push(norms.zip(record.rounds.iter().map(|it| it.within.unwrap())).collect::<Vec<_>>());
    }
    let [plain, masked] = &ways[..] else { unreachable!() };
    for ((norm, within), (other, again)) in plain.iter().zip(masked) {
        assert!((norm / other - 1.0).abs() < 0.2 && (within - again).abs() < 0.02, "{ways:?}");
    }
    // Of three in four that are there so many are not longer than the norm.
    let counts: Vec<f64> = masked.iter().map(|it| ((it.1 - 0.5) * 4.0 + 1.5).round()).collect();
    assert!([0.0, 1.0, 3.0].iter().all(|it| counts.contains(it)), "{ways:?}");
    assert!(masked.windows(2).any(|pair| pair[0].0 < pair[1].0), "{ways:?}");
    assert!(masked.windows(2).any(|pair| pair[0].0 > pair[1].0), "{ways:?}");
}

/// What each device sent in the round of this state has a value for its yes or no, and shows
/// neither.
async fn hides(broker: &Broker, stored: &StoredTraining) {
    let exchange = stored.machine.as_ref().unwrap().round().unwrap().exchange().unwrap();
    assert_eq!(exchange.masked.len(), 3);
    for (device, blob) in &exchange.masked {
        let bytes = broker.core.store.blobs.get(blob).await.unwrap();
        let values: Vec<u32> =
            bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect();
        let [.., weight, within] = &values[..] else { panic!("{device} sent {values:?}") };
        assert!(*weight > 1000 && *within > 1000, "{device}: {weight} {within}");
    }
}

/// Devices are told what to do, pay when they are asked, and weigh the same.
#[tokio::test]
async fn devices_add_the_noise_where_they_trust_nobody() {
    let world = World::new().await;
    let broker = world.broker().await;
    let asked = |task: &jobs::spec::Task| {
        let TaskWork::Train(work) = &task.work else { panic!("{task:?}") };
        let noised = work.local.noised.unwrap();
        assert_eq!(
            (noised.norm.to_bits(), noised.noise_multiplier.to_bits()),
            (1_f64.to_bits(), 2_f64.to_bits())
        );
        Action::Work
    };
    let d1 = Device::start_as(&world, "d1", asked).await;
    let _d2 = Device::start_as(&world, "d2", asked).await;
    joined(&broker, 2).await;
    let mut spec = private(9, &TWO_ROUNDS.replace("central", "local"));
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.evaluate = jobs::spec::Evaluate::None;
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let spent: Vec<_> = record.rounds.iter().map(|round| round.privacy.unwrap()).collect();
    assert_eq!((spent.len(), spent[1].rounds, spent[1].planned), (2, 2, None));
    let given = d1.given.borrow();
    for (x, y) in values(&given[&1]).into_iter().zip(values(&given[&2])) {
        assert!((y - x - 1.5).abs() < 1e-6, "{x} {y}");
    }
}

/// Rounds of those that were drawn, be it nobody.
#[tokio::test]
async fn a_sampled_round_has_whom_it_drew() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    let text = "central:norm=1,noise_multiplier=1,delta=1e-5,epsilon_budget=100,sampling_rate=0.4";
    let record = ended(&broker, &submit(&broker, private(12, text)).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let sizes: Vec<usize> = record.rounds.iter().map(|round| round.updates.len()).collect();
    assert_eq!(sizes.len(), 12);
    assert!(sizes.iter().sum::<usize>() < 24, "{sizes:?}");
    let spent = record.rounds[11].privacy.unwrap();
    assert_eq!((spent.rounds, spent.sampling_rate.to_bits()), (12, 0.4_f64.to_bits()));
}
