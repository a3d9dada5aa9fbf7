use super::*;
use crate::id::{Bytes, Digest};
use crate::report::FailureCode;
use crate::spec::{Evaluate, Participation, Selection};

mod busy;
mod flower;
mod masked;
mod model;
mod properties;
mod ranges;
mod reasons;
mod remade;
mod sampling;

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

fn devices(count: usize) -> Vec<DeviceId> {
    (0..count).map(|index| device(&format!("d{index}"))).collect()
}

fn blob(number: u64) -> BlobRef {
    let digest = Digest::parse(&format!("sha256:{number:064x}")).unwrap();
    BlobRef::by_digest(digest, Bytes(number))
}

fn update(number: u64) -> UpdateReport {
    UpdateReport {
        parameters: blob(number),
        examples: 10,
        loss: 0.5,
        accuracy: 0.75,
        steps: 3,
        duration_ms: Millis(20),
        engine: "native".to_owned(),
        initial_loss: None,
        control_change: None,
        held: false,
        crc32: None,
        control_anew: false,
    }
}

fn judgement(accuracy: f64) -> EvaluationReport {
    EvaluationReport { examples: 10, loss: 0.5, accuracy, duration_ms: Millis(2) }
}

fn plan(participation: Participation) -> Plan {
    Plan {
        round: RoundNumber(1),
        parameters: blob(0),
        encoded: None,
        participation,
        evaluate: Evaluate::Devices,
        seed: 7,
        sampling: None,
        hoped: None,
        masked: None,
        versions: None,
    }
}

fn all_of(quorum: u32) -> Participation {
    Participation { quorum, deadline_ms: Millis(60_000), ..Participation::default() }
}

/// A round that collects from these devices, and whom it invited.
fn collecting(participation: Participation, count: usize) -> (Round, Vec<DeviceId>) {
    let (mut round, effects) = Round::begin(Millis(0), plan(participation));
    assert_eq!(effects, [Effect::FindDevices]);
    let found = Event::DevicesFound { devices: devices(count) };
    let mut invited: Vec<DeviceId> = round
        .step(Millis(0), &found)
        .into_iter()
        .map(|effect| {
            let Effect::Offer { device, purpose, attempt, .. } = effect else {
                panic!("{effect:?}")
            };
            assert_eq!((purpose, attempt), (Purpose::Train, Attempt(1)));
            device
        })
        .collect();
    assert_eq!(round.step(Millis(0), &found), []);
    invited.sort();
    (round, invited)
}

fn received(device: &DeviceId, attempt: u32, number: u64) -> Event {
    let (device, attempt) = (device.clone(), Attempt(attempt));
    Event::UpdateReceived { device, attempt, update: update(number) }
}

fn checked(device: &DeviceId, number: u64) -> Event {
    Event::UpdateChecked { device: device.clone(), parameters: blob(number), refused: None }
}

fn cancelled() -> Event {
    Event::CancelRequested { reason: "stopped on request".to_owned() }
}

fn failed(device: &DeviceId, purpose: Purpose, attempt: u32, code: FailureCode) -> Event {
    let (device, attempt) = (device.clone(), Attempt(attempt));
    Event::TaskFailed { device, purpose, attempt, failure: Failure::new(code, "because") }
}

/// Delivers and checks an update; the effects of the check.
fn give(round: &mut Round, now: u64, device: &DeviceId, attempt: u32, number: u64) -> Vec<Effect> {
    let effects = round.step(Millis(now), &received(device, attempt, number));
    assert!(matches!(&effects[..], [Effect::CheckUpdate { .. }]), "{effects:?}");
    round.step(Millis(now), &checked(device, number))
}

fn outcome(effects: &[Effect]) -> &Outcome {
    match effects.last() {
        Some(Effect::End(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

fn reason<'a>(outcome: &'a Outcome, device: &DeviceId) -> &'a Failure {
    &outcome.missing.iter().find(|(missing, _)| missing == device).unwrap().1
}

#[test]
fn hours_that_will_come_are_waited_for() {
    let selection = Selection::Windows { label: "available".to_owned() };
    let participation = Participation { selection, ..all_of(1) };
    let (mut round, _) = Round::begin(Millis(0), plan(participation));
    let day = 24 * 3_600_000;
    let mut asked = 0;
    while let Some(now) = round.wake_at().filter(|now| now.0 < day) {
        assert_eq!(round.step(now, &Event::Tick), [Effect::FindDevices]);
        assert_eq!(round.step(now, &Event::DevicesFound { devices: Vec::new() }), []);
        asked += 1;
    }
    assert_eq!((asked, round.status().deadline), (day / 30_000 - 1, None));
    let offers = round.step(Millis(day), &Event::DevicesFound { devices: devices(2) });
    assert_eq!(offers.len(), 2);
    assert_eq!(round.status().deadline, Some(Millis(day + 60_000)));
}

#[test]
fn devices_that_are_remembered_are_invited_as_they_are_given() {
    let selection = Selection::RoundRobin;
    let participation = Participation { devices: Some(2), selection, ..all_of(1) };
    let (mut round, _) = Round::begin(Millis(0), plan(participation));
    let given: Vec<DeviceId> = devices(5).into_iter().rev().collect();
    let twice = [&given[..3], &given[..]].concat();
    let offers = round.step(Millis(0), &Event::DevicesFound { devices: twice });
    let invited: Vec<&DeviceId> = offers
        .iter()
        .filter_map(
            |effect| if let Effect::Offer { device, .. } = effect { Some(device) } else { None },
        )
        .collect();
    assert_eq!(invited, [&given[0], &given[1]]);
}

#[test]
fn a_round_from_beginning_to_end() {
    let (mut round, invited) = collecting(all_of(2), 2);
    assert_eq!(give(&mut round, 10, &invited[1], 1, 2), []);
    let effects = give(&mut round, 20, &invited[0], 1, 1);
    let updates = vec![(invited[0].clone(), update(1)), (invited[1].clone(), update(2))];
    assert_eq!(effects, [Effect::Aggregate { updates: updates.clone(), stale: Vec::new() }]);
    assert_eq!(round.pending_effects(), effects);
    let effects = round.step(Millis(30), &Event::Aggregated(Aggregate::of(blob(9))));
    assert_eq!(effects.len(), 2);
    assert_eq!(round.pending_effects(), effects);
    for (index, device) in invited.iter().enumerate() {
        assert!(matches!(&effects[index], Effect::Offer { device: to, parameters, .. }
            if to == device && *parameters == blob(9)));
    }
    let judged = |device: &DeviceId| Event::EvaluationReceived {
        device: device.clone(),
        attempt: Attempt(1),
        evaluation: judgement(0.5),
    };
    assert_eq!(round.step(Millis(40), &judged(&invited[0])), []);
    assert_eq!(round.step(Millis(40), &judged(&invited[0])), []);
    let effects = round.step(Millis(50), &judged(&invited[1]));
    let outcome = outcome(&effects);
    assert_eq!((&outcome.parameters, &outcome.failure), (&blob(9), &None));
    assert_eq!((&outcome.updates, outcome.evaluations.len()), (&updates, 2));
    assert_eq!((outcome.missing.len(), outcome.ended_at), (0, Millis(50)));
    assert_eq!(round.pending_effects(), effects);
    assert_eq!(round.step(Millis(60), &Event::Tick), []);
}

#[test]
fn too_few_devices_are_waited_for_and_then_named() {
    let (mut round, _) = Round::begin(Millis(0), plan(all_of(3)));
    let few = Event::DevicesFound { devices: [devices(2), devices(2)].concat() };
    assert_eq!(round.step(Millis(0), &few), []);
    for second in 1..60 {
        assert_eq!(round.wake_at(), Some(Millis(second * 1000)));
        assert_eq!(round.step(Millis(second * 1000), &Event::Tick), [Effect::FindDevices]);
    }
    let effects = round.step(Millis(60_000), &Event::Tick);
    let failure = outcome(&effects).failure.clone().unwrap();
    assert_eq!(failure.code, FailureCode::NoQuorum);
    assert_eq!(failure.message, "2 eligible devices online, quorum is 3");
}

#[test]
fn wanted_devices_are_hoped_for_until_the_quorum_has_to_do() {
    let participation = Participation { devices: Some(5), ..all_of(2) };
    let (mut round, _) = Round::begin(Millis(0), plan(participation));
    let found = Event::DevicesFound { devices: devices(3) };
    assert_eq!(round.step(Millis(5999), &found), []);
    assert_eq!(round.step(Millis(6000), &found).len(), 3);
}

#[test]
fn the_seed_decides_who_is_invited_and_the_order_does_not() {
    let participation = Participation { devices: Some(10), over_selection: 0.25, ..all_of(1) };
    let (_, invited) = collecting(participation.clone(), 100);
    assert_eq!(invited.len(), 13);
    let (mut round, _) = Round::begin(Millis(0), plan(participation.clone()));
    let mut reversed = devices(100);
    reversed.reverse();
    round.step(Millis(0), &Event::DevicesFound { devices: reversed });
    assert!(round.members.iter().map(|member| &member.device).eq(&invited));
    let other = Plan { seed: 8, ..plan(participation) };
    let (mut round, _) = Round::begin(Millis(0), other);
    round.step(Millis(0), &Event::DevicesFound { devices: devices(100) });
    assert!(!round.members.iter().map(|member| &member.device).eq(&invited));
}

#[test]
fn the_surplus_is_withdrawn_when_the_target_is_reached() {
    let participation = Participation { devices: Some(2), over_selection: 1.0, ..all_of(2) };
    let (mut round, invited) = collecting(participation, 9);
    assert_eq!(invited.len(), 4);
    round.step(Millis(1), &received(&invited[3], 1, 3));
    assert_eq!(give(&mut round, 1, &invited[0], 1, 1), []);
    let effects = give(&mut round, 2, &invited[1], 1, 2);
    // The fourth had answered and is only being checked: it need not stop.
    assert!(matches!(&effects[..], [Effect::Withdraw { device, .. }, Effect::Aggregate { .. }]
        if *device == invited[2]));
    assert_eq!(round.step(Millis(3), &checked(&invited[3], 3)), []);
    assert_eq!(round.step(Millis(9), &received(&invited[2], 1, 4)), []);
    round.step(Millis(9), &Event::Aggregated(Aggregate::of(blob(9))));
    let effects = round.step(Millis(40_000), &Event::Tick);
    let outcome = outcome(&effects);
    assert_eq!(outcome.updates.len(), 2);
    assert_eq!(reason(outcome, &invited[3]).code, FailureCode::Cancelled);
    assert_eq!(
        reason(outcome, &invited[2]).message,
        "not needed: 2 updates were there without it; an update came 7 ms after the close"
    );
}

#[test]
fn the_deadline_closes_with_a_reason_for_everyone() {
    let (mut round, invited) = collecting(all_of(1), 5);
    round.step(
        Millis(1),
        &Event::Accepted {
            device: invited[1].clone(),
            purpose: Purpose::Train,
            attempt: Attempt(1),
        },
    );
    round.step(Millis(1), &Event::DeviceLost { device: invited[2].clone() });
    round.step(Millis(1), &failed(&invited[3], Purpose::Train, 1, FailureCode::UnknownDataset));
    assert_eq!(give(&mut round, 2, &invited[0], 1, 1), []);
    assert_eq!(round.step(Millis(60_000), &received(&invited[4], 1, 5)).len(), 1);
    assert_eq!(round.step(Millis(60_001), &received(&invited[1], 1, 6)), []);
    // What arrived in time is still checked.
    let effects = round.step(Millis(60_002), &Event::Tick);
    assert!(matches!(&effects[..], [Effect::Withdraw { device, .. }] if *device == invited[1]));
    assert_eq!(round.wake_at(), None);
    let effects = round.step(Millis(60_003), &checked(&invited[4], 5));
    assert!(matches!(&effects[..], [Effect::Aggregate { updates, .. }] if updates.len() == 2));
    round.step(Millis(60_004), &Event::Aggregated(Aggregate::of(blob(9))));
    let effects = round.step(Millis(99_999), &Event::Tick);
    let outcome = outcome(&effects);
    let code = |index: usize| reason(outcome, &invited[index]).code;
    assert_eq!(code(1), FailureCode::DeadlineExceeded);
    assert!(reason(outcome, &invited[1]).message.contains("an update came 1 ms after"));
    assert_eq!((code(2), code(3)), (FailureCode::DeviceLost, FailureCode::UnknownDataset));
}

#[test]
fn a_lost_device_is_not_waited_for_once_the_quorum_is_there() {
    let (mut round, invited) = collecting(all_of(1), 2);
    assert_eq!(round.step(Millis(1), &Event::DeviceLost { device: invited[0].clone() }), []);
    let effects = give(&mut round, 2, &invited[1], 1, 1);
    assert!(matches!(&effects[..], [Effect::Aggregate { .. }]));
}

#[test]
fn a_device_that_comes_back_gets_a_newer_attempt_and_may_use_the_older() {
    for attempt in [1, 2] {
        let (mut round, invited) = collecting(all_of(2), 2);
        let lost = Event::DeviceLost { device: invited[0].clone() };
        let returned = Event::DeviceReturned { device: invited[0].clone() };
        assert_eq!(round.step(Millis(1), &returned), []);
        assert_eq!(round.step(Millis(1), &lost), []);
        assert_eq!(give(&mut round, 2, &invited[1], 1, 1), []);
        let effects = round.step(Millis(3), &returned);
        assert!(matches!(&effects[..], [Effect::Offer { attempt: Attempt(2), .. }]));
        assert_eq!(round.step(Millis(3), &returned), []);
        let old = failed(&invited[0], Purpose::Train, 1, FailureCode::Cancelled);
        if attempt == 2 {
            assert_eq!(round.step(Millis(3), &old), []);
        }
        let effects = give(&mut round, 4, &invited[0], attempt, 2);
        assert!(matches!(&effects[..], [Effect::Aggregate { .. }]));
    }
}

#[test]
fn a_transient_failure_gets_one_more_offer() {
    let (mut round, invited) = collecting(all_of(1), 1);
    let full = |attempt| failed(&invited[0], Purpose::Train, attempt, FailureCode::DiskFull);
    assert_eq!(round.step(Millis(10), &full(1)), []);
    assert_eq!(round.step(Millis(10), &full(1)), []);
    assert_eq!(round.wake_at(), Some(Millis(1010)));
    let effects = round.step(Millis(1010), &Event::Tick);
    assert!(matches!(&effects[..], [Effect::Offer { attempt: Attempt(2), .. }]));
    assert_eq!(round.pending_effects(), effects);
    assert_eq!(round.step(Millis(1010), &full(1)), []);
    let effects = round.step(Millis(1020), &full(2));
    assert_eq!(reason(outcome(&effects), &invited[0]).code, FailureCode::DiskFull);
    assert_eq!(outcome(&effects).parameters, blob(0));
}

#[test]
fn an_offer_that_was_lost_on_the_way_is_sent_again() {
    let (mut round, invited) = collecting(all_of(1), 1);
    assert_eq!(round.wake_at(), Some(Millis(5000)));
    let effects = round.step(Millis(5000), &Event::Tick);
    assert!(matches!(&effects[..], [Effect::Offer { attempt: Attempt(1), .. }]));
    let (device, purpose) = (invited[0].clone(), Purpose::Train);
    round.step(Millis(5001), &Event::Accepted { device, purpose, attempt: Attempt(1) });
    assert_eq!(round.wake_at(), Some(Millis(60_000)));
}

#[test]
fn who_fails_is_replaced_from_the_reserve() {
    let participation = Participation { devices: Some(2), ..all_of(2) };
    let (mut round, invited) = collecting(participation, 4);
    let failure = failed(&invited[0], Purpose::Train, 1, FailureCode::Diverged);
    let effects = round.step(Millis(1), &failure);
    assert!(matches!(&effects[..], [Effect::Offer { device, .. }] if !invited.contains(device)));
    let effects = round.step(Millis(2), &Event::DeviceLost { device: invited[1].clone() });
    assert!(matches!(&effects[..], [Effect::Offer { device, .. }] if !invited.contains(device)));
    assert_eq!(round.step(Millis(2), &Event::DeviceLost { device: invited[1].clone() }), []);
}

#[test]
fn refused_updates_are_missing_with_the_reason() {
    let (mut round, invited) = collecting(all_of(1), 2);
    round.step(Millis(1), &received(&invited[0], 1, 1));
    let refused = Some(Failure::new(FailureCode::InvalidUpdate, "layer 3 is not finite"));
    let (device, parameters) = (invited[0].clone(), blob(1));
    round.step(Millis(1), &Event::UpdateChecked { device, parameters, refused });
    let empty = UpdateReport { examples: 0, ..update(2) };
    let (device, attempt) = (invited[1].clone(), Attempt(1));
    let effects = round.step(Millis(2), &Event::UpdateReceived { device, attempt, update: empty });
    let outcome = outcome(&effects);
    assert_eq!(reason(outcome, &invited[0]).message, "layer 3 is not finite");
    assert_eq!(reason(outcome, &invited[1]).code, FailureCode::InvalidUpdate);
    assert_eq!(
        outcome.failure.as_ref().unwrap().message,
        "0 usable updates of 2 invited devices, quorum is 1"
    );
}

#[test]
fn there_is_no_second_chance_after_the_deadline() {
    let (mut round, invited) = collecting(all_of(1), 1);
    round.step(Millis(60_000), &received(&invited[0], 1, 1));
    assert_eq!(round.step(Millis(60_000), &Event::Tick), []);
    let refused = Some(Failure::new(FailureCode::BlobUnavailable, "not there"));
    let (device, parameters) = (invited[0].clone(), blob(1));
    let checked = Event::UpdateChecked { device, parameters, refused };
    let effects = round.step(Millis(60_001), &checked);
    assert_eq!(reason(outcome(&effects), &invited[0]).code, FailureCode::BlobUnavailable);
}

#[test]
fn failed_aggregation_and_cancelling_end_the_round() {
    for (event, code) in [
        (cancelled(), FailureCode::Cancelled),
        (
            Event::AggregationFailed { failure: Failure::new(FailureCode::Internal, "boom") },
            FailureCode::Internal,
        ),
    ] {
        let (mut round, invited) = collecting(all_of(1), 1);
        give(&mut round, 1, &invited[0], 1, 1);
        let effects = round.step(Millis(2), &event);
        let outcome = outcome(&effects);
        assert_eq!(outcome.failure.as_ref().unwrap().code, code);
        assert_eq!((outcome.updates.len(), &outcome.parameters), (0, &blob(0)));
        assert!(reason(outcome, &invited[0]).message.starts_with("its update was not used"));
    }
    let (mut round, invited) = collecting(all_of(1), 2);
    let effects = round.step(Millis(2), &cancelled());
    assert_eq!(effects.len(), 3);
    let message = &reason(outcome(&effects), &invited[0]).message;
    assert_eq!(message, "had not accepted the task: stopped on request");
}

/// A round that is judged, by the broker among others, and what it asks for first.
fn judging(evaluate: Evaluate, devices_count: usize) -> (Round, Vec<DeviceId>, Vec<Effect>) {
    let plan = Plan { evaluate, ..plan(all_of(1)) };
    let (mut round, _) = Round::begin(Millis(0), plan);
    let invited = devices(devices_count);
    round.step(Millis(0), &Event::DevicesFound { devices: invited.clone() });
    for (index, device) in invited.iter().enumerate() {
        give(&mut round, 1, device, 1, index as u64);
    }
    let effects = round.step(Millis(2), &Event::Aggregated(Aggregate::of(blob(9))));
    (round, invited, effects)
}

#[test]
fn the_broker_judges_once_and_decides() {
    let (mut round, _, effects) = judging(Evaluate::Broker, 2);
    assert_eq!(effects, [Effect::Evaluate { parameters: blob(9) }]);
    assert_eq!(round.pending_effects(), effects, "asked for again after a restart");
    let effects = round.step(Millis(5), &Event::Judged { evaluation: judgement(0.25) });
    let alone = outcome(&effects);
    assert_eq!((alone.accuracy(), alone.evaluations.len()), (Some(0.25), 0));

    let (mut round, invited, effects) = judging(Evaluate::Both, 1);
    assert_eq!(effects.len(), 2);
    assert_eq!(round.step(Millis(5), &Event::Judged { evaluation: judgement(0.25) }), []);
    assert_eq!(round.step(Millis(5), &Event::Judged { evaluation: judgement(0.5) }), []);
    assert_eq!(round.pending_effects().len(), 1, "the device owes its own");
    let evaluation = judgement(1.0);
    let (device, attempt) = (invited[0].clone(), Attempt(1));
    let judged = Event::EvaluationReceived { device, attempt, evaluation };
    let effects = round.step(Millis(6), &judged);
    let both = outcome(&effects);
    assert_eq!((both.accuracy(), both.devices_accuracy()), (Some(0.25), Some(1.0)));
    let stored = serde_json::to_string(both).unwrap();
    assert_eq!(serde_json::from_str::<Outcome>(&stored).unwrap(), *both);
}

#[test]
fn why_the_broker_does_not_judge_is_told() {
    let missing = |events: &[(u64, Event)]| {
        let (mut round, _, _) = judging(Evaluate::Broker, 1);
        assert_eq!(round.wake_at(), Some(Millis(30_002)));
        let mut effects = Vec::new();
        for (now, event) in events {
            effects.extend(round.step(Millis(*now), event));
        }
        let outcome = outcome(&effects);
        assert_eq!((&outcome.failure, outcome.accuracy()), (&None, None));
        let Some(Judgement::Missing(why)) = &outcome.judgement else { panic!("{outcome:?}") };
        why.code
    };
    let failure = Failure::new(FailureCode::UnknownDataset, "no such data set");
    let unknown = Event::JudgementFailed { failure };
    assert_eq!(missing(&[(3, unknown)]), FailureCode::UnknownDataset);
    let nonsense = |evaluation| (3, Event::Judged { evaluation });
    assert_eq!(missing(&[nonsense(judgement(1.5))]), FailureCode::Diverged);
    let endless = EvaluationReport { loss: f64::NAN, ..judgement(0.5) };
    assert_eq!(missing(&[nonsense(endless)]), FailureCode::Diverged);
    let late = [(30_001, Event::Tick), (30_002, Event::Tick)];
    assert_eq!(missing(&late), FailureCode::DeadlineExceeded);
    assert_eq!(missing(&[(3, cancelled())]), FailureCode::Cancelled);
}

#[test]
fn evaluation_never_fails_a_round() {
    let (mut round, invited) = collecting(all_of(1), 3);
    for (index, device) in invited.iter().enumerate() {
        give(&mut round, 1, device, 1, index as u64);
    }
    let effects = round.step(Millis(2), &Event::Aggregated(Aggregate::of(blob(9))));
    assert_eq!(effects.len(), 3);
    let failure = failed(&invited[0], Purpose::Evaluate, 1, FailureCode::InvalidDataset);
    assert_eq!(round.step(Millis(3), &failure), []);
    let judged = Event::EvaluationReceived {
        device: invited[1].clone(),
        attempt: Attempt(1),
        evaluation: judgement(1.5),
    };
    assert_eq!(round.step(Millis(3), &judged), []);
    let effects = round.step(Millis(3), &Event::DeviceLost { device: invited[2].clone() });
    let outcome = outcome(&effects);
    assert_eq!((&outcome.failure, &outcome.parameters), (&None, &blob(9)));
    // Updates of 0, 1 and 2 bytes; parameters of 0 bytes, then of 9, for three devices each.
    assert_eq!(outcome.moved, Some(Moved { up: Bytes(3), down: Bytes(27) }));
    assert_eq!((outcome.updates.len(), outcome.evaluations.len()), (3, 0));
}
