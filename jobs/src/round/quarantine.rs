//! Which devices a training does not invite, because updates of theirs were refused.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Event, Outcome};
use crate::id::{DeviceId, RoundNumber};
use crate::report::{Failure, FailureCode};
use crate::spec::Quarantine;

/// Devices that are remembered, at most: the stored state has to fit into one message.
const REMEMBERED_MAX: usize = 1000;
/// Devices that a failure names, at most.
const NAMED_MAX: usize = 5;

/// What a training has against its devices; bounded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quarantines {
    /// Of whom updates were refused lately, or who is not invited.
    devices: BTreeMap<DeviceId, Conduct>,
    /// Who would have taken part in the round at work.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    barred: BTreeSet<DeviceId>,
}

/// What is known of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Conduct {
    /// The newest rounds that refused an update, ascending: fewer than it takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refused: Vec<RoundNumber>,
    /// The last round to which it is not invited.
    until: RoundNumber,
}

impl Quarantines {
    /// Whether nothing is held against anyone.
    pub(crate) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The event without the devices that are not to be invited to this round.
    pub(crate) fn admitted<'a>(&mut self, round: RoundNumber, event: &'a Event) -> Cow<'a, Event> {
        let Event::DevicesFound { devices } = event else { return Cow::Borrowed(event) };
        let is_barred = |device: &&DeviceId| {
            self.devices.get(*device).is_some_and(|conduct| round <= conduct.until)
        };
        let (barred, admitted): (Vec<&DeviceId>, Vec<&DeviceId>) =
            devices.iter().partition(is_barred);
        if barred.is_empty() {
            return Cow::Borrowed(event);
        }
        self.barred.extend(barred.into_iter().cloned());
        Cow::Owned(Event::DevicesFound { devices: admitted.into_iter().cloned().collect() })
    }

    /// A round ended. Its outcome says from now on who was not invited, and who will not be. A rule
    /// leaves as many out as may be wrong, `left_out_max`, also where none of them is: no more
    /// than that are kept out for it at a time.
    pub(crate) fn ended(
        &mut self,
        policy: &Quarantine,
        left_out_max: usize,
        outcome: &mut Outcome,
    ) {
        self.tell_barred(outcome);
        let round = outcome.round;
        let kept_out = self.devices.values().filter(|conduct| round < conduct.until).count();
        let suspects = policy.left_out && kept_out < left_out_max;
        let left_out = outcome.left_out().filter(|_| suspects);
        let refused = outcome.refused().chain(left_out);
        let refused: BTreeSet<DeviceId> = refused.map(|(device, _)| device.clone()).collect();
        for device in refused {
            let conduct = self.devices.entry(device.clone()).or_default();
            conduct.refused.push(round);
            conduct.forget(policy, round);
            if conduct.refused.len() >= policy.refused as usize {
                conduct.refused.clear();
                conduct.until = RoundNumber(round.0.saturating_add(policy.rounds));
                tell_quarantined(outcome, &device, conduct.until);
            }
        }
        self.devices.retain(|_, conduct| {
            conduct.forget(policy, round);
            !conduct.refused.is_empty() || round < conduct.until
        });
        while self.devices.len() > REMEMBERED_MAX {
            let least = self.devices.iter().min_by_key(|(device, conduct)| {
                (conduct.until, conduct.refused.last().copied(), *device)
            });
            let Some(least) = least.map(|(device, _)| device.clone()) else { return };
            self.devices.remove(&least);
        }
    }

    /// Names those who were not invited as missing, and as a reason when there was no quorum.
    fn tell_barred(&mut self, outcome: &mut Outcome) {
        let barred = std::mem::take(&mut self.barred);
        let barred: Vec<(DeviceId, RoundNumber)> = barred
            .into_iter()
            .filter_map(|device| {
                let until = self.devices.get(&device)?.until;
                Some((device, until))
            })
            .collect();
        if let Some(failure) = &mut outcome.failure
            && failure.code == FailureCode::NoQuorum
            && !barred.is_empty()
        {
            let named = barred.iter().take(NAMED_MAX);
            let named: Vec<String> =
                named.map(|(device, until)| format!("{device} up to round {until}")).collect();
            let more = barred.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let text = format!("; in quarantine: {}{more}", named.join(", "));
            failure.message.push_str(&text);
        }
        for (device, until) in barred {
            // One that was at work already may have answered.
            let took_part = outcome.updates.iter().any(|(other, _)| *other == device)
                || outcome.stragglers.contains(&device);
            let place = outcome.missing.binary_search_by(|(other, _)| other.cmp(&device));
            if let (false, Err(place)) = (took_part, place) {
                let message = format!("not invited up to round {until}: its updates were refused");
                let failure = Failure::new(FailureCode::Quarantined, message);
                outcome.missing.insert(place, (device, failure));
            }
        }
    }
}

impl Conduct {
    /// Lets go of rounds that do not count any more.
    fn forget(&mut self, policy: &Quarantine, now: RoundNumber) {
        self.refused.retain(|round| now.0 - round.0 < policy.within);
    }
}

/// Says where its update was refused that a device is not invited from now on.
fn tell_quarantined(outcome: &mut Outcome, device: &DeviceId, until: RoundNumber) {
    let text = format!("; not invited up to round {until}");
    let failure = outcome.missing.iter_mut().find(|(other, _)| other == device);
    let influence = outcome.influences.iter_mut().find(|(other, _)| other == device);
    if let Some((_, failure)) = failure {
        failure.message.push_str(&text);
    } else if let Some((_, influence)) = influence {
        influence.reason.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn device(number: usize) -> DeviceId {
        DeviceId::parse(&format!("d{number}")).unwrap()
    }

    fn found(count: usize) -> Event {
        Event::DevicesFound { devices: (0..count).map(device).collect() }
    }

    /// A round in which these were refused by a check, and those left out by a rule.
    fn outcome(round: u32, refused: &[usize], left_out: &[usize], failure: &Value) -> Outcome {
        let blob = json!({"digest": format!("sha256:{:064}", 0), "size": 1});
        let named = |numbers: &[usize], what: &Value| {
            let numbers: BTreeSet<usize> = numbers.iter().copied().collect();
            numbers.iter().map(|number| json!([device(*number), what])).collect::<Vec<_>>()
        };
        let missing = named(refused, &json!({"code": "invalid_update", "message": "NaN"}));
        let influences = named(left_out, &json!({"verdict": "refused", "reason": "far off"}));
        serde_json::from_value(json!({"round": round, "parameters": blob, "failure": failure,
            "updates": [], "evaluations": [], "missing": missing, "influences": influences,
            "started_at": 0, "ended_at": 1}))
        .unwrap()
    }

    /// Devices of the fleet that are not admitted to a round.
    fn barred(quarantines: &mut Quarantines, round: u32, count: usize) -> BTreeSet<usize> {
        let event = quarantines.admitted(RoundNumber(round), &found(count)).into_owned();
        let Event::DevicesFound { devices } = event else { panic!("{event:?}") };
        (0..count).filter(|number| !devices.contains(&device(*number))).collect()
    }

    /// All refusals of a device, and from them whether it is invited: the slow way.
    #[derive(Default)]
    struct Reference {
        refused: Vec<u32>,
        barred: BTreeSet<u32>,
    }

    impl Reference {
        fn refuse(&mut self, policy: &Quarantine, round: u32) {
            self.refused.push(round);
            let last = self.barred.last().copied().unwrap_or(0);
            let counts = |at: &&u32| **at > last && **at + policy.within > round;
            if self.refused.iter().filter(counts).count() >= policy.refused as usize {
                self.barred.extend(round + 1..=round + policy.rounds);
                // What led to it does not count again.
                self.refused.clear();
            }
        }
    }

    proptest! {
        #[test]
        fn devices_are_kept_out_as_the_reference_says(
            wanted in 1..4_u32,
            more in 0..6_u32,
            rounds in 1..6_u32,
            left_out: bool,
            history in prop::collection::vec(
                (prop::collection::btree_set(0..5_usize, 0..4), any::<bool>()), 1..40),
        ) {
            let policy = Quarantine { refused: wanted, within: wanted + more, rounds, left_out };
            let mut quarantines = Quarantines::default();
            let mut references: Vec<Reference> = (0..5).map(|_| Reference::default()).collect();
            for (round, (refused, by_rule)) in (1..).zip(history) {
                let kept_out = barred(&mut quarantines, round, 5);
                let expected: BTreeSet<usize> =
                    (0..5).filter(|it| references[*it].barred.contains(&round)).collect();
                prop_assert_eq!(&kept_out, &expected, "round {}", round);
                // Whoever is not invited gives nothing that could be refused.
                let refused: Vec<usize> = refused.difference(&kept_out).copied().collect();
                let (checked, by_the_rule): (&[usize], &[usize]) =
                    if by_rule { (&[], &refused) } else { (&refused, &[]) };
                let mut outcome = outcome(round, checked, by_the_rule, &Value::Null);
                quarantines.ended(&policy, 5, &mut outcome);
                if left_out || !by_rule {
                    for number in &refused {
                        references[*number].refuse(&policy, round);
                    }
                }
                let told = outcome.missing.iter();
                let told = told.filter(|(_, it)| it.code == FailureCode::Quarantined);
                let told: Vec<DeviceId> = told.map(|(device, _)| device.clone()).collect();
                prop_assert_eq!(told, kept_out.iter().map(|it| device(*it)).collect::<Vec<_>>());
                prop_assert!(outcome.missing.is_sorted_by(|one, two| one.0 < two.0));
                let stored = serde_json::to_string(&quarantines).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Quarantines>(&stored).unwrap(), &quarantines);
            }
        }
    }

    #[test]
    fn the_outcome_says_who_is_not_invited_and_until_when() {
        let policy = Quarantine { refused: 1, within: 1, rounds: 3, left_out: true };
        let mut quarantines = Quarantines::default();
        let mut first = outcome(4, &[1], &[2], &Value::Null);
        quarantines.ended(&policy, 2, &mut first);
        assert_eq!(first.missing[0].1.message, "NaN; not invited up to round 7");
        assert_eq!(first.influences[0].1.reason, "far off; not invited up to round 7");
        let refusals: Vec<String> = first.refusals().map(|(_, reason)| reason).collect();
        assert!(refusals.iter().all(|reason| reason.ends_with("up to round 7")), "{refusals:?}");
        assert_eq!(barred(&mut quarantines, 5, 4), BTreeSet::from([1, 2]));
        let no_quorum = json!({"code": "no_quorum", "message": "2 eligible"});
        let mut second = outcome(5, &[], &[], &no_quorum);
        quarantines.ended(&policy, 2, &mut second);
        let text = "2 eligible; in quarantine: d1 up to round 7, d2 up to round 7";
        assert_eq!(second.failure.unwrap().message, text);
        let missing = second.missing.iter();
        let missing: Vec<_> = missing.map(|(device, it)| (device.as_str(), it.code)).collect();
        assert_eq!(missing, [("d1", FailureCode::Quarantined), ("d2", FailureCode::Quarantined)]);
        assert_eq!(barred(&mut quarantines, 8, 4), BTreeSet::new());
    }

    #[test]
    fn a_failure_names_some_of_many() {
        let policy = Quarantine { refused: 1, ..Quarantine::default() };
        let mut quarantines = Quarantines::default();
        let all: Vec<usize> = (0..2 * REMEMBERED_MAX).collect();
        quarantines.ended(&policy, 0, &mut outcome(1, &all, &[], &Value::Null));
        assert_eq!(quarantines.devices.len(), REMEMBERED_MAX, "those that come last");
        assert_eq!(barred(&mut quarantines, 2, all.len()).len(), REMEMBERED_MAX);
        let mut next = outcome(2, &[], &[], &json!({"code": "no_quorum", "message": "none"}));
        quarantines.ended(&policy, 0, &mut next);
        let text = next.failure.unwrap().message;
        assert!(text.ends_with("and 995 more") && text.len() < 250, "{text}");
        assert_eq!(next.missing.len(), REMEMBERED_MAX);
    }
    /// Multi-Krum leaves as many out when the wrong ones are gone as before: honest devices are not
    /// kept out one after the other.
    #[test]
    fn no_more_are_kept_out_for_a_rule_than_may_be_wrong() {
        let policy = Quarantine { refused: 1, within: 1, rounds: 9, left_out: true };
        let mut quarantines = Quarantines::default();
        quarantines.ended(&policy, 2, &mut outcome(1, &[], &[0, 1], &Value::Null));
        for round in 2..9 {
            let honest = round as usize % 6 + 2;
            quarantines.ended(&policy, 2, &mut outcome(round, &[], &[honest], &Value::Null));
            assert_eq!(barred(&mut quarantines, round + 1, 8), BTreeSet::from([0, 1]), "{round}");
        }
        // What a check refuses was wrong.
        quarantines.ended(&policy, 2, &mut outcome(9, &[7], &[3], &Value::Null));
        assert_eq!(barred(&mut quarantines, 10, 8), BTreeSet::from([0, 1, 7]));
    }
}
