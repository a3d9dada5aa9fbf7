//! Rounds whose updates are masked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const STAGES: [Purpose; 3] = [Purpose::Share, Purpose::Mask, Purpose::Unmask];

fn masked_plan(participation: Participation) -> Plan {
    Plan { masked: Some(Millis(5000)), evaluate: Evaluate::None, ..plan(participation) }
}

/// A round after collecting: everyone has sent keys.
fn exchanging(quorum: u32, count: usize) -> (Round, Vec<Effect>) {
    let (mut round, _) = Round::begin(Millis(0), masked_plan(all_of(quorum)));
    round.step(Millis(0), &Event::DevicesFound { devices: devices(count) });
    let mut effects = Vec::new();
    for (index, device) in devices(count).iter().enumerate() {
        effects = give(&mut round, 10, device, 1, index as u64);
    }
    (round, effects)
}

#[test]
fn devices_that_find_no_room_are_named() {
    for (masked, room, with) in [(true, 250, " with secure aggregation"), (false, 1000, "")] {
        let plan = if masked { masked_plan(all_of(3)) } else { plan(all_of(3)) };
        let (mut round, _) = Round::begin(Millis(0), plan);
        let offers = round.step(Millis(0), &Event::DevicesFound { devices: devices(room + 50) });
        assert_eq!(offers.len(), room);
        assert_eq!((round.status().target, round.invites_all()), (room, false));
        let invited: BTreeSet<DeviceId> = round.eligible().cloned().collect();
        let effects = round.step(Millis(1), &cancelled());
        let outcome = outcome(&effects);
        assert_eq!((outcome.invited(), outcome.missing.len()), (room, room + 50));
        assert!(outcome.missing.is_sorted_by(|one, two| one.0 < two.0));
        for (device, failure) in &outcome.missing {
            let has_room = failure.code != FailureCode::NoRoom;
            assert_eq!(invited.contains(device), has_room, "{device}: {failure:?}");
            let there = room + 50;
            let why = format!("a round{with} has room for {room} devices, {there} were there");
            assert!(has_room || failure.message == why, "{failure:?}");
        }
    }
}

#[test]
fn more_than_an_outcome_has_room_for_are_counted() {
    for plan in [masked_plan(all_of(3)), plan(all_of(3))] {
        let (mut round, _) = Round::begin(Millis(0), plan);
        round.step(Millis(0), &Event::DevicesFound { devices: devices(9000) });
        let effects = round.step(Millis(1), &cancelled());
        let outcome = outcome(&effects);
        assert_eq!(outcome.missing.len(), 1250);
        let no_room = outcome.missing.iter().find(|(_, why)| why.code == FailureCode::NoRoom);
        assert!(no_room.unwrap().1.message.ends_with("9000 were there"));
    }
}

#[test]
fn who_is_not_needed_is_not_named() {
    let some = Participation { devices: Some(200), ..all_of(3) };
    let (mut round, _) = Round::begin(Millis(0), masked_plan(some));
    let offers = round.step(Millis(0), &Event::DevicesFound { devices: devices(400) });
    assert_eq!((offers.len(), round.eligible().count()), (200, 250));
    let effects = round.step(Millis(1), &cancelled());
    assert_eq!(outcome(&effects).missing.len(), 200);
}

/// What a device says at a stage, told apart by both.
fn message(device: &DeviceId, purpose: Purpose) -> BlobRef {
    let stage = STAGES.iter().position(|stage| *stage == purpose).unwrap() as u64;
    let number = device.as_str()[1..].parse::<u64>().unwrap();
    blob(1000 * (stage + 1) + number)
}

fn said(device: &DeviceId, purpose: Purpose, attempt: u32) -> Event {
    Event::MessageReceived {
        device: device.clone(),
        purpose,
        attempt: Attempt(attempt),
        message: message(device, purpose),
    }
}

fn heard(device: &DeviceId, purpose: Purpose, refused: Option<Failure>) -> Event {
    let message = message(device, purpose);
    Event::MessageChecked { device: device.clone(), purpose, message, refused }
}

/// Delivers and checks what a device says; the effects of the check.
fn say(round: &mut Round, now: u64, device: &DeviceId, purpose: Purpose) -> Vec<Effect> {
    let effects = round.step(Millis(now), &said(device, purpose, 1));
    assert!(matches!(&effects[..], [Effect::CheckMessage { .. }]), "{effects:?}");
    assert_eq!(round.step(Millis(now), &said(device, purpose, 1)), []);
    round.step(Millis(now), &heard(device, purpose, None))
}

fn offered(effects: &[Effect], stage: Purpose) -> Vec<DeviceId> {
    let mut offered = Vec::new();
    for effect in effects {
        if let Effect::Offer { device, purpose, attempt: Attempt(1), .. } = effect
            && *purpose == stage
        {
            offered.push(device.clone());
        }
    }
    offered
}

#[test]
fn stages_follow_one_another_and_who_drops_out_is_named() {
    let (mut round, effects) = exchanging(3, 6);
    let all = devices(6);
    assert_eq!(offered(&effects, Purpose::Share), all);
    round.asked(Bytes(200));
    assert_eq!(round.status().phase, "sharing");
    assert_eq!(round.pending_effects(), effects);
    // One is lost, one fails: four go on.
    round.step(Millis(20), &Event::DeviceLost { device: all[0].clone() });
    for device in &all[2..] {
        assert_eq!(say(&mut round, 20, device, Purpose::Share), []);
    }
    let failure = failed(&all[1], Purpose::Share, 1, FailureCode::InvalidInput);
    let effects = round.step(Millis(30), &failure);
    assert_eq!(offered(&effects, Purpose::Mask), all[2..]);
    assert_eq!(round.status().phase, "masking");
    round.asked(Bytes(300));
    // One more does not answer in time.
    for device in &all[3..] {
        assert_eq!(say(&mut round, 40, device, Purpose::Mask), []);
    }
    let effects = round.step(Millis(5030), &Event::Tick);
    assert!(matches!(&effects[0], Effect::Withdraw { device, purpose: Purpose::Mask, .. }
        if *device == all[2]));
    assert_eq!(offered(&effects, Purpose::Unmask), all[3..]);
    assert_eq!(round.step(Millis(5031), &said(&all[2], Purpose::Mask, 1)), []);
    // Who unmasks does not matter for who counts.
    assert_eq!(say(&mut round, 5040, &all[4], Purpose::Unmask), []);
    assert_eq!(say(&mut round, 5040, &all[5], Purpose::Unmask), []);
    let effects = round.step(Millis(5050), &Event::DeviceLost { device: all[3].clone() });
    let [Effect::Unmask { updates, exchange }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(round.pending_effects(), effects);
    let of = |list: &[(DeviceId, BlobRef)]| -> Vec<DeviceId> {
        list.iter().map(|(device, _)| device.clone()).collect()
    };
    let counted: Vec<DeviceId> = updates.iter().map(|(device, _)| device.clone()).collect();
    assert_eq!((counted, of(&exchange.masked)), (all[3..].to_vec(), all[3..].to_vec()));
    assert_eq!((of(&exchange.keys), of(&exchange.shares)), (all.clone(), all[2..].to_vec()));
    assert_eq!(of(&exchange.unmaskings), all[4..]);
    assert_eq!(exchange.masked[0].1, message(&all[3], Purpose::Mask));
    let effects = round.step(Millis(5060), &Event::Aggregated(Aggregate::of(blob(9))));
    let outcome = outcome(&effects);
    assert_eq!((&outcome.parameters, outcome.updates.len()), (&blob(9), 3));
    // Keys of 0 to 5 bytes, whoever drops out; what was said in time; parameters of 0 bytes.
    let said = [15, 4 * 1000 + 14, 3 * 2000 + 12, 2 * 3000 + 9];
    assert_eq!(outcome.moved, Some(Moved { up: Bytes(said.iter().sum()), down: Bytes(500) }));
    assert_eq!([3, 5].map(|index| outcome.sent(&all[index]).0), [3009, 6020]);
    for (index, code) in [
        (0, FailureCode::DeviceLost),
        (1, FailureCode::InvalidInput),
        (2, FailureCode::DeadlineExceeded),
    ] {
        let failure = reason(outcome, &all[index]);
        assert_eq!(failure.code, code);
        assert!(failure.message.contains("dropped out of the secure aggregation"), "{failure:?}");
    }
}

#[test]
fn below_the_quorum_the_round_fails_at_once() {
    let (mut round, _) = exchanging(4, 5);
    let all = devices(5);
    round.step(Millis(20), &failed(&all[0], Purpose::Share, 1, FailureCode::InvalidInput));
    let effects =
        round.step(Millis(20), &failed(&all[1], Purpose::Share, 1, FailureCode::InvalidInput));
    let outcome = outcome(&effects);
    let failure = outcome.failure.as_ref().unwrap();
    assert_eq!(failure.code, FailureCode::NoQuorum);
    assert_eq!(failure.message, "0 of 5 devices answered to share, quorum is 4");
    assert_eq!((outcome.missing.len(), &outcome.parameters), (5, &blob(0)));
    let codes = all.iter().map(|device| reason(outcome, device).code).collect::<Vec<_>>();
    let own = [FailureCode::InvalidInput; 2];
    assert_eq!(codes, [&own[..], &[FailureCode::NoQuorum; 3]].concat());
    // Those who are at work on it are told.
    let told = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Withdraw { purpose: Purpose::Share, .. }));
    assert_eq!(told.count(), 3);
}

#[test]
fn a_device_that_comes_back_is_asked_again() {
    let (mut round, _) = exchanging(3, 4);
    let all = devices(4);
    for device in &all {
        say(&mut round, 20, device, Purpose::Share);
    }
    for device in &all[1..] {
        say(&mut round, 30, device, Purpose::Mask);
    }
    // It would go on without it, if it did not come back within the same breath.
    let (mut other, returned) = (round.clone(), Event::DeviceReturned { device: all[0].clone() });
    let effects = other.step(Millis(40), &Event::DeviceLost { device: all[0].clone() });
    assert_eq!(offered(&effects, Purpose::Unmask), all[1..]);
    assert_eq!(other.step(Millis(41), &returned), []);
    let busy = failed(&all[0], Purpose::Mask, 1, FailureCode::BlobUnavailable);
    assert_eq!(round.step(Millis(40), &busy), []);
    let effects = round.step(Millis(1040), &Event::Tick);
    assert!(matches!(&effects[..], [Effect::Offer { attempt: Attempt(2), .. }]), "{effects:?}");
    round.step(Millis(1041), &said(&all[0], Purpose::Mask, 2));
    let effects = round.step(Millis(1041), &heard(&all[0], Purpose::Mask, None));
    assert_eq!(offered(&effects, Purpose::Unmask), all);
}

#[test]
fn a_stage_that_is_impossible_fails_the_round() {
    let (mut round, _) = exchanging(3, 4);
    let failure = Failure::new(FailureCode::InvalidUpdate, "a key is there twice");
    let effects = round.step(Millis(20), &Event::AggregationFailed { failure });
    assert_eq!(outcome(&effects).failure.as_ref().unwrap().message, "a key is there twice");
}

#[test]
fn nobody_is_blamed_for_a_sum_that_cannot_be_unmasked() {
    let (mut round, _) = exchanging(3, 4);
    let failure = Failure::new(FailureCode::InvalidUpdate, "one of the shares is forged");
    let effects = round.step(Millis(20), &Event::AggregationFailed { failure: failure.clone() });
    let outcome = outcome(&effects);
    assert_eq!(outcome.failure, Some(failure));
    assert_eq!(outcome.refusals().count(), 0, "{:?}", outcome.missing);
    let why = reason(outcome, &devices(4)[0]);
    assert_eq!(why.message, "its update was not used: one of the shares is forged");
}

/// What may happen at a stage.
#[derive(Debug, Clone)]
enum Op {
    Say(usize, usize, u32),
    Check(usize, usize, bool),
    Fail(usize, usize, u32, bool),
    Lost(usize),
    Returned(usize),
    Accepted(usize, usize, u32),
    Tick,
}

const COUNT: usize = 6;

fn op() -> impl Strategy<Value = Op> {
    let (device, stage, attempt) = (0..COUNT, 0..3_usize, 1..3_u32);
    prop_oneof![
        9 => (device.clone(), stage.clone(), attempt.clone()).prop_map(|(d, s, a)| Op::Say(d, s, a)),
        9 => (device.clone(), stage.clone(), prop::bool::weighted(0.9))
            .prop_map(|(d, s, good)| Op::Check(d, s, good)),
        1 => (device.clone(), stage.clone(), attempt.clone(), any::<bool>())
            .prop_map(|(d, s, a, again)| Op::Fail(d, s, a, again)),
        1 => device.clone().prop_map(Op::Lost),
        1 => device.clone().prop_map(Op::Returned),
        1 => (device, stage, attempt).prop_map(|(d, s, a)| Op::Accepted(d, s, a)),
        2 => Just(Op::Tick),
    ]
}

fn event(op: &Op) -> Event {
    let named = |index: usize| device(&format!("d{index}"));
    match *op {
        Op::Say(d, s, attempt) => said(&named(d), STAGES[s], attempt),
        Op::Check(d, s, good) => {
            let refused = Failure::new(FailureCode::InvalidUpdate, "no");
            heard(&named(d), STAGES[s], (!good).then_some(refused))
        }
        Op::Fail(d, s, attempt, again) => {
            let code = if again { FailureCode::Busy } else { FailureCode::Diverged };
            failed(&named(d), STAGES[s], attempt, code)
        }
        Op::Lost(d) => Event::DeviceLost { device: named(d) },
        Op::Returned(d) => Event::DeviceReturned { device: named(d) },
        Op::Accepted(d, s, attempt) => {
            let attempt = Attempt(attempt);
            Event::Accepted { device: named(d), purpose: STAGES[s], attempt }
        }
        Op::Tick => Event::Tick,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens: a message counts once and only after its check, each stage asks those
    /// who answered the one before, the state survives storage, repetition changes nothing, and
    /// the round ends by its deadlines.
    #[test]
    fn stages_lose_nobody_and_count_nobody_twice(
        quorum in 3..5_u32,
        ops in prop::collection::vec((0..900_u64, op()), 0..80),
    ) {
        let (mut round, effects) = exchanging(quorum, COUNT);
        let mut asked: BTreeMap<Purpose, BTreeSet<DeviceId>> = BTreeMap::new();
        let mut good: BTreeSet<(Purpose, DeviceId)> = BTreeSet::new();
        let mut open: BTreeSet<(Purpose, DeviceId)> = BTreeSet::new();
        let mut all = effects;
        let mut now = 10;
        let mut next: Vec<Event> = Vec::new();
        let mut ops = ops.into_iter();
        for _ in 0..400 {
            for effect in all.drain(..) {
                match effect {
                    Effect::Offer { device, purpose, .. } => {
                        asked.entry(purpose).or_default().insert(device);
                    }
                    Effect::CheckMessage { device, purpose, .. } => {
                        open.insert((purpose, device));
                    }
                    Effect::Unmask { updates, exchange } => {
                        let counted: Vec<_> = updates.iter().map(|(device, _)| device).collect();
                        let masked: Vec<_> = exchange.masked.iter().map(|(it, _)| it).collect();
                        prop_assert_eq!(&counted, &masked);
                        prop_assert!(counted.len() >= quorum as usize);
                        for (stage, said) in STAGES.into_iter().zip([
                            &exchange.shares, &exchange.masked, &exchange.unmaskings,
                        ]) {
                            prop_assert!(said.is_sorted_by(|one, two| one.0 < two.0));
                            for (device, blob) in said {
                                prop_assert!(good.contains(&(stage, device.clone())));
                                prop_assert_eq!(blob, &message(device, stage));
                            }
                        }
                        next.push(Event::Aggregated(Aggregate::of(blob(99))));
                    }
                    Effect::End(outcome) => {
                        let names = outcome.updates.len() + outcome.missing.len();
                        prop_assert_eq!(names, COUNT);
                        return Ok(());
                    }
                    Effect::Withdraw { .. } => {}
                    Effect::FindDevices
                    | Effect::CheckUpdate { .. }
                    | Effect::Evaluate { .. }
                    | Effect::Earlier { .. }
                    | Effect::Aggregate { .. } => prop_assert!(false, "keys are there"),
                }
            }
            let event = match (next.pop(), ops.next()) {
                (Some(event), _) => event,
                (None, Some((pause, op))) => {
                    now += pause / 4;
                    event(&op)
                }
                // Then the shell answers and time passes.
                (None, None) => {
                    let owed = round.pending_effects().into_iter().find_map(|effect| match effect {
                        Effect::CheckMessage { device, purpose, .. } => {
                            Some(heard(&device, purpose, None))
                        }
                        Effect::Unmask { .. } => Some(Event::Aggregated(Aggregate::of(blob(99)))),
                        Effect::FindDevices
                        | Effect::Offer { .. }
                        | Effect::Withdraw { .. }
                        | Effect::CheckUpdate { .. }
                        | Effect::Aggregate { .. }
                        | Effect::Evaluate { .. }
                        | Effect::Earlier { .. }
                        | Effect::End(_) => None,
                    });
                    owed.unwrap_or_else(|| {
                        now = now.max(round.wake_at().unwrap().0);
                        Event::Tick
                    })
                }
            };
            if let Event::MessageChecked { device, purpose, refused: None, .. } = &event
                && open.contains(&(*purpose, device.clone()))
            {
                good.insert((*purpose, device.clone()));
            }
            all = round.step(Millis(now), &event);
            let after = round.clone();
            prop_assert_eq!(round.step(Millis(now), &event), []);
            prop_assert_eq!(&round, &after);
            let stored = serde_json::to_string(&round).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Round>(&stored).unwrap(), &round);
        }
        prop_assert!(false, "the round does not end: {:?}", round);
    }
}
