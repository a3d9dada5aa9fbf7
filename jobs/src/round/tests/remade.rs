//! Updates that a device made again in the same attempt.

use super::*;

fn is_check(effects: &[Effect], number: u64) -> bool {
    matches!(effects, [Effect::CheckUpdate { update, .. }] if update.parameters == blob(number))
}

fn refused(device: &DeviceId, number: u64) -> Event {
    let failure = Failure::new(FailureCode::BlobUnavailable, "it is another one by now");
    let (device, parameters) = (device.clone(), blob(number));
    Event::UpdateChecked { device, parameters, refused: Some(failure) }
}

#[test]
fn the_second_update_of_an_attempt_is_taken_instead_of_the_first() {
    let (mut round, invited) = collecting(all_of(2), 2);
    let [first, second] = &invited[..] else { panic!("{invited:?}") };
    assert!(is_check(&round.step(Millis(1), &received(first, 1, 1)), 1));
    assert!(is_check(&round.step(Millis(2), &received(first, 1, 2)), 2));
    // What is found in the first one is of no interest any more.
    assert_eq!(round.step(Millis(3), &refused(first, 1)), []);
    assert_eq!(round.step(Millis(3), &checked(first, 1)), []);
    assert_eq!(round.step(Millis(4), &checked(first, 2)), []);
    let effects = give(&mut round, 5, second, 1, 3);
    let [Effect::Aggregate { updates, .. }] = &effects[..] else { panic!("{effects:?}") };
    let counted: Vec<_> = updates.iter().map(|(device, it)| (device, &it.parameters)).collect();
    assert_eq!(counted, [(first, &blob(2)), (second, &blob(3))]);
    assert_eq!(round.step(Millis(6), &received(first, 1, 4)), [], "it is too late for another");
}

#[test]
fn one_that_was_found_usable_is_looked_into_again_once() {
    let (mut round, invited) = collecting(all_of(1), 2);
    give(&mut round, 1, &invited[0], 1, 1);
    assert_eq!(round.step(Millis(2), &received(&invited[0], 1, 1)), [], "it is the same");
    assert!(is_check(&round.step(Millis(3), &received(&invited[0], 1, 2)), 2));
    assert_eq!(round.step(Millis(4), &received(&invited[0], 1, 3)), [], "no third one");
    assert_eq!(round.step(Millis(4), &received(&invited[0], 1, 1)), [], "nor the first again");
    // The second chance is gone with it.
    assert_eq!(round.step(Millis(5), &refused(&invited[0], 2)), []);
    let effects = give(&mut round, 6, &invited[1], 1, 4);
    let [Effect::Aggregate { updates, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(updates.len(), 1);
}
