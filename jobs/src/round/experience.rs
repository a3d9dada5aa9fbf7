//! What a training has seen of its devices, and whom it asks next because of that.
//!
//! It holds bounded numbers, never a clock or a generator: the same history and seed rank the
//! same devices alike, on every broker.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::select::{invited, share_of, shuffled};
use super::{DEVICES_MAX, Effect, Event, Outcome, Plan, Round};
use crate::id::{DeviceId, Millis, RoundNumber};
use crate::report::FailureCode;
use crate::spec::{Participation, Purpose, Selection};

/// Devices that are remembered, at most: the stored state has to fit into one message.
const REMEMBERED_MAX: usize = 1000;

/// What a training has seen of its devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Experience(BTreeMap<DeviceId, Seen>);

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
        self.0.is_empty()
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
        let seen = self.0.entry(device.clone()).or_default();
        if seen.round == round && seen.times > 0 {
            return;
        }
        seen.round = round;
        seen.times = seen.times.saturating_add(1);
        if self.0.len() > REMEMBERED_MAX {
            let oldest = self.0.iter().min_by_key(|(device, seen)| (seen.round, *device));
            if let Some(oldest) = oldest.map(|(device, _)| device.clone()) {
                self.0.remove(&oldest);
            }
        }
    }

    /// A round ended, in which updates had so long.
    fn ended(&mut self, outcome: &Outcome, deadline: Millis) {
        for (device, update) in &outcome.updates {
            let Some(seen) = self.0.get_mut(device) else { continue };
            #[expect(clippy::cast_possible_truncation, reason = "losses are compared roughly")]
            let loss = update.initial_loss.unwrap_or(update.loss) as f32;
            seen.loss = Some(loss).filter(|loss| loss.is_finite()).or(seen.loss);
            seen.took = Some(update.duration_ms);
        }
        for (device, failure) in &outcome.missing {
            let slow =
                matches!(failure.code, FailureCode::DeadlineExceeded | FailureCode::DeviceLost);
            if let (true, Some(seen)) = (slow, self.0.get_mut(device)) {
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
            Selection::RoundRobin => devices.sort_by_key(|device| {
                let Seen { round, times, .. } = self.seen(device);
                (round, times)
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
        self.0.get(device).copied().unwrap_or_default()
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn device(number: usize) -> DeviceId {
        DeviceId::parse(&format!("d{number}")).unwrap()
    }

    fn devices(count: usize) -> Vec<DeviceId> {
        (0..count).map(device).collect()
    }

    fn participation(devices: u32, selection: &str) -> Participation {
        let selection = selection.parse().unwrap();
        Participation { devices: Some(devices), selection, ..Participation::default() }
    }

    /// A round of these devices: each with its loss and time, or without an update.
    fn outcome(round: u32, members: &[(DeviceId, Option<(f64, u64)>)]) -> Outcome {
        let blob = json!({"digest": format!("sha256:{:064}", 0), "size": 1});
        let update = |(device, told): &(DeviceId, Option<(f64, u64)>)| {
            let (loss, took) = (*told)?;
            Some(json!([device, {"parameters": blob, "examples": 1, "loss": loss, "accuracy": 0.5,
                "steps": 1, "duration_ms": took, "engine": "e"}]))
        };
        let updates: Vec<_> = members.iter().filter_map(update).collect();
        let missing = members.iter().filter(|(_, told)| told.is_none());
        let missing: Vec<_> = missing
            .map(|(device, _)| json!([device, {"code": "deadline_exceeded", "message": ""}]))
            .collect();
        serde_json::from_value(json!({"round": round, "parameters": blob, "failure": null,
            "updates": updates, "evaluations": [], "missing": missing, "started_at": 0,
            "ended_at": 1}))
        .unwrap()
    }

    fn seen(told: &[(usize, Option<(f64, u64)>)]) -> Experience {
        let mut experience = Experience::default();
        let members: Vec<_> = told.iter().map(|(number, told)| (device(*number), *told)).collect();
        for (device, _) in &members {
            experience.invited(RoundNumber(1), device);
        }
        experience.ended(&outcome(1, &members), Millis(60_000));
        experience
    }

    fn selection() -> impl Strategy<Value = String> {
        let words = [
            "random",
            "fraction:0.5",
            "round_robin",
            "cyclic",
            "by_loss",
            "by_loss:3",
            "by_speed",
            "by_speed:0.5",
            "by_speed:1",
            "windows",
        ];
        prop::sample::select(words.map(str::to_owned).to_vec())
    }

    fn told() -> impl Strategy<Value = Vec<(usize, Option<(f64, u64)>)>> {
        let one = prop::option::weighted(0.8, (0_u8..8, 0_u64..8));
        let one = one.prop_map(|told| told.map(|(loss, took)| (f64::from(loss), took)));
        prop::collection::btree_map(0..20_usize, one, 0..20)
            .prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn everyone_is_ranked_once_and_alike_whatever_the_order(
            told in told(),
            selection in selection(),
            count in 0..20_usize,
            wanted in 1..10_u32,
            seed: u64,
        ) {
            let (experience, participation) = (seen(&told), participation(wanted, &selection));
            let ranked = experience.ranked(seed, &participation, &devices(count), None);
            let mut sorted = ranked.clone();
            sorted.sort();
            let mut expected = devices(count);
            expected.sort();
            prop_assert_eq!(sorted, expected);
            let reversed: Vec<DeviceId> =
                devices(count).into_iter().rev().chain(devices(count)).collect();
            prop_assert_eq!(experience.ranked(seed, &participation, &reversed, None), ranked);
            let stored = serde_json::to_string(&experience).unwrap();
            prop_assert_eq!(serde_json::from_str::<Experience>(&stored).unwrap(), experience);
        }

        /// Nobody has a second turn before everyone had the first, whoever is there.
        #[test]
        fn turns_go_round(count in 1..12_usize, wanted in 1..5_u32, seed: u64) {
            let participation = participation(wanted, "round_robin");
            let mut experience = Experience::default();
            let mut turns = vec![0_u32; count];
            for round in 1..30 {
                let ranked = experience.ranked(seed ^ round, &participation, &devices(count), None);
                for chosen in ranked.iter().take(wanted as usize) {
                    experience.invited(RoundNumber(u32::try_from(round).unwrap()), chosen);
                    turns[devices(count).iter().position(|device| device == chosen).unwrap()] += 1;
                }
                let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{:?}", turns);
            }
        }

        /// The next one is who follows the last one in the order of ids, of those that are there,
        /// found by walking; who gives nothing is asked again when its turn comes.
        #[test]
        fn one_follows_the_other_in_a_fixed_order(
            rounds in prop::collection::vec(
                (prop::collection::vec(any::<bool>(), 5), any::<bool>()), 1..40),
            seed: u64,
        ) {
            let participation = participation(1, "cyclic");
            let mut experience = Experience::default();
            let mut last: Option<(DeviceId, RoundNumber)> = None;
            let mut place = 0;
            let mut tried = BTreeSet::new();
            for (number, (there, gives)) in (1..).zip(rounds) {
                let there: Vec<usize> = (0..5).filter(|device| there[*device]).collect();
                let names: Vec<DeviceId> = there.iter().map(|number| device(*number)).collect();
                let ranked = experience.ranked(seed, &participation, &names, last.as_ref());
                // Those that gave nothing since the last one did come last.
                let mut walk = (place..place + 5).map(|at| at % 5).filter(|at| there.contains(at));
                let fresh = walk.clone().find(|at| !tried.contains(at));
                let Some(first) = fresh.or_else(|| walk.next()) else { continue };
                if fresh.is_some() {
                    prop_assert_eq!(&ranked[0], &device(first));
                }
                experience.invited(RoundNumber(number), &ranked[0]);
                if gives {
                    last = Some((ranked[0].clone(), RoundNumber(number)));
                    place = (0..5).find(|at| device(*at) == ranked[0]).unwrap() + 1;
                    tried.clear();
                } else {
                    tried.insert(first);
                }
            }
        }

        /// No candidate who stays at home has a higher loss than one who is invited.
        #[test]
        fn the_highest_losses_are_invited(told in told(), wanted in 1..10_usize, seed: u64) {
            let experience = seen(&told);
            let participation = participation(u32::try_from(wanted).unwrap(), "by_loss");
            let ranked = experience.ranked(seed, &participation, &devices(20), None);
            let known: BTreeMap<DeviceId, _> =
                told.iter().map(|(number, told)| (device(*number), *told)).collect();
            // Never asked: infinite. Asked without an answer: less than any loss.
            let worth = |device: &DeviceId| match known.get(device) {
                None => f64::INFINITY,
                Some(told) => told.map_or(-1.0, |(loss, _)| loss),
            };
            let least = ranked[..wanted].iter().map(worth).reduce(f64::min).unwrap();
            let most = ranked[wanted..].iter().map(worth).reduce(f64::max).unwrap();
            prop_assert!(least >= most, "{:?}", ranked);
        }

        /// Of the places that are not explored, none has a slower device than one that stays at
        /// home; the explored ones have devices that are not known while there are any.
        #[test]
        fn the_fastest_are_invited_and_some_are_explored(
            told in told(),
            wanted in 1..10_usize,
            explored in 0..4_usize,
            seed: u64,
        ) {
            let experience = seen(&told);
            let explored = explored.min(wanted);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let selection = format!("by_speed:{}", explored as f64 / wanted as f64);
            let participation = participation(u32::try_from(wanted).unwrap(), &selection);
            let ranked = experience.ranked(seed, &participation, &devices(20), None);
            let took: BTreeMap<DeviceId, u64> = told
                .iter()
                .map(|(number, told)| (device(*number), told.map_or(60_000, |(_, took)| took)))
                .collect();
            let exploit = (wanted - explored).min(took.len());
            let slowest = ranked[..exploit].iter().map(|device| took[device]).max();
            let others = ranked[exploit..].iter().filter_map(|device| took.get(device));
            prop_assert!(slowest <= others.min().copied().or(Some(u64::MAX)), "{:?}", ranked);
            let unknown = |devices: &[DeviceId]| {
                devices.iter().filter(|device| !took.contains_key(*device)).count()
            };
            let new = unknown(&ranked[exploit..wanted]);
            prop_assert_eq!(new, (wanted - exploit).min(20 - took.len()));
        }
    }

    #[test]
    fn candidates_are_drawn_at_random_before_losses_are_compared() {
        let told: Vec<_> = (0..20_u32).map(|n| (n as usize, Some((f64::from(n), 1)))).collect();
        let experience = seen(&told);
        let participation = participation(1, "by_loss:2");
        let mut chosen = BTreeSet::new();
        for seed in 0..40 {
            let ranked = experience.ranked(seed, &participation, &devices(20), None);
            let losses: Vec<f32> =
                ranked[..2].iter().map(|device| experience.seen(device).loss.unwrap()).collect();
            assert!(losses[0] >= losses[1], "{losses:?}");
            chosen.insert(ranked[0].clone());
        }
        assert!(chosen.len() > 5, "{chosen:?}");
        assert!(!chosen.contains(&device(0)), "the lowest loss wins against nobody");
    }

    #[test]
    fn memory_is_bounded_and_forgets_whose_turn_is_the_longest_ago() {
        let mut experience = Experience::default();
        for number in 0..REMEMBERED_MAX + 5 {
            let round = RoundNumber(u32::try_from(number / 10 + 1).unwrap());
            experience.invited(round, &device(number));
            experience.invited(round, &device(number));
        }
        assert_eq!(experience.0.len(), REMEMBERED_MAX);
        assert_eq!(experience.seen(&device(0)).times, 0);
        assert_eq!(experience.seen(&device(REMEMBERED_MAX)).times, 1, "once in a round");
        let stored = serde_json::to_string(&experience).unwrap();
        assert!(stored.len() < 40_000, "{}", stored.len());
    }

    #[test]
    fn what_is_no_number_is_not_remembered() {
        let mut experience = seen(&[(0, Some((2.0, 5)))]);
        let mut worst = outcome(2, &[(device(0), Some((1.0, 7)))]);
        worst.updates[0].1.loss = f64::INFINITY;
        experience.ended(&worst, Millis(1));
        let seen = experience.seen(&device(0));
        assert_eq!((seen.loss, seen.took), (Some(2.0), Some(Millis(7))));
    }
}
