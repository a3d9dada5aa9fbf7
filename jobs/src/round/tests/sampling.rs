//! Rounds that leave to chance who takes part.

use super::*;

fn sampled(rate: f64, seed: u64, quorum: u32) -> Round {
    let plan = Plan { sampling: Some(Sampling { rate, seed }), ..plan(all_of(quorum)) };
    Round::begin(Millis(0), plan).0
}

fn found(round: &mut Round, count: usize) -> Vec<Effect> {
    round.step(Millis(0), &Event::DevicesFound { devices: devices(count) })
}

/// Each device on its own, as often as the rate says.
#[test]
fn devices_are_drawn_by_their_chance() {
    for rate in [0.1, 0.5, 0.9] {
        let mut drawn = [0_u32; 20];
        let mut sizes = std::collections::BTreeSet::new();
        for seed in 0..1000 {
            let sampling = Sampling { rate, seed };
            let devices = devices(20);
            let there = devices.iter().map(|device| u32::from(sampling.draws(device)));
            let there: Vec<u32> = there.collect();
            sizes.insert(there.iter().sum::<u32>());
            drawn.iter_mut().zip(there).for_each(|(sum, there)| *sum += there);
        }
        // Six deviations of a binomial distribution.
        let slack = 6.0 * (1000.0 * rate * (1.0 - rate)).sqrt();
        assert!(drawn.iter().all(|n| (f64::from(*n) - 1000.0 * rate).abs() < slack), "{drawn:?}");
        assert!(sizes.len() > 4, "{sizes:?}");
    }
}

#[test]
fn a_round_of_nobody_gives_parameters_too() {
    let mut round = sampled(0.0, 1, 3);
    assert_eq!(found(&mut round, 2), []);
    assert_eq!(
        found(&mut round, 3),
        [Effect::Aggregate { updates: Vec::new(), stale: Vec::new() }]
    );
    assert_eq!(
        round.pending_effects(),
        [Effect::Aggregate { updates: Vec::new(), stale: Vec::new() }]
    );
    let effects = round.step(Millis(1), &Event::Aggregated(Aggregate::of(blob(9))));
    assert_eq!((&outcome(&effects).parameters, &outcome(&effects).failure), (&blob(9), &None));
}

#[test]
fn nobody_takes_the_place_of_a_device_that_failed() {
    let mut round = sampled(0.5, 3, 1);
    let effects = found(&mut round, 20);
    assert!((3..17).contains(&effects.len()), "{effects:?}");
    let invited: Vec<DeviceId> = round.members.iter().map(|it| it.device.clone()).collect();
    for device in &invited[1..] {
        let code = FailureCode::Diverged;
        assert_eq!(round.step(Millis(1), &failed(device, Purpose::Train, 1, code)), []);
    }
    let effects =
        round.step(Millis(2), &failed(&invited[0], Purpose::Train, 1, FailureCode::Diverged));
    assert_eq!(effects.last(), Some(&Effect::Aggregate { updates: Vec::new(), stale: Vec::new() }));
}

#[test]
fn what_is_there_at_the_deadline_counts() {
    let mut round = sampled(1.0, 3, 4);
    assert_eq!(found(&mut round, 4).len(), 4);
    let device = round.members[0].device.clone();
    assert_eq!(give(&mut round, 5, &device, 1, 1), []);
    let effects = round.step(Millis(60_000), &Event::Tick);
    let Some(Effect::Aggregate { updates, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(updates.len(), 1);
}
