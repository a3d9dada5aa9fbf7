//! A training as a whole in virtual time: one broker at a time, devices, a network that loses,
//! repeats and delays offers, a stream of reports, an object store, and crashes of everything.
//!
//! The machines are the real ones; what the broker and the agents do around them is done here in
//! the same order, and may be cut short at every step that stores or sends. A seed decides
//! everything: `SIM_SEED=n` replays one, `SIM_SEEDS=n` runs so many.
//!
//! Some worlds are of trainings whose updates are masked: see [`masked`]. There the arithmetic is real
//! as well.
//!
//! Faults end after a while; from then on a training has to succeed. What must hold is in
//! [`check`]; each [`Plant`] is a mistake in the shell that the checks have to find.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it says what it did and stops at the first surprise"
)]

mod broker;
mod check;
mod device;
mod masked;
mod private;
mod task;
mod world;

use world::{Counts, World};

/// What a world is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// Updates are added up masked.
    Masked,
}

/// A mistake in the shell around the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Offers and outcomes go out before the machine is stored.
    OutwardBeforeStoring,
    /// The place in the stream is stored before its reports are applied.
    ReportsSkipped,
    /// Reports count for the round at work, whichever they are for.
    RoundIgnored,
    /// A stored machine's effects are not performed again.
    EffectsForgotten,
    /// Updates are not looked into.
    UpdatesUnchecked,
    /// The broker judges the parameters that a round began with.
    OldParametersJudged,
    /// That a device is lost counts before the reports that wait are read.
    LossesBeforeReports,
    /// There is noise before it is stored what it is on.
    NoiseBeforeStoring,
    /// A device that is in the sum is taken for one that is not, towards one of its neighbours.
    BothSharesAsked,
    /// A masked update is added once more.
    AddedTwice,
    /// A device that trains again keeps its seed, and not its update.
    UpdateTwice,
}

impl Plant {
    const ALL: [(Kind, Plant); 13] = [
        (Kind::Plain, Plant::OutwardBeforeStoring),
        (Kind::Plain, Plant::ReportsSkipped),
        (Kind::Plain, Plant::RoundIgnored),
        (Kind::Plain, Plant::EffectsForgotten),
        (Kind::Plain, Plant::UpdatesUnchecked),
        (Kind::Plain, Plant::OldParametersJudged),
        (Kind::Plain, Plant::LossesBeforeReports),
        (Kind::Plain, Plant::NoiseBeforeStoring),
        (Kind::Masked, Plant::OutwardBeforeStoring),
        (Kind::Masked, Plant::NoiseBeforeStoring),
        (Kind::Masked, Plant::BothSharesAsked),
        (Kind::Masked, Plant::AddedTwice),
        (Kind::Masked, Plant::UpdateTwice),
    ];
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Runs the seeds that are asked for; what happened in all of them, unless it was one alone.
fn run(kind: Kind) -> Option<Counts> {
    let only = number("SIM_SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(1500),
    };
    let mut total = Counts::default();
    for seed in seeds {
        let mut world = World::new(kind, seed, None, only.is_some());
        if let Err(problem) = world.run() {
            panic!("{problem}\nSIM_SEED={seed} shows how it came to it, {kind:?}");
        }
        total.add(&world.counts);
    }
    println!("{total:?}");
    only.is_none().then_some(total)
}

#[test]
fn trainings_succeed_whatever_failed_before() {
    let Some(total) = run(Kind::Plain) else { return };
    // The faults did happen.
    assert!(total.broker_crashes > 0 && total.device_crashes > 0 && total.offers_lost > 0);
    assert!(total.reports_repeated > 0 && total.rounds_failed > 0 && total.kept_out > 0);
    assert!(total.late > 0 && total.remade > 0 && total.rounds_private > 0);
}

#[test]
fn masked_trainings_succeed_and_show_sums_alone() {
    let Some(total) = run(Kind::Masked) else { return };
    assert!(total.broker_crashes > 0 && total.device_crashes > 0 && total.offers_lost > 0);
    assert!(total.crashes_at_stages.iter().all(|count| *count > 0), "{total:?}");
    assert!(total.rounds_masked > 0 && total.rounds_failed > 0 && total.not_unmasked > 0);
    assert!(total.dropped_out > 0 && total.refused_to_answer > 0 && total.rounds_private > 0);
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..20 {
        for kind in [Kind::Plain, Kind::Masked] {
            let run = || {
                let mut world = World::new(kind, seed, None, false);
                world.run().unwrap();
                (world.now, world.counts)
            };
            assert_eq!(run(), run());
        }
    }
}

#[test]
fn planted_mistakes_are_found() {
    for (kind, plant) in Plant::ALL {
        let found = (0..3000).find_map(|seed| {
            let problem = World::new(kind, seed, Some(plant), false).run().err()?;
            Some((seed, problem))
        });
        let Some((seed, problem)) = found else { panic!("{plant:?} is not found") };
        println!("{kind:?}, {plant:?}: seed {seed}: {problem}");
    }
}
