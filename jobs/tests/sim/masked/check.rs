//! What must hold of masked rounds.

use std::collections::BTreeSet;

use jobs::id::{BlobRef, DeviceId, RoundNumber};
use jobs::report::{FailureCode, ReportBody};
use jobs::round::{Exchange, Outcome};
use jobs::spec::Purpose;
use secagg::{Keys, Party, Roster, UnmaskRequest};

use super::{Kinds, Known, LENGTH, Question, Said, number, place, value_of};
use crate::check::ON_THE_WAY;
use crate::world::World;

/// Devices are asked for things in the order of the stages, whichever broker asks.
pub(crate) fn told(world: &mut World, round: RoundNumber, purpose: Purpose) -> Result<(), String> {
    let now = (round, place(purpose));
    let before = world.masked.told;
    if now < before {
        return Err(format!("round {round} asks for {purpose:?} after {before:?}"));
    }
    world.masked.told = now;
    Ok(())
}

/// Each device is asked one question at a stage, and never are both its secrets asked for.
pub(super) fn asked(
    world: &mut World,
    (round, purpose, device): (RoundNumber, Purpose, &DeviceId),
    question: &Question,
    roster: Option<&Roster>,
) -> Result<(), String> {
    let now = world.now;
    world.masked.began.entry((round, purpose)).or_insert(now);
    if purpose == Purpose::Share {
        world.closed.entry(round).or_insert(now);
    }
    if let (Question::Request(request), Some(roster)) = (question, roster) {
        note(&mut world.masked, roster, request, "asked for", |secrets| &mut secrets.asked)?;
    }
    let key = (round, purpose, device.clone());
    let before = world.masked.questions.entry(key).or_insert_with(|| question.clone());
    if before != question {
        return Err(format!("round {round}: {device} is asked {question:?} after {before:?}"));
    }
    Ok(())
}

/// A device shows shares of its neighbours.
pub(super) fn shown(
    known: &mut Known,
    roster: &Roster,
    request: &UnmaskRequest,
) -> Result<(), String> {
    note(known, roster, request, "shown", |secrets| &mut secrets.shown)
}

fn note(
    known: &mut Known,
    roster: &Roster,
    request: &UnmaskRequest,
    what: &str,
    kinds: impl Fn(&mut super::Secrets) -> &mut Kinds,
) -> Result<(), String> {
    let of_masks = request.survivors.iter().map(|party| (party, true));
    let of_keys = request.dropped.iter().map(|party| (party, false));
    for (Party(party), is_mask) in of_masks.chain(of_keys) {
        let keys = roster.devices[*party as usize];
        let kinds = kinds(known.secrets.entry(keys).or_default());
        if is_mask {
            kinds.own_mask = true;
        } else {
            kinds.key = true;
        }
        if *kinds == (Kinds { own_mask: true, key: true }) {
            let session = &roster.purpose;
            return Err(format!("{session}: both secrets of device {party} are {what}"));
        }
    }
    Ok(())
}

/// Under one seed one vector is masked: two of them show their difference.
pub(super) fn sent_masked(known: &mut Known, keys: Keys, said: &Said) -> Result<(), String> {
    let value = said.value();
    match known.vectors.insert(keys, value) {
        Some(before) if before != value => {
            Err(format!("two vectors under the masks of {:?}", keys.masking))
        }
        _ => Ok(()),
    }
}

/// Whoever answered a stage in time, and in a usable way, is at the next one, and nobody else.
pub(super) fn exchanged(
    world: &World,
    round: RoundNumber,
    exchange: &Exchange,
) -> Result<(), String> {
    let stages = [
        (Purpose::Share, &exchange.keys, &exchange.shares, Purpose::Mask),
        (Purpose::Mask, &exchange.shares, &exchange.masked, Purpose::Unmask),
    ];
    let mut said = exchange.shares.iter().chain(&exchange.masked).chain(&exchange.unmaskings);
    let usable = &world.masked.usable;
    if let Some((device, _)) = said.find(|it| !usable.contains(&value_of(&it.1))) {
        return Err(format!("round {round}: what {device} said was not checked"));
    }
    for (stage, asked, answered, next) in stages {
        if !answered.iter().all(|(device, _)| asked.iter().any(|(other, _)| other == device)) {
            return Err(format!("round {round}: strangers answered to {stage:?}"));
        }
        for (device, _) in asked {
            let goes_on = answered.iter().any(|(other, _)| other == device);
            if !goes_on && was_in_time(world, (round, stage, device), next) {
                return Err(format!("round {round}: {device} answered to {stage:?} in time"));
            }
        }
    }
    Ok(())
}

/// Whether the stream had a usable answer of this device well before the stage closed, and nothing
/// else of it.
fn was_in_time(
    world: &World,
    (round, stage, device): (RoundNumber, Purpose, &DeviceId),
    next: Purpose,
) -> bool {
    let until = world.masked.until.get(&(round, stage)).copied().unwrap_or_default();
    let closed = world.masked.began.get(&(round, next)).copied().unwrap_or_default();
    let until = until.min(closed.saturating_sub(ON_THE_WAY));
    let reports = world.stream.iter().filter(|(_, report)| {
        let task = &report.task;
        let mine = report.device == *device && task.round == round && task.purpose == stage;
        mine && report.body.is_final()
    });
    let reports: Vec<_> = reports.collect();
    let [(at, report)] = &reports[..] else { return false };
    let refused = world.refused.contains(&(round, device.clone()));
    let began = world.masked.began.get(&(round, stage)).copied().unwrap_or(u64::MAX);
    (began..=until).contains(at) && !refused && matches!(report.body, ReportBody::Exchanged(_))
}

/// The sum is that of the updates that the outcome names, to the bit, and of no others.
pub(crate) fn published(world: &mut World, outcome: &Outcome, base: u64) -> Result<(), String> {
    let round = outcome.round;
    let name = outcome.parameters.object_name();
    let named: BTreeSet<DeviceId> =
        outcome.updates.iter().map(|(device, _)| device.clone()).collect();
    if world.masked.sums.get(name) != Some(&named) {
        let sum = world.masked.sums.get(name);
        return Err(format!("round {round} names {named:?}, in the sum are {sum:?}"));
    }
    let mut sum = vec![0; LENGTH];
    for (device, report) in &outcome.updates {
        let Some(update) = world.masked.updates.get(&value_of(&report.parameters)) else {
            return Err(format!("round {round}: {device} has no such update"));
        };
        if update.base != base {
            return Err(format!("round {round}: {device} trained from other parameters"));
        }
        secagg::add(&mut sum, &update.vector);
    }
    if value_of(&outcome.parameters) != number(&sum) {
        return Err(format!("round {round}: what was unmasked is not the sum of {named:?}"));
    }
    if sum.last().copied() != u32::try_from(named.len()).ok() {
        return Err(format!("round {round}: {} devices have the weight {sum:?}", named.len()));
    }
    let dropped = |why: &&(DeviceId, jobs::report::Failure)| is_drop_out(&why.1.message);
    world.counts.rounds_masked += 1;
    world.counts.dropped_out += outcome.missing.iter().filter(dropped).count() as u64;
    check_keys(world, outcome)
}

/// The outcome's updates are keys that were read.
fn check_keys(world: &World, outcome: &Outcome) -> Result<(), String> {
    let blobs: Vec<&BlobRef> = outcome.updates.iter().map(|(_, it)| &it.parameters).collect();
    match blobs.iter().find(|blob| world.keys_of(value_of(blob)).is_none()) {
        Some(blob) => Err(format!("round {}: {blob:?} are no keys", outcome.round)),
        None => Ok(()),
    }
}

/// Whether a device is missing because of a stage after its training.
pub(crate) fn is_drop_out(message: &str) -> bool {
    message.starts_with("dropped out of the secure aggregation")
}

/// A masked round fails with a reason that is true of one.
pub(crate) fn failed(outcome: &Outcome) -> Result<(), String> {
    match &outcome.failure {
        Some(failure) if failure.message.is_empty() => {
            Err(format!("round {} fails without a reason", outcome.round))
        }
        Some(failure)
            if !matches!(
                failure.code,
                FailureCode::NoQuorum | FailureCode::InvalidUpdate | FailureCode::BlobUnavailable
            ) =>
        {
            Err(format!("round {} fails with {failure:?}", outcome.round))
        }
        _ => Ok(()),
    }
}
