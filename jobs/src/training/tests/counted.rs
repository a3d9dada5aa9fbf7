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
