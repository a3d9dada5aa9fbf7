//! Devices that a job wants and that are not there.

use super::*;
use crate::spec::Participation;

fn found(training: &mut Training, now: u64, count: usize) -> Vec<Effect> {
    let event = RoundEvent::DevicesFound { devices: devices(count) };
    training.step(Millis(now), &Event::Round { round: training.number(), event })
}

/// Answers all but who is there: the round ends, and the next one asks.
fn to_the_next(training: &mut Training, effects: Vec<Effect>, now: u64) {
    let round = training.number();
    let mut queue = effects;
    while training.number() == round {
        let effect = queue.remove(0);
        let event = answer(&effect, 0, 0.5).expect("the round goes on");
        queue.extend(training.step(Millis(now), &event));
    }
}

/// Missing devices are hoped for once, and again when more are missing; who comes back is invited.
#[test]
fn who_stays_away_is_not_hoped_for_in_every_round() {
    let participation = Participation {
        devices: Some(5),
        quorum: 2,
        deadline_ms: Millis(60_000),
        ..Participation::default()
    };
    let (mut training, _) = begin(TrainSpec { participation, ..spec(9) });
    assert_eq!(found(&mut training, 5_999, 4), []);
    let mut now = 6_000;
    for (wait, count) in [(0, 4), (0, 4), (6_000, 3), (0, 3), (0, 4), (0, 5), (6_000, 3)] {
        if wait > 0 {
            assert_eq!(found(&mut training, now, count), [], "{count} at {now}");
            now += wait;
        }
        let offers = found(&mut training, now, count);
        assert_eq!(offers.len(), count, "{count} at {now}");
        to_the_next(&mut training, offers, now);
    }
}
