//! Budgets of private jobs.

use proptest::prelude::*;

use super::*;
use crate::spec::{Privacy, SecureAggregation};

const THREE_ROUNDS: &str = "central:norm=2,noise_multiplier=2,delta=1e-5,epsilon_budget=4";

fn private(rounds: u32, privacy: &str) -> TrainSpec {
    let privacy: Privacy = privacy.parse().unwrap();
    let mut spec = TrainSpec { privacy: Some(privacy), ..spec(rounds) };
    spec.participation.devices = Some(2);
    spec
}

/// Whether the effect is the request to combine updates.
fn aggregates(effect: &Effect) -> bool {
    matches!(effect, Effect::Round { effect: RoundEffect::Aggregate { .. }, .. })
}

fn failed_aggregation(effect: &Effect) -> Event {
    let Effect::Round { round, .. } = effect else { panic!("{effect:?}") };
    let failure = Failure::new(FailureCode::BlobUnavailable, "gone");
    Event::Round { round: *round, event: RoundEvent::AggregationFailed { failure } }
}

/// Ticks come when they are due.
fn later(now: Millis, training: &Training, event: Option<&Event>) -> Millis {
    let due = training.wake_at().filter(|_| matches!(event, Some(Event::Tick)));
    due.map_or(now, |due| due.max(now))
}

/// What was spent after each round that ended, first what was paid for.
fn spent(effects: &[Effect]) -> Vec<(u32, f64)> {
    let spent = effects.iter().filter_map(|effect| match effect {
        Effect::PublishRound(outcome) => outcome.privacy.map(|it| (it.rounds, it.epsilon)),
        Effect::Round { .. } | Effect::Register { .. } | Effect::End(_) => None,
    });
    spent.collect()
}

#[test]
fn a_job_ends_before_the_round_that_would_exceed_its_budget() {
    let spec = private(10, THREE_ROUNDS);
    let privacy = spec.privacy.unwrap();
    assert!(privacy.allows(3) && !privacy.allows(4), "{}", privacy.epsilon(3));
    let (mut training, effects) = begin(spec);
    let effects = run(&mut training, effects, 2, 0.5);
    assert_eq!(published(&effects), [1, 2, 3]);
    let expected: Vec<(u32, f64)> = (1..4).map(|n| (n, privacy.epsilon(n))).collect();
    assert_eq!(spent(&effects), expected);
    assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(3) }));
    let reason = training.budget_spent().unwrap();
    assert!(reason.starts_with("the privacy budget is spent: epsilon 3."), "{reason}");
    let model = ModelRef {
        name: "mlp".parse().unwrap(),
        version: ModelVersion::parse("1").unwrap(),
        digest: blob(1).digest,
    };
    let effects = training.step(Millis(3), &Event::Registered { model });
    let Some(Effect::End(ending)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((ending.enough, &ending.failure), (Some(Enough::PrivacyBudget), &None));
}

#[test]
fn a_job_whose_rounds_fit_ends_by_them() {
    let (mut training, effects) = begin(private(3, THREE_ROUNDS));
    let effects = run(&mut training, effects, 2, 0.5);
    assert_eq!(published(&effects), [1, 2, 3]);
    assert_eq!(training.enough(), Some(Enough::Rounds));
}

/// What a broker stores when it dies between the decision and the noise is paid for once.
#[test]
fn a_round_is_paid_for_before_its_updates_are_combined() {
    let (mut training, effects) = begin(private(10, THREE_ROUNDS));
    let mut effects = effects;
    while !effects.iter().any(aggregates) {
        let events: Vec<Event> = effects.iter().filter_map(|e| answer(e, 2, 0.5)).collect();
        effects = events.iter().flat_map(|event| training.step(Millis(1), event)).collect();
    }
    let stored = serde_json::to_vec(&training).unwrap();
    let mut again: Training = serde_json::from_slice(&stored).unwrap();
    assert_eq!(again.pending_effects().len(), 1);
    let combined = answer(&again.pending_effects()[0], 2, 0.5).unwrap();
    let mut ends = Vec::new();
    for training in [&mut training, &mut again] {
        let effects = training.step(Millis(2), &combined);
        ends.push(spent(&run(training, effects, 2, 0.5)));
    }
    assert_eq!(ends[0].len(), 3);
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn a_budget_that_gave_no_parameters_fails_the_job() {
    let mut spec = private(10, THREE_ROUNDS);
    spec.participation.failed_rounds_max = 50;
    let (mut training, mut all) = begin(spec);
    let (mut next, mut now) = (0, Millis(1));
    while training.ending().is_none() {
        let event = match all.get(next) {
            Some(effect) if aggregates(effect) => Some(failed_aggregation(effect)),
            Some(effect) => answer(effect, 2, 0.5),
            None => Some(Event::Tick),
        };
        next = all.len().min(next + 1);
        now = later(now, &training, event.as_ref());
        all.extend(event.iter().flat_map(|event| training.step(now, event)));
    }
    assert_eq!(all.iter().filter(|effect| aggregates(effect)).count(), 3);
    assert_eq!(failure(&all).code, FailureCode::BudgetSpent);
}

#[test]
fn devices_that_add_the_noise_are_paid_for_when_they_are_asked() {
    let mut spec = private(10, &THREE_ROUNDS.replace("central", "local"));
    spec.evaluate = crate::spec::Evaluate::None;
    let (mut training, effects) = begin(spec);
    let found = answer(&effects[0], 2, 0.5).unwrap();
    let effects = training.step(Millis(0), &found);
    assert_eq!(effects.len(), 2);
    // The job is stopped: what was asked for counts.
    let stopped = training.clone().step(Millis(0), &Event::CancelRequested);
    assert_eq!(spent(&stopped)[0].0, 1);
    let effects = run(&mut training, effects, 2, 0.5);
    let rounds: Vec<u32> = spent(&effects).iter().map(|spent| spent.0).collect();
    assert_eq!(rounds, [1, 2, 3]);
    assert_eq!(training.enough(), Some(Enough::PrivacyBudget));
}

#[test]
fn an_adaptive_norm_is_part_of_the_state() {
    let text = "central:initial=0.3,noise_multiplier=0.05,delta=1e-5,epsilon_budget=1e6";
    let (mut training, effects) = begin(private(3, text));
    assert_eq!(training.norm(), Some(0.3));
    let mut all = effects;
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        let mut event = answer(effect, 2, 0.5);
        if let Some(Event::Round { event: RoundEvent::Aggregated(aggregate), .. }) = &mut event {
            aggregate.within = Some(0.0);
        }
        all.extend(event.iter().flat_map(|event| training.step(Millis(1), event)));
        next += 1;
    }
    let norms: Vec<f64> = training.history().iter().map(|it| it.privacy.unwrap().norm).collect();
    for (found, expected) in norms.iter().zip([0.3, 0.331_551_275, 0.366_420_827]) {
        assert!((found - expected).abs() < 1e-8, "{norms:?}");
    }
    assert!(training.history().iter().all(|outcome| outcome.within == Some(0.0)));
}

/// Who takes part in a sampled round follows from the secret alone.
#[test]
fn a_sampled_round_is_drawn_in_secret() {
    let invited = |secret| {
        let spec = private(1, &format!("{THREE_ROUNDS},sampling_rate=0.5"));
        let start = Start { secret_seed: Some(secret), ..Start::of(blob(0)) };
        let begun = Training::begin_with(Millis(0), spec, Millis(1_000_000), start);
        let (mut training, effects) = begun;
        training.step(Millis(0), &answer(&effects[0], 100, 0.5).unwrap()).len()
    };
    let counts: Vec<usize> = (0..50).map(invited).collect();
    assert!(counts.iter().all(|count| (25..75).contains(count)), "{counts:?}");
    assert!((2300..2700).contains(&counts.iter().sum::<usize>()), "{counts:?}");
    assert!(counts.windows(2).any(|pair| pair[0] != pair[1]));
    assert_eq!(invited(7), invited(7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever fails, crashes and is done again: every request to combine is paid for, once, and
    /// within the budget.
    #[test]
    fn nothing_is_combined_that_was_not_paid_for(
        fails in prop::collection::vec(any::<bool>(), 1..20),
        restarts in prop::collection::vec(any::<bool>(), 1..60),
        budget in 3.0..9.0_f64,
    ) {
        let text = format!("central:norm=1,noise_multiplier=2,delta=1e-5,epsilon_budget={budget}");
        let mut spec = private(12, &text);
        spec.participation.failed_rounds_max = 4;
        let privacy = spec.privacy.unwrap();
        let (mut training, mut effects) = begin(spec);
        let (mut combined, mut step) = (std::collections::BTreeSet::new(), 0);
        let mut now = Millis(1);
        let mut queue = std::collections::VecDeque::from(std::mem::take(&mut effects));
        while training.ending().is_none() && step < 1000 {
            step += 1;
            if restarts[step % restarts.len()] && step < 500 {
                let stored = serde_json::to_vec(&training).unwrap();
                training = serde_json::from_slice(&stored).unwrap();
                queue = training.pending_effects().into();
            }
            let event = match queue.pop_front() {
                Some(effect) if aggregates(&effect) => {
                    let Effect::Round { round, .. } = &effect else { unreachable!() };
                    combined.insert(round.0);
                    let rounds = u32::try_from(combined.len()).unwrap();
                    let paid = serde_json::to_value(&training).unwrap();
                    prop_assert_eq!(paid["ledger"]["rounds"].as_u64(), Some(rounds.into()));
                    prop_assert!(privacy.epsilon(rounds) <= budget);
                    if fails[combined.len() % fails.len()] {
                        Some(failed_aggregation(&effect))
                    } else {
                        answer(&effect, 2, 0.5)
                    }
                }
                Some(Effect::Register { .. }) => Some(Event::RegistrationFailed {
                    failure: Failure::new(FailureCode::Internal, "as the test wants"),
                }),
                Some(effect) => answer(&effect, 2, 0.5),
                None => Some(Event::Tick),
            };
            now = later(now, &training, event.as_ref());
            queue.extend(event.iter().flat_map(|event| training.step(now, event)));
        }
        prop_assert!(training.ending().is_some());
    }
}

/// Devices shorten to the norm as it moves, and the range of levels moves with it.
#[test]
fn an_adaptive_norm_reaches_those_who_mask() {
    let text = "central:initial=0.3,rate=2,noise_multiplier=0.05,delta=1e-5,epsilon_budget=1e6";
    let secure = SecureAggregation { clip: 0.5, ..SecureAggregation::default() };
    let (mut training, effects) =
        begin(TrainSpec { secure_aggregation: Some(secure), ..private(3, text) });
    let mut norm = 0.3;
    for (within, clip) in [(Some(0.0), 0.3), (Some(1.0), 0.5), (None, 0.3), (Some(0.75), 0.3)] {
        assert!((training.update_norm_max().unwrap() - norm).abs() < 1e-12);
        assert!((training.secure_aggregation().unwrap().clip - clip).abs() < 1e-6, "{norm}");
        let privacy = training.spec().privacy.unwrap();
        norm *= within.map_or(1.0, |within: f64| (-2.0 * (within - 0.5)).exp());
        training.ledger.as_mut().unwrap().adapt(&privacy, within);
        let stored = serde_json::to_vec(&training).unwrap();
        training = serde_json::from_slice(&stored).unwrap();
    }
    assert!(!effects.is_empty());
}

/// Updates that nobody sees are shortened by their devices, and paid for before they are unmasked.
#[test]
fn masked_updates_are_shortened_where_they_are_made() {
    let mut spec = private(10, THREE_ROUNDS);
    let (mut training, _) = begin(spec.clone());
    assert_eq!((training.update_norm_max(), training.secure_aggregation()), (None, None));
    for (clip, range) in [(8.0, 2.0), (0.5, 0.5)] {
        let secure = SecureAggregation { clip, ..SecureAggregation::default() };
        spec.secure_aggregation = Some(secure);
        training = begin(spec.clone()).0;
        assert_eq!(training.update_norm_max(), Some(2.0));
        let expected = SecureAggregation { clip: range, ..secure };
        assert_eq!(training.secure_aggregation(), Some(expected));
    }
    let exchange = Box::default();
    training.pay_for(&RoundEffect::Unmask { updates: Vec::new(), exchange });
    training.pay_for(&RoundEffect::Aggregate { updates: Vec::new(), stale: Vec::new() });
    let stored = serde_json::to_value(&training).unwrap();
    assert_eq!(stored["ledger"]["rounds"], 1, "once");
    let local: Privacy = THREE_ROUNDS.replace("central", "local").parse().unwrap();
    spec.privacy = Some(local);
    let training = begin(spec).0;
    assert_eq!(training.update_norm_max(), None, "noise makes it longer");
    assert!(training.noised().is_some());
}
