//! What a training has seen of its devices, and whom it asks next because of that.
//!
//! It holds bounded numbers, never a clock or a generator: the same history and seed rank the
//! same devices alike, on every broker.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, Serializer};

use super::select::{invited, rank, share_of, shuffled};
use super::{DEVICES_MAX, Effect, Event, Outcome, Plan, Round};
use crate::id::{DeviceId, Millis, RoundNumber};
use crate::report::FailureCode;
use crate::spec::{Participation, Purpose, Selection};

/// Devices that are remembered, at most: the stored state has to fit into one message.
const REMEMBERED_MAX: usize = 1000;

/// What a training has seen of its devices.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Stored<BTreeMap<DeviceId, Seen>>")]
pub struct Experience {
    /// Those that were invited last.
    seen: BTreeMap<DeviceId, Seen>,
    /// Where turns go round.
    turns: Option<Turns>,
}

/// Turns go round in an order that a seed decides, so that little has to be known of devices that
/// are forgotten: those that follow the last of these were not invited for the longest time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Turns {
    seed: u64,
    /// Who was forgotten last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<DeviceId>,
}

impl Turns {
    /// How far behind the last one that was forgotten a device has its turn.
    fn distance(&self, device: &DeviceId) -> u64 {
        let place = |device: &DeviceId| rank(self.seed, device);
        let start = self.forgotten.as_ref().map_or(0, |last| place(last).wrapping_add(1));
        place(device).wrapping_sub(start)
    }
}

/// As it is stored: without turns it is what was seen alone.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored<S> {
    Turns { seen: S, turns: Turns },
    Seen(S),
}

impl From<Stored<BTreeMap<DeviceId, Seen>>> for Experience {
    fn from(stored: Stored<BTreeMap<DeviceId, Seen>>) -> Self {
        match stored {
            Stored::Turns { seen, turns } => Self { seen, turns: Some(turns) },
            Stored::Seen(seen) => Self { seen, turns: None },
        }
    }
}

impl Serialize for Experience {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seen = &self.seen;
        match self.turns.clone() {
            Some(turns) => Stored::Turns { seen, turns }.serialize(serializer),
            None => Stored::Seen(seen).serialize(serializer),
        }
    }
}

/// What was seen of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Packed", into = "Packed")]
struct Seen {
    /// The newest round to which it was invited.
    round: RoundNumber,
    /// How often it was invited.
    times: u32,
    /// The loss of its last update: of the round's parameters if it told, else of its training.
    loss: Option<f32>,
    /// How long its last update took; the whole time that it had, when none came.
    took: Option<Millis>,
}

/// Short, as there may be many.
type Packed = (RoundNumber, u32, Option<f32>, Option<Millis>);

impl From<Packed> for Seen {
    fn from((round, times, loss, took): Packed) -> Self {
        Self { round, times, loss, took }
    }
}

impl From<Seen> for Packed {
    fn from(seen: Seen) -> Self {
        (seen.round, seen.times, seen.loss, seen.took)
    }
}

impl Experience {
    /// Whether nothing was seen yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Applies an event on a task of round `of` to the round at work, which invites first whom its
    /// selection prefers, and learns from what follows. `last` is the device whose update was the
    /// last one that counted, with its round, where one device trains after another.
    pub(crate) fn step(
        &mut self,
        now: Millis,
        round: &mut Round,
        of: RoundNumber,
        event: &Event,
        last: Option<&(DeviceId, RoundNumber)>,
    ) -> Vec<Effect> {
        let step = |round: &mut Round, event: &Event| {
            if round.plan().round == of {
                round.step(now, event)
            } else {
                round.step_earlier(now, of, event).unwrap_or_default()
            }
        };
        if !round.plan().participation.selection.remembers() {
            return step(round, event);
        }
        let Plan { round: number, seed, participation, .. } = round.plan().clone();
        if participation.selection == Selection::RoundRobin {
            self.turns.get_or_insert(Turns { seed, forgotten: None });
        }
        let effects = if let Event::DevicesFound { devices } = event {
            let devices = self.ranked(seed, &participation, devices, last);
            step(round, &Event::DevicesFound { devices })
        } else {
            step(round, event)
        };
        for effect in &effects {
            match effect {
                Effect::Offer { device, purpose: Purpose::Train, .. } => {
                    self.invited(number, device);
                }
                Effect::End(outcome) => self.ended(outcome, participation.deadline_ms),
                Effect::Offer { .. }
                | Effect::FindDevices
                | Effect::Withdraw { .. }
                | Effect::CheckUpdate { .. }
                | Effect::CheckMessage { .. }
                | Effect::Unmask { .. }
                | Effect::Earlier { .. }
                | Effect::Evaluate { .. }
                | Effect::Aggregate { .. } => {}
            }
        }
        effects
    }

    /// A device is invited to a round.
    fn invited(&mut self, round: RoundNumber, device: &DeviceId) {
        let seen = self.seen.entry(device.clone()).or_default();
        if seen.round == round && seen.times > 0 {
            return;
        }
        seen.round = round;
        seen.times = seen.times.saturating_add(1);
        if self.seen.len() > REMEMBERED_MAX {
            let oldest = self
                .seen
                .iter()
                .min_by_key(|(device, seen)| (seen.round, self.turn(device), *device));
            if let Some(oldest) = oldest.map(|(device, _)| device.clone()) {
                self.seen.remove(&oldest);
                if let Some(turns) = &mut self.turns {
                    turns.forgotten = Some(oldest);
                }
            }
        }
    }

    /// A round ended, in which updates had so long.
    fn ended(&mut self, outcome: &Outcome, deadline: Millis) {
        for (device, update) in &outcome.updates {
            let Some(seen) = self.seen.get_mut(device) else { continue };
            #[expect(clippy::cast_possible_truncation, reason = "losses are compared roughly")]
            let loss = update.initial_loss.unwrap_or(update.loss) as f32;
            seen.loss = Some(loss).filter(|loss| loss.is_finite()).or(seen.loss);
            seen.took = Some(update.duration_ms);
        }
        for (device, failure) in &outcome.missing {
            let slow =
                matches!(failure.code, FailureCode::DeadlineExceeded | FailureCode::DeviceLost);
            if let (true, Some(seen)) = (slow, self.seen.get_mut(device)) {
                seen.took = Some(deadline);
            }
        }
    }

    /// Eligible devices, each once, those to be invited first; bounded. The order in which they
    /// are given does not matter.
    fn ranked(
        &self,
        seed: u64,
        participation: &Participation,
        devices: &[DeviceId],
        last: Option<&(DeviceId, RoundNumber)>,
    ) -> Vec<DeviceId> {
        let mut devices = shuffled(seed, devices);
        let places = invited(participation, devices.len()).min(devices.len());
        match &participation.selection {
            Selection::Random | Selection::Fraction { .. } | Selection::Windows { .. } => {}
            Selection::RoundRobin => devices.sort_by_cached_key(|device| {
                let Seen { round, times, .. } = self.seen(device);
                (round, times, self.turn(device))
            }),
            Selection::Cyclic => devices.sort_by_cached_key(|device| {
                // Who was asked since then and gave nothing has had its turn.
                let since = last.map_or(RoundNumber(0), |(_, round)| *round);
                let tried = Some(self.seen(device).round).filter(|round| *round > since);
                let next_cycle = last.is_some_and(|(last, _)| device <= last);
                (tried, next_cycle, device.clone())
            }),
            Selection::ByLoss { candidates } => {
                let candidates = candidates.map_or(devices.len(), |count| count as usize);
                let candidates = candidates.max(places).min(devices.len());
                devices[..candidates].sort_by(|a, b| self.seen(a).by_loss(self.seen(b)));
            }
            Selection::BySpeed { exploration } => {
                devices = self.by_speed(devices, places, *exploration);
            }
        }
        devices.truncate(DEVICES_MAX);
        devices
    }

    fn seen(&self, device: &DeviceId) -> Seen {
        self.seen.get(device).copied().unwrap_or_default()
    }

    /// When a device has its turn, as far as that is not known by when it was invited.
    fn turn(&self, device: &DeviceId) -> u64 {
        self.turns.as_ref().map_or(0, |turns| turns.distance(device))
    }

    /// The fastest ones, then those that are explored, then the others, the fastest ones first.
    fn by_speed(&self, devices: Vec<DeviceId>, places: usize, exploration: f64) -> Vec<DeviceId> {
        let (mut known, mut unknown): (Vec<DeviceId>, Vec<DeviceId>) =
            devices.into_iter().partition(|device| self.seen(device).took.is_some());
        let shuffled = known.clone();
        known.sort_by_key(|device| self.seen(device).took);
        // A device that never answers has to leave room for others.
        unknown.sort_by_key(|device| self.seen(device).times);
        let explored = share_of(places, exploration.min(1.0)).min(places);
        let fastest = known.iter().take(places - explored).cloned();
        let mut ranked: Vec<DeviceId> = fastest.collect();
        let mut taken: BTreeSet<DeviceId> = ranked.iter().cloned().collect();
        for device in unknown.iter().chain(&shuffled) {
            if ranked.len() < places && taken.insert(device.clone()) {
                ranked.push(device.clone());
            }
        }
        ranked.extend(known.into_iter().chain(unknown).filter(|device| !taken.contains(device)));
        ranked
    }
}

impl Seen {
    /// Those that were never asked first, then the highest loss, then those of whom nothing came.
    fn by_loss(self, other: Self) -> Ordering {
        let group = |seen: Self| match (seen.times, seen.loss) {
            (0, _) => 0,
            (_, Some(_)) => 1,
            (_, None) => 2,
        };
        let loss = |seen: Self| seen.loss.unwrap_or_default();
        group(self)
            .cmp(&group(other))
            .then(loss(other).total_cmp(&loss(self)))
            .then(if group(self) == 2 { self.times.cmp(&other.times) } else { Ordering::Equal })
    }
}

#[cfg(test)]
mod tests;
