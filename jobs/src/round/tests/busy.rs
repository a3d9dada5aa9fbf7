//! Devices that have their hands full, with the work of another training perhaps.

use super::*;

fn busy(device: &DeviceId, attempt: u32) -> Event {
    failed(device, Purpose::Train, attempt, FailureCode::Busy)
}

/// A round in which both devices have refused twice.
fn refused(quorum: u32) -> (Round, Vec<DeviceId>) {
    let (mut round, invited) = collecting(all_of(quorum), 2);
    for device in &invited {
        assert_eq!(round.step(Millis(10), &busy(device, 1)), []);
    }
    assert_eq!(round.step(Millis(1010), &Event::Tick).len(), 2);
    assert_eq!(round.step(Millis(1020), &busy(&invited[0], 2)), []);
    assert_eq!(round.step(Millis(1020), &busy(&invited[1], 2)), []);
    (round, invited)
}

#[test]
fn a_round_waits_for_them_where_it_cannot_do_without() {
    let (mut round, invited) = refused(2);
    for again in 1..=3 {
        assert_eq!(round.waits_for_busy(), invited.iter().collect::<Vec<_>>());
        let now = round.wake_at().unwrap();
        assert_eq!(now, Millis(1020 + again * 5000));
        let offers = round.step(now, &Event::Tick);
        assert_eq!(offers.len(), 2);
        for (offer, device) in offers.iter().zip(&invited) {
            let Effect::Offer { attempt: Attempt(2), .. } = offer else { panic!("{offer:?}") };
            assert_eq!(round.step(now, &busy(device, 2)), []);
        }
    }
    let now = round.wake_at().unwrap();
    assert_eq!(round.step(now, &Event::Tick).len(), 2);
    assert!(round.waits_for_busy().is_empty(), "they may take it now");
    assert_eq!(give(&mut round, now.0 + 1, &invited[0], 2, 1), []);
    let effects = give(&mut round, now.0 + 2, &invited[1], 2, 2);
    assert!(matches!(&effects[..], [Effect::Aggregate { .. }]), "{effects:?}");
}

#[test]
fn no_longer_than_it_may_take() {
    let (mut round, invited) = refused(2);
    while let Some(now) = round.wake_at().filter(|now| *now < Millis(60_000)) {
        round.step(now, &Event::Tick);
        for device in &invited {
            assert_eq!(round.step(now, &busy(device, 2)), []);
        }
    }
    let effects = round.step(Millis(60_000), &Event::Tick);
    for device in &invited {
        assert_eq!(reason(outcome(&effects), device).code, FailureCode::Busy);
    }
    let failure = outcome(&effects).failure.as_ref().unwrap();
    assert_eq!(failure.message, "0 usable updates of 2 invited devices, quorum is 2");
}

#[test]
fn who_is_not_needed_is_not_waited_for() {
    let (mut round, invited) = collecting(all_of(1), 2);
    assert_eq!(give(&mut round, 5, &invited[1], 1, 1), []);
    assert_eq!(round.step(Millis(10), &busy(&invited[0], 1)), []);
    assert!(round.waits_for_busy().is_empty());
    round.step(Millis(1010), &Event::Tick);
    let effects = round.step(Millis(1020), &busy(&invited[0], 2));
    assert!(matches!(&effects[..], [Effect::Aggregate { .. }]), "{effects:?}");
    // Nor where even all of them would be too few.
    let (mut round, invited) = collecting(all_of(2), 2);
    assert_eq!(round.step(Millis(5), &busy(&invited[0], 1)), []);
    let diverged = failed(&invited[1], Purpose::Train, 1, FailureCode::Diverged);
    let effects = round.step(Millis(10), &diverged);
    assert_eq!(outcome(&effects).failure.as_ref().unwrap().code, FailureCode::NoQuorum);
}
