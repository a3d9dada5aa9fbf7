//! Why devices are missing.

use super::*;

fn told(outcome: &Outcome, device: &DeviceId) -> (FailureCode, String) {
    let Failure { code, message, .. } = reason(outcome, device).clone();
    (code, message)
}

#[test]
fn a_round_that_fails_tells_of_each_device_its_own_reason() {
    let (mut round, invited) = collecting(all_of(6), 6);
    let [answered, declined, lost, working, offered, unfit] = &invited[..] else { panic!() };
    give(&mut round, 1, answered, 1, 1);
    let accepted = |device: &DeviceId| Event::Accepted {
        device: device.clone(),
        purpose: Purpose::Train,
        attempt: Attempt(1),
    };
    round.step(Millis(2), &accepted(working));
    round.step(Millis(2), &accepted(lost));
    round.step(Millis(3), &failed(declined, Purpose::Train, 1, FailureCode::Busy));
    round.step(Millis(3), &Event::DeviceLost { device: lost.clone() });
    let failure = failed(unfit, Purpose::Train, 1, FailureCode::UnknownDataset);
    let effects = round.step(Millis(4), &failure);
    let outcome = outcome(&effects);

    let why = "1 usable updates of 6 invited devices, quorum is 6";
    let no_quorum = |what: &str| (FailureCode::NoQuorum, format!("{what}: {why}"));
    assert_eq!(told(outcome, answered), no_quorum("its update was not used"));
    assert_eq!(told(outcome, working), no_quorum("was at work"));
    assert_eq!(told(outcome, offered), no_quorum("had not accepted the task"));
    assert_eq!(told(outcome, declined), (FailureCode::Busy, "because".to_owned()));
    assert_eq!(told(outcome, unfit), (FailureCode::UnknownDataset, "because".to_owned()));
    let (code, message) = told(outcome, lost);
    assert_eq!((code, &message[..11]), (FailureCode::DeviceLost, "went silent"));
}

#[test]
fn an_update_that_is_gone_is_left_out_while_the_quorum_holds() {
    let (mut round, invited) = collecting(all_of(2), 3);
    let gone = |device: &DeviceId| Event::UpdateGone {
        device: device.clone(),
        failure: Failure::new(FailureCode::BlobUnavailable, "the device is away"),
    };
    assert_eq!(round.step(Millis(1), &gone(&invited[0])), []);
    for (at, device) in (1..).zip(&invited) {
        give(&mut round, 1, device, 1, at);
    }
    let effects = round.step(Millis(2), &gone(&invited[1]));
    let [Effect::Aggregate { updates, .. }] = &effects[..] else { panic!("{effects:?}") };
    let left: Vec<&DeviceId> = updates.iter().map(|(device, _)| device).collect();
    assert_eq!(left, [&invited[0], &invited[2]]);
    assert_eq!(round.step(Millis(2), &gone(&invited[1])), []);
    let effects = round.step(Millis(3), &gone(&invited[0]));
    let outcome = outcome(&effects);
    assert_eq!(outcome.failure.as_ref().unwrap().code, FailureCode::NoQuorum);
    assert_eq!(reason(outcome, &invited[1]).code, FailureCode::BlobUnavailable);
    assert_eq!(reason(outcome, &invited[2]).code, FailureCode::NoQuorum);
}
