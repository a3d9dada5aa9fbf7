//! Whom a round invites first.

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
    prop::collection::btree_map(0..20_usize, one, 0..20).prop_map(|map| map.into_iter().collect())
}

/// Nobody has a second turn before everyone had the first.
fn turns(count: usize, wanted: u32, rounds: u64, seed: u64) -> Result<(), TestCaseError> {
    let participation = participation(wanted, "round_robin");
    let turns = Some(Turns { seed, forgotten: None });
    let mut experience = Experience { turns, ..Experience::default() };
    let devices = devices(count);
    let mut turns: BTreeMap<&DeviceId, u32> = devices.iter().map(|it| (it, 0)).collect();
    for round in 1..rounds {
        let stored = serde_json::to_string(&experience).unwrap();
        experience = serde_json::from_str(&stored).unwrap();
        let ranked = experience.ranked(seed ^ round, &participation, &devices, None);
        for chosen in ranked.iter().take(wanted as usize) {
            experience.invited(RoundNumber(u32::try_from(round).unwrap()), chosen);
            *turns.get_mut(chosen).unwrap() += 1;
        }
        let (least, most) = (turns.values().min().unwrap(), turns.values().max().unwrap());
        prop_assert!(most - least <= 1, "{} to {} turns in round {}", least, most, round);
    }
    Ok(())
}

/// Of most of these devices nothing is known any more when they have their next turn.
#[test]
fn turns_go_round_among_more_devices_than_are_remembered() {
    turns(REMEMBERED_MAX * 5 / 2, 500, 25, 7).unwrap();
    turns(REMEMBERED_MAX + 1, 300, 25, 8).unwrap();
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
        turns(count, wanted, 30, seed)?;
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
    assert_eq!(experience.seen.len(), REMEMBERED_MAX);
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
