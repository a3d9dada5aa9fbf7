//! Whose update counted last, and when.

use super::*;
use crate::round::{Influence, Verdict};

/// What an update left out is owed once it counted, and not when a rule refused it.
#[test]
fn what_is_owed_follows_from_updates_that_counted() {
    for (update, expected) in
        [("topk:share=0.1", [Some(1), Some(3), Some(3)]), ("int8", [None, None, None])]
    {
        let (mut training, mut effects) =
            begin(TrainSpec { update: update.parse().unwrap(), ..spec(3) });
        let names = devices(3);
        assert_eq!(training.counted(&names[0]), None);
        let mut next = 0;
        while let Some(effect) = effects.get(next).cloned() {
            next += 1;
            let Some(mut event) = answer(&effect, 3, 0.5) else { continue };
            if let Event::Round { round, event: RoundEvent::Aggregated(aggregate) } = &mut event {
                // A rule leaves the first one out after the first round.
                let left_out = (round.0 > 1).then_some(&names[0]);
                let influence = |device: &DeviceId| {
                    let refused = Some(device) == left_out;
                    let verdict = if refused { Verdict::Refused } else { Verdict::Reduced };
                    (device.clone(), Influence { verdict, reason: String::new() })
                };
                aggregate.influences = names.iter().map(influence).collect();
            }
            effects.extend(training.step(Millis(1), &event));
        }
        assert_eq!(training.rounds_done(), 3);
        let counted = names.iter().map(|device| training.counted(device).map(|round| round.0));
        assert_eq!(counted.collect::<Vec<_>>(), expected, "{update}");
    }
}

/// The server's control variate is a mean of those that are in it, also while a device is away.
#[test]
fn the_population_of_scaffold_holds_who_is_away() {
    let (mut training, mut effects) =
        begin(TrainSpec { strategy: "scaffold".parse().unwrap(), ..spec(3) });
    let mut populations = Vec::new();
    let mut next = 0;
    while let Some(effect) = effects.get(next).cloned() {
        next += 1;
        let there = [2, 1, 3][training.rounds_done().min(2) as usize];
        let Some(mut event) = answer(&effect, there, 0.5) else { continue };
        if let Event::Round { event: RoundEvent::UpdateReceived { update, .. }, .. } = &mut event {
            update.control_change = Some(blob(7));
        }
        if matches!(event, Event::Round { event: RoundEvent::Aggregated(_), .. }) {
            populations.push(training.population());
        }
        effects.extend(training.step(Millis(1), &event));
    }
    assert_eq!(populations, [2, 2, 3]);
}
