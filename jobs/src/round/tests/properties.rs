//! What holds for every sequence of events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::model::{Expected, Model};
use super::*;

const DEVICES: usize = 6;

/// An event in the making: devices by number, parameters by number.
#[derive(Debug, Clone)]
enum Op {
    Found(usize),
    Accepted(usize, bool, u32),
    Update(usize, u32, u64),
    /// The answer to the check that is going on, or to none.
    Checked(usize, Option<FailureCode>),
    Failed(usize, bool, u32, FailureCode),
    Judged(usize, u32, f64),
    Lost(usize),
    Returned(usize),
    Aggregated(bool),
    /// The update of this device cannot be read again.
    Gone(usize),
    /// What the broker makes of new parameters.
    BrokerJudged(Option<f64>),
    Cancel,
    Tick,
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..DEVICES;
    let code = prop::sample::select(vec![FailureCode::Busy, FailureCode::Diverged]);
    prop_oneof![
        2 => (0..=DEVICES).prop_map(Op::Found),
        2 => (device.clone(), any::<bool>(), 1..3_u32).prop_map(|(d, t, a)| Op::Accepted(d, t, a)),
        8 => (device.clone(), 1..4_u32, 0..3_u64).prop_map(|(d, a, n)| Op::Update(d, a, n)),
        8 => (device.clone(), prop::option::weighted(0.2, code.clone()))
            .prop_map(|(d, refused)| Op::Checked(d, refused)),
        3 => (device.clone(), any::<bool>(), 1..4_u32, code)
            .prop_map(|(d, train, attempt, code)| Op::Failed(d, train, attempt, code)),
        3 => (device.clone(), 1..3_u32, 0..6_u32)
            .prop_map(|(d, a, v)| Op::Judged(d, a, f64::from(v) / 4.0)),
        3 => device.clone().prop_map(Op::Lost),
        3 => device.clone().prop_map(Op::Returned),
        2 => prop::bool::weighted(0.8).prop_map(Op::Aggregated),
        1 => device.prop_map(Op::Gone),
        2 => prop::option::of(0..6_u32)
            .prop_map(|v| Op::BrokerJudged(v.map(|v| f64::from(v) / 4.0))),
        1 => Just(Op::Cancel),
        4 => Just(Op::Tick),
    ]
}

fn evaluate() -> impl Strategy<Value = Evaluate> {
    let all = vec![Evaluate::None, Evaluate::Devices, Evaluate::Broker, Evaluate::Both];
    prop::sample::select(all)
}

fn participation() -> impl Strategy<Value = Participation> {
    let deadline = prop::sample::select(vec![500, 2000, 10_000]);
    let parts = (prop::option::of(1..5_u32), 0..3_u32, 1..4_u32, deadline);
    parts.prop_map(|(devices, half, quorum, deadline)| Participation {
        devices,
        over_selection: f64::from(half) / 2.0,
        quorum: devices.map_or(quorum, |devices| quorum.min(devices)),
        deadline_ms: Millis(deadline),
        failed_rounds_max: 1,
        ..Participation::default()
    })
}

/// Everything that was said so far, and what must hold of it.
struct Witness {
    round: Round,
    model: Option<Model>,
    invited: BTreeSet<DeviceId>,
    lost: BTreeSet<DeviceId>,
    /// The newest update of each device that was to be checked.
    checking: BTreeMap<DeviceId, BlobRef>,
    usable: BTreeSet<(DeviceId, BlobRef)>,
    attempts: BTreeMap<(DeviceId, Purpose), Attempt>,
    aggregated: Option<Vec<(DeviceId, UpdateReport)>>,
    /// What the broker said of the new parameters, judgements or that there is none; the first
    /// counts.
    said: Vec<Option<EvaluationReport>>,
    ended: bool,
}

impl Witness {
    fn new(participation: Participation, evaluate: Evaluate) -> Self {
        let plan = Plan { evaluate, ..plan(participation) };
        Self {
            round: Round::begin(Millis(0), plan).0,
            model: None,
            invited: BTreeSet::new(),
            lost: BTreeSet::new(),
            checking: BTreeMap::new(),
            usable: BTreeSet::new(),
            attempts: BTreeMap::new(),
            aggregated: None,
            said: Vec::new(),
            ended: false,
        }
    }

    fn event(&self, op: &Op) -> Event {
        let named = |index: &usize| device(&format!("d{index}"));
        let purpose = |train: &bool| if *train { Purpose::Train } else { Purpose::Evaluate };
        match op {
            Op::Found(count) => Event::DevicesFound { devices: devices(*count) },
            Op::Accepted(d, train, attempt) => Event::Accepted {
                device: named(d),
                purpose: purpose(train),
                attempt: Attempt(*attempt),
            },
            Op::Update(d, attempt, number) => received(&named(d), *attempt, *number),
            Op::Checked(d, refused) => Event::UpdateChecked {
                device: named(d),
                parameters: self.checking.get(&named(d)).cloned().unwrap_or_else(|| blob(9)),
                refused: refused.map(|code| Failure::new(code, "because")),
            },
            Op::Failed(d, train, attempt, code) => {
                failed(&named(d), purpose(train), *attempt, *code)
            }
            Op::Judged(d, attempt, accuracy) => Event::EvaluationReceived {
                device: named(d),
                attempt: Attempt(*attempt),
                evaluation: judgement(*accuracy),
            },
            Op::Lost(d) => Event::DeviceLost { device: named(d) },
            Op::Returned(d) => Event::DeviceReturned { device: named(d) },
            Op::Aggregated(true) => Event::Aggregated(Aggregate::of(blob(99))),
            Op::Aggregated(false) => {
                Event::AggregationFailed { failure: Failure::new(FailureCode::Internal, "boom") }
            }
            Op::Gone(d) => Event::UpdateGone {
                device: named(d),
                failure: Failure::new(FailureCode::BlobUnavailable, "away"),
            },
            Op::BrokerJudged(Some(accuracy)) => Event::Judged { evaluation: judgement(*accuracy) },
            Op::BrokerJudged(None) => {
                Event::JudgementFailed { failure: Failure::new(FailureCode::Internal, "boom") }
            }
            Op::Cancel => cancelled(),
            Op::Tick => Event::Tick,
        }
    }

    fn step(&mut self, now: Millis, event: &Event) {
        if let Event::DeviceLost { device } = event {
            self.lost.insert(device.clone());
        } else if let Event::DeviceReturned { device } = event {
            self.lost.remove(device);
        } else if let Event::UpdateChecked { device, parameters, refused: None } = event
            && self.checking.get(device) == Some(parameters)
        {
            self.usable.insert((device.clone(), parameters.clone()));
        }
        let is_judging = self.round.plan.evaluate.by_broker()
            && matches!(self.round.phase, Phase::Evaluating { .. });
        if is_judging && let Event::Judged { evaluation } = event {
            let valid = (evaluation.accuracy <= 1.0).then(|| evaluation.clone());
            self.said.push(valid);
        } else if is_judging && matches!(event, Event::JudgementFailed { .. }) {
            self.said.push(None);
        }
        let aggregating = matches!(self.round.phase, Phase::Aggregating { .. });
        if let (true, Event::UpdateGone { device, failure }) = (aggregating, event) {
            self.gone(device, failure.code);
        }
        let effects = self.round.step(now, event);
        self.expect(now, event, &effects);
        for effect in &effects {
            self.witness(effect);
        }
        // Nothing happens twice, and the stored state is the whole state.
        let after = self.round.clone();
        assert_eq!(self.round.step(now, event), [], "{event:?} again");
        assert_eq!(self.round, after, "{event:?} again");
        let stored = serde_json::to_string(&after).unwrap();
        assert_eq!(serde_json::from_str::<Round>(&stored).unwrap(), after);
        if *event == Event::Tick {
            assert!(after.wake_at().is_none_or(|at| at > now));
        }
        // Something is owed, or time will bring it on.
        let mut rest = after.clone();
        if rest.pending_effects().is_empty() {
            assert!(rest.wake_at().is_some());
            rest.step(Millis(1_000_000), &Event::Tick);
            assert!(!rest.pending_effects().is_empty());
        }
    }

    /// Compares with the model, while updates are collected.
    fn expect(&mut self, now: Millis, event: &Event, effects: &[Effect]) {
        let Some(model) = &mut self.model else {
            if let Phase::Collecting { since, .. } = self.round.phase {
                let plan = &self.round.plan.participation;
                let quorum = plan.quorum as usize;
                let invited = self.round.members.iter().map(|m| m.device.clone()).collect();
                let reserve = self.round.spares.iter().rev().cloned().collect();
                let target = plan.devices.map_or(effects.len(), |devices| devices as usize);
                let deadline = since.0 + plan.deadline_ms.0;
                let model = Model::new(invited, reserve, target, quorum, deadline);
                // Whoever was found is there.
                self.model = Some(model);
                self.lost.clear();
            }
            return;
        };
        if model.over {
            return;
        }
        let expected = model.step(now, event);
        let mut seen = Expected::default();
        for effect in effects {
            match effect {
                Effect::CheckUpdate { device, .. } => {
                    seen.checks.insert(device.clone());
                }
                Effect::Withdraw { device, .. } => {
                    seen.withdrawn.insert(device.clone());
                }
                Effect::Offer { device, attempt, .. } => {
                    // An offer that was not accepted may be repeated.
                    let known = self.attempts.get(&(device.clone(), Purpose::Train));
                    let resting = expected.offered.contains(&(device.clone(), *attempt));
                    if known != Some(attempt) || resting {
                        seen.offered.insert((device.clone(), *attempt));
                    }
                }
                Effect::Aggregate { updates, .. } => {
                    let devices = updates.iter().map(|(device, _)| device.clone());
                    seen.aggregated = Some(devices.collect());
                }
                Effect::End(outcome) => {
                    seen.gave_up = true;
                    for (device, failure) in &outcome.missing {
                        assert_eq!(Some(failure.code), model.missing(device), "{device}");
                    }
                }
                Effect::CheckMessage { .. } | Effect::Unmask { .. } => panic!("nothing is masked"),
                Effect::Evaluate { .. } => panic!("nothing is aggregated"),
                Effect::Earlier { .. } => panic!("nobody is late"),
                Effect::FindDevices => panic!("devices were found"),
            }
        }
        assert_eq!(seen, expected, "after {event:?} at {now}");
    }

    /// An update that was to be combined does not count.
    fn gone(&mut self, device: &DeviceId, code: FailureCode) {
        if let Some(updates) = &mut self.aggregated {
            updates.retain(|(counted, _)| counted != device);
        }
        if let Some(model) = &mut self.model {
            model.gone(device, code);
        }
    }

    fn witness(&mut self, effect: &Effect) {
        assert!(!self.ended, "{effect:?} after the end");
        match effect {
            Effect::Offer { device, purpose, attempt, .. } => {
                assert!(!self.lost.contains(device), "{device} is lost");
                self.invited.insert(device.clone());
                let key = (device.clone(), *purpose);
                let before = self.attempts.insert(key, *attempt).unwrap_or(Attempt(0));
                assert!(before <= *attempt && attempt.0 <= before.0 + 2);
            }
            Effect::Withdraw { device, purpose, attempt, .. } => {
                assert_eq!(self.attempts.get(&(device.clone(), *purpose)), Some(attempt));
            }
            Effect::CheckUpdate { device, update, .. } => {
                self.checking.insert(device.clone(), update.parameters.clone());
            }
            Effect::Aggregate { updates, .. } => {
                let left = self.aggregated.as_ref().map(Vec::len);
                assert!(left.is_none_or(|left| left == updates.len()), "{updates:?}");
                assert!(updates.is_sorted_by(|one, two| one.0 < two.0));
                let plan = &self.round.plan.participation;
                assert!(updates.len() >= plan.quorum as usize);
                assert!(plan.devices.is_none_or(|devices| updates.len() <= devices as usize));
                for (device, update) in updates {
                    let update = (device.clone(), update.parameters.clone());
                    assert!(self.usable.contains(&update), "{update:?}");
                }
                self.aggregated = Some(updates.clone());
            }
            Effect::End(outcome) => {
                self.ended = true;
                let counted: BTreeSet<_> = outcome.updates.iter().map(|(d, _)| d).collect();
                let missing: BTreeSet<_> = outcome.missing.iter().map(|(d, _)| d).collect();
                assert!(counted.is_disjoint(&missing));
                assert!(counted.union(&missing).copied().eq(&self.invited));
                assert!(counted.len() + missing.len() == self.invited.len());
                if outcome.failure.is_some() {
                    assert!(counted.is_empty() && outcome.parameters == blob(0));
                } else {
                    assert_eq!(Some(&outcome.updates), self.aggregated.as_ref());
                    for (device, failure) in &outcome.missing {
                        let code = self.model.as_ref().and_then(|model| model.missing(device));
                        assert_eq!(code, Some(failure.code), "{device}");
                    }
                }
                assert!(outcome.evaluations.iter().all(|(d, _)| counted.contains(d)));
                self.judged(outcome);
            }
            Effect::CheckMessage { .. } | Effect::Unmask { .. } => panic!("nothing is masked"),
            Effect::Evaluate { parameters } => {
                assert!(self.round.plan.evaluate.by_broker() && self.said.is_empty());
                assert_eq!(*parameters, blob(99));
            }
            Effect::Earlier { .. } => panic!("nobody is late"),
            Effect::FindDevices => assert!(self.invited.is_empty()),
        }
    }

    /// The outcome has judgements of those who were asked, and tells the one that decides.
    fn judged(&self, outcome: &Outcome) {
        let evaluate = self.round.plan.evaluate;
        assert!(evaluate.by_devices() || outcome.evaluations.is_empty());
        let said = outcome.judgement.as_ref().map(Judgement::report);
        if evaluate.by_broker() && outcome.failure.is_none() {
            assert_eq!(said, Some(self.said.first().and_then(Option::as_ref)));
        } else {
            assert_eq!(said, None);
        }
        let devices = |outcome: &Outcome| {
            let all = outcome.evaluations.iter().map(|(_, judged)| judged.accuracy);
            let count = outcome.evaluations.len();
            (count > 0).then(|| all.sum::<f64>() / f64::from(u32::try_from(count).unwrap()))
        };
        let decides = match said {
            Some(said) => said.map(|said| said.accuracy),
            None => devices(outcome),
        };
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        match (outcome.accuracy(), decides) {
            (Some(found), Some(expected)) => assert!(near(found, expected)),
            (found, expected) => assert_eq!(found, expected),
        }
    }
}

proptest! {
    #[test]
    fn a_round_does_what_the_model_says(
        participation in participation(),
        evaluate in evaluate(),
        ops in prop::collection::vec((0..1500_u64, op()), 0..60),
    ) {
        let mut witness = Witness::new(participation, evaluate);
        let mut now = 0;
        for (pause, op) in ops {
            now += pause / 4;
            let event = witness.event(&op);
            witness.step(Millis(now), &event);
        }
        // Then the shell answers what it was asked and time passes: the round ends.
        for _ in 0..200 {
            let owed = witness.round.pending_effects();
            for effect in owed {
                match effect {
                    Effect::CheckUpdate { device, update, .. } => {
                        let parameters = update.parameters;
                        let event = Event::UpdateChecked { device, parameters, refused: None };
                        witness.step(Millis(now), &event);
                    }
                    Effect::Aggregate { .. } => {
                        witness.step(Millis(now), &Event::Aggregated(Aggregate::of(blob(99))));
                    }
                    Effect::FindDevices
                    | Effect::Offer { .. }
                    | Effect::Withdraw { .. }
                    | Effect::CheckMessage { .. }
                    | Effect::Unmask { .. }
                    | Effect::Evaluate { .. }
                    | Effect::Earlier { .. }
                    | Effect::End(_) => {}
                }
            }
            if let Some(at) = witness.round.wake_at() {
                now = now.max(at.0);
                witness.step(Millis(now), &Event::Tick);
            }
        }
        prop_assert!(witness.ended);
    }
}
