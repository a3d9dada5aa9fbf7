//! Updates that come when their round is over, and count.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn spec(strategy: &str, devices: Option<u32>, quorum: u32, rounds: u32) -> TrainSpec {
    let late = if strategy == "fedavg" { "staleness" } else { "refuse" };
    let mut spec = super::spec(rounds);
    spec.strategy = strategy.parse().unwrap();
    let late_updates = if late == "refuse" {
        json!({"policy": late})
    } else {
        json!({"policy": late, "staleness_max": 2})
    };
    spec.participation.late_updates = serde_json::from_value(late_updates).unwrap();
    (spec.participation.devices, spec.participation.quorum) = (devices, quorum);
    spec.participation.over_selection = 1.0;
    spec.evaluate = crate::spec::Evaluate::None;
    spec
}

fn device(number: usize) -> DeviceId {
    devices(number + 1).remove(number)
}

/// A device's part in a round.
fn of(round: u32, event: RoundEvent) -> Event {
    Event::Round { round: RoundNumber(round), event }
}

fn found(training: &mut Training, now: u64, round: u32, count: usize) -> Vec<Effect> {
    training.step(Millis(now), &of(round, RoundEvent::DevicesFound { devices: devices(count) }))
}

fn accepted(training: &mut Training, round: u32, device: &DeviceId) {
    let (device, purpose) = (device.clone(), Purpose::Train);
    let event = RoundEvent::Accepted { device, purpose, attempt: Attempt(1) };
    assert_eq!(training.step(Millis(1), &of(round, event)), []);
}

fn update(device: &DeviceId, round: u32) -> UpdateReport {
    let offer = Effect::Round {
        round: RoundNumber(round),
        effect: RoundEffect::Offer {
            device: device.clone(),
            purpose: Purpose::Train,
            attempt: Attempt(1),
            parameters: blob(0),
        },
    };
    match answer(&offer, 0, 0.0) {
        Some(Event::Round { event: RoundEvent::UpdateReceived { update, .. }, .. }) => update,
        other => panic!("{other:?}"),
    }
}

/// An update arrives and is found usable; what follows.
fn give(training: &mut Training, now: u64, round: u32, device: &DeviceId) -> Vec<Effect> {
    let (attempt, update) = (Attempt(1), update(device, round));
    let event = RoundEvent::UpdateReceived { device: device.clone(), attempt, update };
    let mut all = training.step(Millis(now), &of(round, event));
    let is_check = |effect: &&Effect| {
        matches!(effect, Effect::Round { effect: RoundEffect::CheckUpdate { .. }, .. })
    };
    let check = all.iter().find(is_check).and_then(|effect| answer(effect, 0, 0.0));
    all.extend(training.step(Millis(now), &check.expect("an update is looked into")));
    all
}

fn aggregated(training: &mut Training, now: u64, round: u32) -> Vec<Effect> {
    let aggregate = Aggregate::of(blob(round.into()));
    training.step(Millis(now), &of(round, RoundEvent::Aggregated(aggregate)))
}

fn ended(effects: &[Effect]) -> &Outcome {
    let outcome = effects.iter().find_map(|effect| {
        let Effect::PublishRound(outcome) = effect else { return None };
        Some(outcome)
    });
    outcome.expect("a round ends")
}

fn names(updates: &[(DeviceId, UpdateReport)]) -> Vec<&DeviceId> {
    updates.iter().map(|(device, _)| device).collect()
}

/// Offers with their rounds and parameters.
fn offers(effects: &[Effect]) -> Vec<(u32, DeviceId, BlobRef)> {
    let offers = effects.iter().filter_map(|effect| {
        let Effect::Round { round, effect: RoundEffect::Offer { device, parameters, .. } } = effect
        else {
            return None;
        };
        Some((round.0, device.clone(), parameters.clone()))
    });
    offers.collect()
}

/// Three devices of four are at work when the buffer of two is full.
#[test]
fn a_device_at_work_goes_on_and_counts_once_in_a_later_round() {
    let (mut training, _) = begin(spec("fedbuff", Some(2), 1, 9));
    let invited = offers(&found(&mut training, 1, 1, 4));
    assert_eq!(invited.len(), 4, "as many more as over_selection says");
    for number in 0..4 {
        accepted(&mut training, 1, &device(number));
    }
    give(&mut training, 2, 1, &device(0));
    let effects = give(&mut training, 3, 1, &device(1));
    let told = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Round { effect: RoundEffect::Withdraw { .. }, .. }));
    assert!(!told, "nobody is told to stop: {effects:?}");
    // One comes while the first two are aggregated.
    give(&mut training, 4, 1, &device(2));
    let awaited = |training: &Training, round: u32| {
        let of = |number: &usize| training.awaits(RoundNumber(round), &device(*number));
        (0..4).filter(of).collect::<Vec<usize>>()
    };
    assert_eq!(awaited(&training, 1), [3], "the others came");
    let effects = aggregated(&mut training, 5, 1);
    let outcome = ended(&effects).clone();
    assert_eq!(names(&outcome.updates), [&device(0), &device(1)]);
    assert_eq!(outcome.stragglers, [device(2), device(3)]);
    assert_eq!(outcome.missing, []);

    // The next round invites the others only, from the new parameters.
    let invited = offers(&found(&mut training, 6, 2, 4));
    let expected = [device(0), device(1)].map(|device| (2, device, blob(1)));
    assert_eq!(BTreeSet::from_iter(invited), BTreeSet::from(expected));
    assert_eq!(training.round().unwrap().status().updates, 1, "one update was there before");
    accepted(&mut training, 2, &device(0));
    accepted(&mut training, 2, &device(1));
    assert_eq!((awaited(&training, 1), awaited(&training, 2)), (vec![3], vec![0, 1]));
    let effects = give(&mut training, 7, 1, &device(3));
    assert!(awaited(&training, 1).is_empty(), "the last one came");
    let Some(Effect::Round { effect: RoundEffect::Aggregate { updates, stale }, .. }) =
        effects.last()
    else {
        panic!("{effects:?}")
    };
    assert_eq!(names(updates), [&device(2), &device(3)]);
    let again = RoundEvent::UpdateReceived {
        device: device(2),
        attempt: Attempt(1),
        update: UpdateReport { parameters: blob(77), ..update(&device(2), 1) },
    };
    let unchanged = training.clone();
    assert_eq!(training.step(Millis(7), &of(1, again)), [], "it is being combined");
    assert_eq!(training, unchanged);
    let bases: Vec<_> = stale.iter().map(|(device, base)| (device, base.round.0)).collect();
    assert_eq!(bases, [(&device(2), 1), (&device(3), 1)]);
    assert!(stale.iter().all(|(_, base)| base.parameters == blob(0) && base.version == 0));

    // What comes again does not count again.
    let (device, attempt) = (device(2), Attempt(1));
    let event = RoundEvent::UpdateReceived { update: update(&device, 1), device, attempt };
    assert_eq!(training.step(Millis(8), &of(1, event)), []);
    let effects = aggregated(&mut training, 9, 2);
    let outcome = ended(&effects);
    assert_eq!(outcome.stragglers, devices(2));
    assert_eq!(outcome.moved.unwrap().down, Bytes(2), "what was offered to those left behind too");
}

/// Six devices, of which four are at work; the updates of two fill the buffer.
#[test]
fn whoever_delivers_into_a_buffer_is_replaced_at_once() {
    for (strategy, replaced) in [("fedbuff", true), ("fedavg", false)] {
        let (mut training, _) = begin(spec(strategy, Some(2), 1, 9));
        let invited = offers(&found(&mut training, 1, 1, 6));
        assert_eq!(invited.len(), 4, "{strategy}");
        let at_work: BTreeSet<DeviceId> = invited.iter().map(|offer| offer.1.clone()).collect();
        let [first, second] = [0, 1].map(|at: usize| invited[at].1.clone());
        for device in &at_work {
            accepted(&mut training, 1, device);
        }
        let next = offers(&give(&mut training, 2, 1, &first));
        assert_eq!(next.len(), usize::from(replaced), "{strategy}");
        for (_, device, _) in &next {
            accepted(&mut training, 1, device);
        }
        give(&mut training, 3, 1, &second);
        let outcome = ended(&aggregated(&mut training, 4, 1)).clone();
        let mut both = [&first, &second];
        both.sort();
        assert_eq!(names(&outcome.updates), both, "{strategy}");
        assert_eq!(outcome.stragglers.len(), 2 + next.len(), "{strategy}");
        // The next version's round fills up to four again, with whoever is not at work.
        let more = offers(&found(&mut training, 5, 2, 6));
        assert_eq!(more.len(), 4 - outcome.stragglers.len(), "{strategy}");
        assert!(more.iter().all(|offer| !outcome.stragglers.contains(&offer.1)), "{strategy}");
        for (round, device, parameters) in next {
            assert_eq!((round, parameters), (1, blob(0)));
            assert!(!at_work.contains(&device));
            give(&mut training, 6, 1, &device);
            assert_eq!(training.round().unwrap().status().updates, 1, "it counts for the next");
        }
    }
}

#[test]
fn nobody_is_blamed_for_updates_that_cannot_be_combined() {
    let (mut training, _) = begin(spec("fedbuff", Some(2), 1, 9));
    found(&mut training, 1, 1, 4);
    for number in 0..4 {
        accepted(&mut training, 1, &device(number));
    }
    give(&mut training, 2, 1, &device(0));
    give(&mut training, 3, 1, &device(1));
    aggregated(&mut training, 5, 1);
    found(&mut training, 6, 2, 4);
    give(&mut training, 7, 1, &device(2));
    give(&mut training, 8, 2, &device(0));
    let failure = Failure::new(FailureCode::InvalidUpdate, "one of them is of another shape");
    let event = RoundEvent::AggregationFailed { failure };
    let effects = training.step(Millis(9), &of(2, event));
    let outcome = ended(&effects);
    assert_eq!(outcome.refusals().count(), 0, "{:?}", outcome.missing);
    let unused = outcome.missing.iter().filter(|(_, why)| why.message.contains("another shape"));
    let unused: Vec<_> = unused.map(|(device, why)| (device, why.code)).collect();
    let counted = [0, 1, 2].map(device);
    assert!(unused.iter().all(|(device, _)| counted.contains(device)), "{unused:?}");
    assert!(unused.contains(&(&counted[0], FailureCode::Cancelled)), "{unused:?}");
    assert!(unused.contains(&(&counted[2], FailureCode::Cancelled)), "{unused:?}");
}

/// Whoever is offered parameters gets what travels in their place, a straggler of an earlier round
/// too.
#[test]
fn what_travels_is_known_for_as_long_as_parameters_are_offered() {
    let start = Start { encoded: Some(blob(100)), ..Start::of(blob(0)) };
    let mut spec = spec("fedbuff", Some(1), 1, 9);
    spec.evaluate = crate::spec::Evaluate::Devices;
    let (mut training, _) = Training::begin_with(Millis(0), spec, Millis(1_000_000), start);
    found(&mut training, 1, 1, 2);
    accepted(&mut training, 1, &device(0));
    accepted(&mut training, 1, &device(1));
    assert_eq!(training.encoded_of(&blob(0)), Some(&blob(100)));
    give(&mut training, 2, 1, &device(0));
    let aggregate = Aggregate { encoded: Some(blob(101)), ..Aggregate::of(blob(1)) };
    let judged = training.step(Millis(3), &of(1, RoundEvent::Aggregated(aggregate)));
    assert_eq!(offers(&judged), [(1, device(0), blob(1))]);
    assert_eq!(training.encoded_of(&blob(1)), Some(&blob(101)));
    assert_eq!(training.encoded_of(&blob(0)), Some(&blob(100)));

    let effects = training.step(Millis(4), &answer(&judged[0], 2, 0.5).unwrap());
    let outcome = ended(&effects);
    assert_eq!((outcome.parameters.clone(), outcome.encoded.clone()), (blob(1), Some(blob(101))));
    assert_eq!(outcome.moved.unwrap().down, Bytes(2 * 100 + 101));
    assert_eq!(training.encoded(), Some(&blob(101)));
    assert_eq!(training.encoded_of(&blob(0)), Some(&blob(100)), "a straggler may ask again");
    assert!(training.stragglers().blobs().any(|needed| *needed == blob(100)));
    training.step(Millis(5), &Event::CancelRequested);
    assert_eq!(training.encoded_of(&blob(0)), None);
}

#[test]
fn a_device_that_is_too_late_is_told_and_missing() {
    let (mut training, _) = begin(spec("fedavg", Some(1), 1, 9));
    found(&mut training, 1, 1, 2);
    accepted(&mut training, 1, &device(0));
    accepted(&mut training, 1, &device(1));
    let mut told = Vec::new();
    for round in 1..=4 {
        if round > 1 {
            found(&mut training, 1, round, 2);
            accepted(&mut training, round, &device(0));
        }
        give(&mut training, 2, round, &device(0));
        let effects = aggregated(&mut training, 3, round);
        let (late, missing) = (&ended(&effects).stragglers, &ended(&effects).missing);
        if round <= 3 {
            assert_eq!((&late[..], &missing[..]), (&[device(1)][..], &[][..]), "round {round}");
        } else {
            assert_eq!(late, &[]);
            let (missing, failure) = &missing[0];
            assert_eq!(*missing, device(1));
            assert!(failure.message.contains("from round 1, 3 versions ago"), "{failure:?}");
        }
        told.extend(effects.into_iter().filter_map(|effect| {
            let Effect::Round { round: of, effect: RoundEffect::Withdraw { device, .. } } = effect
            else {
                return None;
            };
            Some((round, of.0, device))
        }));
    }
    assert_eq!(told, [(3, 1, device(1))], "when the fourth round begins, of its first task");
}

#[test]
fn updates_that_did_not_make_a_quorum_count_in_the_next_round() {
    let (mut training, _) = begin(spec("fedavg", None, 3, 9));
    found(&mut training, 1, 1, 3);
    for number in 0..3 {
        accepted(&mut training, 1, &device(number));
    }
    give(&mut training, 2, 1, &device(0));
    let deadline = training.wake_at().unwrap();
    let effects = training.step(deadline, &Event::Tick);
    let outcome = ended(&effects);
    assert!(outcome.failure.as_ref().unwrap().message.contains("quorum"));
    assert_eq!(outcome.stragglers, devices(3));
    // One answers between the rounds.
    give(&mut training, deadline.0 + 1, 1, &device(1));
    let rested = training.wake_at().unwrap();
    training.step(rested, &Event::Tick);
    assert_eq!(offers(&found(&mut training, rested.0, 2, 3)), [], "all of them are at work");
    give(&mut training, rested.0, 1, &device(2));
    let effects = aggregated(&mut training, rested.0, 2);
    assert_eq!(names(&ended(&effects).updates), [&device(0), &device(1), &device(2)]);
}

#[test]
fn who_is_at_work_when_the_job_ends_is_told() {
    let (mut training, _) = begin(spec("fedbuff", Some(1), 1, 1));
    found(&mut training, 1, 1, 2);
    accepted(&mut training, 1, &device(0));
    accepted(&mut training, 1, &device(1));
    give(&mut training, 2, 1, &device(0));
    let effects = aggregated(&mut training, 3, 1);
    assert!(matches!(effects.last(), Some(Effect::Register { .. })));
    let told = effects.iter().any(|effect| {
        matches!(effect, Effect::Round { effect: RoundEffect::Withdraw { device: it, .. }, .. }
            if *it == device(1))
    });
    assert!(told, "{effects:?}");
    assert!(training.stragglers().is_empty());
}

/// What may happen to a device.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// It accepts the newest task of its.
    Accept,
    /// It reports the update of that task, perhaps again.
    Report,
    Fail,
    Lose,
    Return,
    /// The broker answers what it owes, then time passes.
    Wait,
}

fn op() -> impl proptest::strategy::Strategy<Value = (usize, Op)> {
    let op = prop_oneof![
        3 => Just(Op::Accept),
        3 => Just(Op::Report),
        1 => Just(Op::Fail),
        1 => Just(Op::Lose),
        1 => Just(Op::Return),
        4 => Just(Op::Wait),
    ];
    (0..4_usize, op)
}

/// What a device says of its newest task; nothing when it is time that passes.
fn happened(
    training: &Training,
    tasks: &BTreeMap<DeviceId, (u32, Attempt)>,
    device: DeviceId,
    op: Op,
) -> Option<Event> {
    let (round, attempt) = tasks.get(&device).copied().unwrap_or((1, Attempt(1)));
    let purpose = Purpose::Train;
    let update = update(&device, round);
    let at_work = training.number().0;
    Some(match op {
        Op::Accept => of(round, RoundEvent::Accepted { device, purpose, attempt }),
        Op::Report => of(round, RoundEvent::UpdateReceived { device, attempt, update }),
        Op::Fail => {
            let failure = Failure::new(FailureCode::DiskFull, "");
            of(round, RoundEvent::TaskFailed { device, purpose, attempt, failure })
        }
        Op::Lose => of(at_work, RoundEvent::DeviceLost { device }),
        Op::Return => of(at_work, RoundEvent::DeviceReturned { device }),
        Op::Wait => return None,
    })
}

proptest! {
    /// Each update counts once at most, each device has one task at a time, and whoever was at
    /// work is accounted for.
    #[test]
    fn nobody_counts_twice_or_is_forgotten(
        fedbuff in any::<bool>(),
        buffer in prop::option::of(1..4_u32),
        ops in prop::collection::vec(op(), 0..150),
    ) {
        let strategy = if fedbuff { "fedbuff:staleness_max=1" } else { "fedavg" };
        let buffer = if fedbuff { buffer.or(Some(2)) } else { buffer };
        let mut spec = spec(strategy, buffer, 1, 6);
        spec.participation.failed_rounds_max = 100;
        let (mut training, effects) = begin(spec);
        let mut tasks: BTreeMap<DeviceId, (u32, Attempt)> = BTreeMap::new();
        let mut counted: BTreeSet<BlobRef> = BTreeSet::new();
        let mut before: Vec<DeviceId> = Vec::new();
        let mut all = effects;
        let mut now = 1;
        for (number, op) in ops {
            if let Some(event) = happened(&training, &tasks, device(number), op) {
                all.extend(training.step(Millis(now), &event));
            } else {
                now += 700;
                all.extend(training.step(Millis(now), &Event::Tick));
                let owed = training.pending_effects();
                let owed = owed.iter().filter(|effect| offers(std::slice::from_ref(*effect)).is_empty());
                for event in owed.filter_map(|effect| answer(effect, 4, 0.5)) {
                    all.extend(training.step(Millis(now), &event));
                }
            }
            for effect in all.drain(..) {
                if let Effect::Round { round, effect: RoundEffect::Offer { device, attempt, .. } } = effect {
                    let task = tasks.insert(device.clone(), (round.0, attempt));
                    prop_assert!(task.is_none_or(|(of, _)| of <= round.0), "{} goes back", device);
                } else if let Effect::PublishRound(outcome) = effect {
                    for (device, update) in &outcome.updates {
                        prop_assert!(counted.insert(update.parameters.clone()), "{} twice", device);
                    }
                    let accounted: Vec<&DeviceId> = outcome.updates.iter().map(|(device, _)| device)
                        .chain(outcome.missing.iter().map(|(device, _)| device))
                        .chain(&outcome.stragglers).collect();
                    let once: BTreeSet<&&DeviceId> = accounted.iter().collect();
                    prop_assert_eq!(once.len(), accounted.len());
                    prop_assert!(before.iter().all(|device| once.contains(&device)));
                    before.clone_from(&outcome.stragglers);
                }
            }
            let read: Training =
                serde_json::from_value(serde_json::to_value(&training).unwrap()).unwrap();
            prop_assert_eq!(&read, &training);
        }
    }
}
