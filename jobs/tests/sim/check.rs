//! What must hold, whatever happened.

use std::collections::BTreeSet;

use jobs::id::{BlobRef, DeviceId, RoundNumber};
use jobs::report::{FailureCode, ReportBody};
use jobs::round::{Judgement, Outcome};
use jobs::spec::Purpose;

use crate::broker::judgement_of;
use crate::world::{Blob, World, mixed, reference};
use crate::{masked, private};

/// How long a stored report may be on its way to the broker.
pub(crate) const ON_THE_WAY: u64 = 200;

/// The phases of a round, in order.
const PHASES: [&str; 7] =
    ["selecting", "collecting", "sharing", "masking", "unmasking", "aggregating", "evaluating"];

/// Remembers until when a round collects and its stages are open. Rounds only go forward.
pub(crate) fn note_phase(world: &mut World) -> Result<(), String> {
    let Some(broker) = &mut world.broker else { return Ok(()) };
    let Some(round) = broker.machine.round() else { return Ok(()) };
    let status = round.status();
    if let Some(place) = PHASES.iter().position(|phase| *phase == status.phase) {
        let before = std::mem::replace(&mut broker.phase, (status.round, place));
        if broker.phase < before {
            return Err(format!("{status:?} after phase {before:?}"));
        }
    }
    let Some(deadline) = status.deadline else { return Ok(()) };
    if status.phase == "collecting" {
        world.collecting_until.insert(status.round, deadline.0);
    }
    if let Some(stage) = round.stage() {
        world.masked.note_until(status.round, stage, deadline.0);
    }
    Ok(())
}

/// A round is published: the same as before, if it was; else one that follows from the round
/// before it.
pub(crate) fn published(world: &mut World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    if let Some(before) = world.published.get(&round) {
        if before == outcome {
            return Ok(());
        }
        return Err(format!("round {round} is published as {outcome:?} after {before:?}"));
    }
    world.counts.rounds += 1;
    world.counts.rounds_failed += u64::from(outcome.failure.is_some());
    let before = world.published.range(..round).next_back();
    if before.map_or(0, |(number, _)| number.0) + 1 != round.0 {
        return Err(format!("round {round} is published after {:?}", before.map(|it| it.0)));
    }
    let base = before.map_or_else(
        || reference("first", &world.objects["first"]),
        |(_, outcome)| outcome.parameters.clone(),
    );
    let Some(base_blob) = world.read(&base) else {
        return Err(format!("round {round}: its parameters {base:?} are gone"));
    };
    if outcome.failure.is_some() && world.is_without_faults() {
        return Err(format!("round {round} fails without a fault: {:?}", outcome.failure));
    }
    everyone_once(world, outcome)?;
    blamed(world, outcome)?;
    judged(world, outcome)?;
    kept_out(world, outcome)?;
    late_ones_once(world, outcome)?;
    private::published(world, outcome)?;
    if outcome.failure.is_some() {
        if world.is_masked() {
            masked::check::failed(outcome)?;
        }
        return if outcome.parameters == base {
            Ok(())
        } else {
            Err(format!("round {round} failed and changed the parameters"))
        };
    }
    if world.is_masked() {
        return masked::check::published(world, outcome, base_blob.value);
    }
    let mut values = Vec::new();
    for (device, update) in &outcome.updates {
        let Some(blob) = world.read(&update.parameters) else {
            // A later attempt may stand under its name by now; the mean shows what was read.
            return Ok(());
        };
        if blob.bad {
            return Err(format!("round {round}: the bad update of {device} counts"));
        }
        if blob.base != base_blob.value && !late_bases(world, round).contains(&blob.base) {
            return Err(format!("round {round}: {device} trained from other parameters"));
        }
        world.counts.late += u64::from(blob.base != base_blob.value);
        world.counts.remade += u64::from(is_remade(world, device, &update.parameters));
        values.push(blob.value);
    }
    match world.read(&outcome.parameters) {
        None => Err(format!("round {round}: its new parameters are gone")),
        Some(mean) if mean.value != mixed(values) => {
            Err(format!("round {round}: the mean is not that of its updates"))
        }
        Some(_) => Ok(()),
    }
}

/// The broker said something of the parameters of the round where it is asked, and nothing else.
fn judged(world: &World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    let asked = world.spec.evaluate.by_broker() && outcome.failure.is_none();
    match (&outcome.judgement, world.read(&outcome.parameters)) {
        (None, _) if !asked => Ok(()),
        (Some(Judgement::Missing(_)), _) if asked => Ok(()),
        (Some(Judgement::Judged(said)), Some(blob)) if asked && *said == judgement_of(&blob) => {
            Ok(())
        }
        (said, _) => Err(format!("round {round}: the broker judged {said:?}")),
    }
}

/// The versions before a round's that updates may be trained from.
fn late_bases(world: &World, round: RoundNumber) -> Vec<u64> {
    let Some(staleness) = world.spec.staleness() else { return Vec::new() };
    let made = world.published.range(..round).rev().map(|(_, outcome)| outcome);
    let made = made.filter(|outcome| outcome.failure.is_none());
    let made = made.filter_map(|outcome| world.read(&outcome.parameters));
    let first = std::iter::once(world.objects["first"].clone());
    let before = made.chain(first).skip(1).take(staleness.staleness_max as usize);
    before.map(|blob| blob.value).collect()
}

/// Whoever was at work when the round before ended is accounted for, and no update of an earlier
/// round counts again.
fn late_ones_once(world: &World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    let counted: BTreeSet<&DeviceId> = outcome.updates.iter().map(|(device, _)| device).collect();
    let missing: BTreeSet<&DeviceId> = outcome.missing.iter().map(|(device, _)| device).collect();
    let late: BTreeSet<&DeviceId> = outcome.stragglers.iter().collect();
    if world.spec.staleness().is_none() && !late.is_empty() {
        return Err(format!("round {round} leaves {late:?} behind"));
    }
    if let Some(twice) = late.iter().find(|it| counted.contains(*it) || missing.contains(*it)) {
        return Err(format!("round {round}: {twice} is at work, and accounted for"));
    }
    let before = world.published.range(..round).next_back();
    for device in before.iter().flat_map(|(_, outcome)| &outcome.stragglers) {
        if !counted.contains(device) && !missing.contains(device) && !late.contains(device) {
            return Err(format!("round {round} has lost {device}, which was at work before"));
        }
    }
    let earlier = world.published.range(..round).flat_map(|(_, outcome)| &outcome.updates);
    let earlier: BTreeSet<&BlobRef> = earlier.map(|(_, update)| &update.parameters).collect();
    match outcome.updates.iter().find(|(_, update)| earlier.contains(&update.parameters)) {
        Some((device, _)) => Err(format!("round {round} counts an update of {device} again")),
        None => Ok(()),
    }
}

/// Devices are counted once, in order, and missing ones have a reason that is true.
fn everyone_once(world: &World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    let counted: Vec<&DeviceId> = outcome.updates.iter().map(|(device, _)| device).collect();
    if !counted.is_sorted_by(|one, other| one < other) {
        return Err(format!("round {round} counts {counted:?}"));
    }
    let missing: BTreeSet<&DeviceId> = outcome.missing.iter().map(|(device, _)| device).collect();
    if let Some(both) = counted.iter().find(|device| missing.contains(**device)) {
        return Err(format!("round {round}: {both} is counted and missing"));
    }
    let quorum = world.spec.participation.quorum as usize;
    if outcome.failure.is_none() && counted.len() < quorum {
        return Err(format!("round {round} has {} updates, quorum is {quorum}", counted.len()));
    }
    for (device, failure) in &outcome.missing {
        let silent =
            matches!(failure.code, FailureCode::DeviceLost | FailureCode::DeadlineExceeded);
        let silent = silent && !masked::check::is_drop_out(&failure.message);
        if silent && outcome.failure.is_none() && was_in_time(world, round, device) {
            return Err(format!(
                "round {round}: {device} is missing, its update was stored in time: {failure:?}"
            ));
        }
    }
    Ok(())
}

/// What a device gave is blamed only where a check refused it, maybe as a late update's.
fn blamed(world: &World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    let first = if world.spec.staleness().is_some() { RoundNumber(0) } else { round };
    let was_refused = |device: &DeviceId| {
        let known = world.refused.range((first, device.clone())..);
        known.take_while(|(at, _)| *at <= round).any(|(_, other)| other == device)
    };
    let blamed = outcome.missing.iter().find(|(device, failure)| {
        failure.code == FailureCode::InvalidUpdate && !was_refused(device)
    });
    match blamed {
        Some((device, failure)) => {
            Err(format!("round {round}: {device} did nothing wrong: {failure:?}"))
        }
        None => Ok(()),
    }
}

/// Who is in quarantine, as the rounds before say, was not invited; nobody else was left out.
fn kept_out(world: &mut World, outcome: &Outcome) -> Result<(), String> {
    let round = outcome.round;
    let Some(policy) = world.spec.participation.quarantine else { return Ok(()) };
    let is_kept_out = |device: &DeviceId| {
        let (mut refused, mut until) = (Vec::new(), 0);
        for (RoundNumber(at), before) in &world.published {
            let mut missing = before.missing.iter();
            if missing.any(|(it, why)| it == device && why.code == FailureCode::InvalidUpdate) {
                refused.push(*at);
            }
            let newest = refused.iter().filter(|it| **it + policy.within > *at).count();
            if newest >= policy.refused as usize {
                refused.clear();
                until = at + policy.rounds;
            }
        }
        round.0 <= until
    };
    for (device, failure) in &outcome.missing {
        if is_kept_out(device) != (failure.code == FailureCode::Quarantined) {
            return Err(format!("round {round}: {device} is missing: {failure:?}"));
        }
    }
    if let Some((device, _)) = outcome.updates.iter().find(|(device, _)| is_kept_out(device)) {
        return Err(format!("round {round}: {device} counts and is in quarantine"));
    }
    let missing = outcome.missing.iter();
    let quarantined = missing.filter(|(_, failure)| failure.code == FailureCode::Quarantined);
    world.counts.kept_out += quarantined.count() as u64;
    Ok(())
}

/// Whether the stream had a usable update of this device well before the round closed.
fn was_in_time(world: &World, round: RoundNumber, device: &DeviceId) -> bool {
    let until = world.collecting_until.get(&round).copied().unwrap_or_default();
    let closed = world.closed.get(&round).copied().unwrap_or_default();
    let until = until.min(closed.saturating_sub(ON_THE_WAY));
    let stored = world.stream.iter().any(|(at, report)| {
        let mine = report.device == *device && report.task.round == round;
        mine && *at <= until && matches!(report.body, ReportBody::Trained(_))
    });
    stored && !was_refused(world, round, device)
}

/// Whether a device reported another update before under the same name.
fn is_remade(world: &World, device: &DeviceId, parameters: &BlobRef) -> bool {
    world.stream.iter().any(|(_, report)| {
        matches!(&report.body, ReportBody::Trained(other)
            if report.device == *device
                && other.parameters.name == parameters.name
                && other.parameters.digest != parameters.digest)
    })
}

/// Whether an update of this device may have been refused, so that it was asked for another one.
fn was_refused(world: &World, round: RoundNumber, device: &DeviceId) -> bool {
    let prefix = format!("update/01job/{round}/{device}/");
    let mut objects = world.objects.range(prefix.clone()..);
    let mine = objects.by_ref().take_while(|(name, _)| name.starts_with(&prefix));
    let mine: Vec<_> = mine.filter(|(name, _)| !name.contains(" in ")).collect();
    let reports: Vec<_> = world
        .stream
        .iter()
        .map(|(_, report)| report)
        .filter(|report| {
            let mine = report.device == *device && report.task.round == round;
            mine && report.task.purpose == Purpose::Train && report.body.is_final()
        })
        .collect();
    // Made again after a crash, before which the first one was reported.
    let was_replaced = |(name, blob): &(&String, &Blob)| {
        let now = reference(name, blob);
        reports.iter().any(|report| {
            matches!(&report.body, ReportBody::Trained(update)
                if update.parameters.name == now.name && update.parameters != now)
        })
    };
    let is_bad = |(_, blob): &(&String, &Blob)| blob.bad;
    mine.len() > 1 || reports.len() > 1 || mine.iter().any(|it| is_bad(it) || was_replaced(it))
}

/// The training is over.
pub(crate) fn at_end(world: &World) -> Result<(), String> {
    let ending = world.ended.as_ref().expect("it has ended");
    let good: Vec<&Outcome> =
        world.published.values().filter(|outcome| outcome.failure.is_none()).collect();
    let is_spent = private::is_spent(world, ending, good.len());
    if is_spent && good.is_empty() {
        return Ok(());
    }
    let Some(model) = &ending.model else { return Err(format!("it failed: {ending:?}")) };
    if good.len() != world.spec.rounds as usize && !is_spent {
        return Err(format!("{} rounds for {}", good.len(), world.spec.rounds));
    }
    let last = good.last().map(|outcome| &outcome.parameters);
    match &world.registered[..] {
        [(parameters, known)] if Some(parameters) == last && known == model => Ok(()),
        other => Err(format!("registered: {other:?}")),
    }
}
