//! What one device says of itself owns no sum.

use super::*;
use crate::report::EXAMPLES_MAX;

#[test]
fn updates_out_of_range_are_refused_with_value_and_limit() {
    let of = |examples, loss| UpdateReport { examples, loss, ..update(1) };
    for (update, text) in [
        (of(0, 0.5), "made from 0 examples"),
        (
            of(1_000_000_000_000_000, 0.5),
            "1000000000000000 examples, expected at most 1099511627776",
        ),
        (of(u64::MAX, 0.5), "expected at most 1099511627776"),
        (of(10, -1e300), "loss -1e300, expected 0 to 3.4028234663852886e38"),
        (of(10, f64::NAN), "loss NaN"),
        (of(10, 1e39), "loss 1e39"),
    ] {
        let (mut round, invited) = collecting(all_of(1), 2);
        let (device, attempt) = (invited[0].clone(), Attempt(1));
        let effects = round.step(Millis(1), &Event::UpdateReceived { device, attempt, update });
        assert_eq!(effects, [], "{text}: it is not looked into");
        let effects = give(&mut round, 2, &invited[1], 1, 2);
        assert!(matches!(effects[..], [Effect::Aggregate { .. }]), "{effects:?}");
        let effects = round.step(Millis(3), &cancelled());
        let failure = reason(outcome(&effects), &invited[0]);
        assert_eq!(failure.code, FailureCode::InvalidUpdate);
        assert!(failure.message.contains(text), "{failure:?}");
    }
    assert_eq!(of(EXAMPLES_MAX, 0.0).problem(), None);
}

#[test]
fn judgements_out_of_range_do_not_count() {
    let of = |examples, loss| EvaluationReport { examples, loss, ..judgement(0.5) };
    for evaluation in [of(1 << 41, 0.5), of(10, -1e300), of(10, 1e300), of(10, f64::INFINITY)] {
        let (mut round, invited, _) = judging(Evaluate::Devices, 2);
        let attempt = Attempt(1);
        let said = |device: &DeviceId, evaluation| Event::EvaluationReceived {
            device: device.clone(),
            attempt,
            evaluation,
        };
        round.step(Millis(3), &said(&invited[0], evaluation));
        let effects = round.step(Millis(3), &said(&invited[1], judgement(0.5)));
        let outcome = outcome(&effects);
        assert_eq!(outcome.loss(), Some(0.5), "{outcome:?}");
        assert_eq!(outcome.evaluations.len(), 1);
    }
}
