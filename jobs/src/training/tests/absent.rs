//! Devices that would take part and are not there.

use super::*;
use crate::spec::Participation;

fn offline(index: usize) -> (DeviceId, Failure) {
    (devices(index + 1).remove(index), Failure::new(FailureCode::NotThere, "offline"))
}

/// The outcome of a round with so many devices, of which others are absent.
fn outcome(participation: Participation, count: usize, absent: &[usize]) -> (Training, Outcome) {
    let (mut training, _) = begin(TrainSpec { participation, ..spec(2) });
    training.absent(absent.iter().copied().map(offline).collect());
    let found = RoundEvent::DevicesFound { devices: devices(count) };
    let found = Event::Round { round: training.number(), event: found };
    let mut queue = training.step(Millis(0), &found);
    if training.round().unwrap().waits_for(Millis(0)).is_none() {
        // Too late for the round that has begun.
        training.absent(vec![offline(9)]);
    }
    let ended = loop {
        let effect = if queue.is_empty() { None } else { Some(queue.remove(0)) };
        match effect {
            Some(Effect::PublishRound(outcome)) => break *outcome,
            Some(effect) => {
                let event = answer(&effect, 0, 0.5).expect("the round goes on");
                queue.extend(training.step(Millis(1), &event));
            }
            None => queue.extend(training.step(Millis(10_000), &Event::Tick)),
        }
    };
    (training, ended)
}

fn missing(outcome: &Outcome) -> Vec<(DeviceId, FailureCode)> {
    outcome.missing.iter().map(|(device, why)| (device.clone(), why.code)).collect()
}

#[test]
fn who_was_not_there_is_missing_and_was_not_invited() {
    let (training, outcome) = outcome(Participation::default(), 2, &[1, 3]);
    // The second one was there after all.
    assert_eq!(missing(&outcome), [(offline(3).0, FailureCode::NotThere)]);
    assert_eq!((outcome.invited(), outcome.updates.len()), (2, 2));
    assert!(training.absent.is_empty(), "each round looks anew");
}

#[test]
fn nobody_is_missing_from_a_round_that_could_invite_more() {
    let some = |devices| Participation { devices: Some(devices), ..Participation::default() };
    assert_eq!(missing(&outcome(some(1), 2, &[3]).1), []);
    assert_eq!(missing(&outcome(some(2), 2, &[3]).1), [], "as many as are wanted");
}

#[test]
fn a_round_that_has_no_quorum_says_who_was_not_there() {
    let quorum =
        Participation { quorum: 3, deadline_ms: Millis(10_000), ..Participation::default() };
    let (_, outcome) = outcome(quorum, 2, &[3, 4]);
    assert_eq!(outcome.failure.as_ref().unwrap().code, FailureCode::NoQuorum);
    let not_there = |index| (offline(index).0, FailureCode::NotThere);
    assert_eq!(missing(&outcome), [not_there(3), not_there(4)]);
    assert_eq!(outcome.invited(), 0);
}

#[test]
fn while_it_waits_it_says_for_how_many() {
    let some = Participation { devices: Some(5), quorum: 2, ..Participation::default() };
    let (mut training, _) = begin(TrainSpec { participation: some, ..spec(2) });
    let waits = |training: &Training, now| training.round().unwrap().waits_for(Millis(now));
    let found = RoundEvent::DevicesFound { devices: devices(1) };
    let found = Event::Round { round: training.number(), event: found };
    assert_eq!(training.step(Millis(0), &found), []);
    assert_eq!(waits(&training, 0), Some((1, 5)));
    assert_eq!(waits(&training, 60_000), Some((1, 2)), "then the quorum is enough");
    let found = RoundEvent::DevicesFound { devices: devices(5) };
    training.step(Millis(1), &Event::Round { round: training.number(), event: found });
    assert_eq!(waits(&training, 1), None);
}
