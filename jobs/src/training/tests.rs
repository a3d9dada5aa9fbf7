use super::*;
use crate::id::{Attempt, Bytes, DeviceId, Digest, ModelVersion};
use crate::report::{EXAMPLES_MAX, EvaluationReport, UpdateReport};
use crate::round::{Aggregate, DEVICES_MAX, Effect as RoundEffect, Event as RoundEvent};
use crate::spec::{Keep, Purpose, Selection};

mod absent;
mod counted;
mod hoped;
mod late;
mod private;
mod stored;

fn blob(number: u64) -> BlobRef {
    let digest = Digest::parse(&format!("sha256:{number:064x}")).unwrap();
    BlobRef::by_digest(digest, Bytes(number))
}

fn spec(rounds: u32) -> TrainSpec {
    let text = r#"{"model":"mlp","dataset":"digits","rounds":1,
        "participation":{"deadline_ms":10000}}"#;
    TrainSpec { rounds, ..serde_json::from_str(text).unwrap() }
}

fn begin(spec: TrainSpec) -> (Training, Vec<Effect>) {
    Training::begin(Millis(0), spec, Millis(1_000_000), blob(0))
}

fn devices(count: usize) -> Vec<DeviceId> {
    (0..count)
        .map(|index| DeviceId::parse(&format!("{index:04}-{}", "d".repeat(59))).unwrap())
        .collect()
}

/// A blob whose digest no compression makes shorter than it is.
fn unlike_others(device: &DeviceId, round: RoundNumber) -> BlobRef {
    let seed = device.as_str()[..4]
        .bytes()
        .fold(round.0.into(), |seed: u64, byte| mixed(seed ^ u64::from(byte)));
    let words = (1..=4).map(|word| format!("{:016x}", mixed(seed.wrapping_add(word))));
    let digest = Digest::parse(&format!("sha256:{}", words.collect::<String>())).unwrap();
    let name = format!("update/01hzy0000000000000000000zz/{round}/{device}/1");
    BlobRef { name: Some(name), ..BlobRef::by_digest(digest, Bytes(25_000_000)) }
}

/// What a device and a broker answer to an effect; new parameters have the round's number.
fn answer(effect: &Effect, count: usize, accuracy: f64) -> Option<Event> {
    let Effect::Round { round, effect } = effect else { return None };
    let event = match effect {
        RoundEffect::FindDevices => RoundEvent::DevicesFound { devices: devices(count) },
        RoundEffect::Offer { device, purpose: Purpose::Train, attempt, .. } => {
            RoundEvent::UpdateReceived {
                device: device.clone(),
                attempt: *attempt,
                update: UpdateReport {
                    parameters: unlike_others(device, *round),
                    examples: EXAMPLES_MAX,
                    loss: 0.123_456_789_012_345_6,
                    accuracy: 0.123_456_789_012_345_6,
                    steps: u64::MAX,
                    duration_ms: Millis(u64::MAX),
                    engine: "e".repeat(1000),
                    initial_loss: None,
                    control_change: None,
                    held: false,
                    crc32: None,
                    control_anew: false,
                },
            }
        }
        RoundEffect::Offer {
            device,
            purpose: purpose @ (Purpose::Share | Purpose::Mask | Purpose::Unmask),
            attempt,
            ..
        } => RoundEvent::MessageReceived {
            device: device.clone(),
            purpose: *purpose,
            attempt: *attempt,
            message: blob(u64::MAX),
        },
        RoundEffect::CheckMessage { device, purpose, message } => RoundEvent::MessageChecked {
            device: device.clone(),
            purpose: *purpose,
            message: message.clone(),
            refused: None,
        },
        RoundEffect::Offer { device, attempt, .. } => RoundEvent::EvaluationReceived {
            device: device.clone(),
            attempt: *attempt,
            evaluation: EvaluationReport {
                examples: 1000,
                loss: 0.5,
                accuracy,
                duration_ms: Millis(u64::MAX),
            },
        },
        RoundEffect::CheckUpdate { device, update, .. } => RoundEvent::UpdateChecked {
            device: device.clone(),
            parameters: update.parameters.clone(),
            refused: None,
        },
        RoundEffect::Evaluate { .. } => {
            let (examples, loss, duration_ms) = (10, 0.5, Millis(1));
            let evaluation = EvaluationReport { examples, loss, accuracy, duration_ms };
            RoundEvent::Judged { evaluation }
        }
        RoundEffect::Aggregate { .. } | RoundEffect::Unmask { .. } => {
            RoundEvent::Aggregated(Aggregate {
                server_state: Some(blob(1000 + u64::from(round.0))),
                ..Aggregate::of(blob(round.0.into()))
            })
        }
        RoundEffect::Withdraw { .. } | RoundEffect::End(_) => return None,
        RoundEffect::Earlier { .. } => panic!("{effect:?} is of its round"),
    };
    Some(Event::Round { round: *round, event })
}

/// Answers effects, in order, until nothing is left to answer; all effects.
fn run(training: &mut Training, effects: Vec<Effect>, count: usize, accuracy: f64) -> Vec<Effect> {
    let mut all = effects;
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        if let Some(event) = answer(effect, count, accuracy) {
            all.extend(training.step(Millis(1), &event));
        }
        next += 1;
    }
    all
}

fn published(effects: &[Effect]) -> Vec<u32> {
    let rounds = effects.iter().filter_map(|effect| match effect {
        Effect::PublishRound(outcome) => Some(outcome.round.0),
        Effect::Round { .. } | Effect::Register { .. } | Effect::End(_) => None,
    });
    rounds.collect()
}

fn failure(effects: &[Effect]) -> &Failure {
    match effects.last() {
        Some(Effect::End(ending)) => ending.failure.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rounds_follow_each_other_and_the_last_parameters_are_registered() {
    let (mut training, effects) = begin(spec(3));
    let effects = run(&mut training, effects, 2, 0.5);
    assert_eq!(published(&effects), [1, 2, 3]);
    assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(3) }));
    assert_eq!((training.rounds_done(), training.accuracy()), (3, Some(0.5)));
    assert_eq!(training.server_state(), Some(&blob(1003)));
    assert_eq!(training.wake_at(), None);
    assert_eq!(training.step(Millis(2), &Event::CancelRequested), []);
    let model = ModelRef {
        name: "mlp".parse().unwrap(),
        version: ModelVersion::parse("1").unwrap(),
        digest: blob(1).digest,
    };
    let registered = Event::Registered { model: model.clone() };
    let effects = training.step(Millis(3), &registered);
    let ending = Ending {
        model: Some(model),
        failure: None,
        round: Some(RoundNumber(3)),
        enough: Some(Enough::Rounds),
    };
    assert_eq!(effects, [Effect::End(Box::new(ending.clone()))]);
    assert_eq!(training.step(Millis(3), &registered), []);
    assert_eq!(training.ending(), Some(&ending));
    assert_eq!(training.pending_effects().len(), 2);
}

#[test]
fn the_target_ends_the_job_early() {
    let spec = TrainSpec { target_accuracy: Some(0.9), ..spec(10) };
    let (mut training, effects) = begin(spec);
    let effects = run(&mut training, effects, 2, 0.9);
    assert_eq!(published(&effects), [1]);
    assert!(matches!(effects.last(), Some(Effect::Register { .. })));
}

/// Rounds are judged by these accuracies, each by two devices.
fn judged(spec: TrainSpec, accuracies: &[f64]) -> (Training, Vec<Effect>) {
    let (mut training, mut all) = begin(spec);
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        let done = training.rounds_done() as usize;
        if let Some(event) = answer(effect, 2, accuracies.get(done).copied().unwrap_or(0.0)) {
            all.extend(training.step(Millis(1), &event));
        }
        next += 1;
    }
    (training, all)
}

#[test]
fn a_job_that_does_not_improve_ends_with_its_best_round() {
    let early = "2:0:accuracy".parse().unwrap();
    for (keep, result) in [(Keep::Best, 2), (Keep::Last, 4)] {
        let spec = TrainSpec { early_stopping: Some(early), keep, ..spec(10) };
        let (mut training, effects) = judged(spec, &[0.25, 0.75, 0.5, 0.75]);
        assert_eq!(published(&effects), [1, 2, 3, 4]);
        assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(result) }));
        let best: Vec<(u32, u32)> = training
            .history()
            .iter()
            .map(|outcome| outcome.best.map(|best| (best.round.0, best.stale)).unwrap())
            .collect();
        assert_eq!(best, [(1, 0), (2, 0), (2, 1), (2, 2)]);
        assert_eq!(training.result().accuracy, Some(0.75));
        let stored = serde_json::to_vec(&training).unwrap();
        assert_eq!(serde_json::from_slice::<Training>(&stored).unwrap(), training);
        let model = ModelRef {
            name: "mlp".parse().unwrap(),
            version: ModelVersion::parse("1").unwrap(),
            digest: blob(1).digest,
        };
        training.step(Millis(3), &Event::Registered { model });
        let ending = training.ending().unwrap();
        assert_eq!(ending.round, Some(RoundNumber(u32::try_from(result).unwrap())));
        assert_eq!(ending.enough, Some(Enough::EarlyStopping));
    }
}

#[test]
fn the_best_round_is_the_result_when_all_rounds_are_done() {
    let spec = TrainSpec { keep: Keep::Best, ..spec(3) };
    let (training, effects) = judged(spec, &[0.5, 0.5, 0.5]);
    // Rounds are compared by loss, which is the same in all: the first one is not bettered.
    assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(1) }));
    assert_eq!((training.result().rounds_done, training.rounds_done()), (1, 3));
}

#[test]
fn parameters_that_a_device_judged_travel_once() {
    let (training, _) = judged(spec(3), &[0.5, 0.5, 0.5]);
    let down = |training: &Training| -> Vec<u64> {
        training.history().iter().map(|outcome| outcome.moved.unwrap().down.0).collect()
    };
    // Parameters of 1 byte, then of 2, for two devices that judge them and train from them.
    assert_eq!(down(&training), [2, 4, 6]);

    let (mut training, mut all) = begin(spec(2));
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        // A third device comes with the second round.
        let count = if training.rounds_done() == 0 { 2 } else { 3 };
        if let Some(event) = answer(effect, count, 0.5) {
            all.extend(training.step(Millis(1), &event));
        }
        next += 1;
    }
    assert_eq!(down(&training), [2, 1 + 3 * 2]);
}

#[test]
fn whose_turn_it_is_follows_from_the_rounds_before() {
    let mut spec = spec(6);
    spec.participation.devices = Some(2);
    spec.participation.selection = Selection::RoundRobin;
    let (mut training, mut all) = begin(spec);
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        // Another broker goes on with what was stored.
        let stored = serde_json::to_vec(&training).unwrap();
        training = serde_json::from_slice(&stored).unwrap();
        if let Some(event) = answer(effect, 4, 0.5) {
            all.extend(training.step(Millis(1), &event));
        }
        next += 1;
    }
    let pairs: Vec<Vec<&DeviceId>> = training
        .history()
        .iter()
        .map(|outcome| outcome.updates.iter().map(|(device, _)| device).collect())
        .collect();
    for pair in pairs.chunks(2) {
        let mut both = pair.concat();
        both.sort();
        both.dedup();
        assert_eq!(both.len(), 4, "everyone once in two rounds: {pairs:?}");
    }
}

#[test]
fn who_does_not_look_for_the_best_writes_nothing_new() {
    let (training, _) = judged(spec(2), &[0.5, 0.75]);
    let stored = serde_json::to_value(&training).unwrap();
    assert_eq!((stored.get("progress"), stored.get("experience")), (None, None));
    assert!(stored["history"][0].get("best").is_none());
    // What a broker before wrote is read.
    let mut old = stored;
    old.as_object_mut().unwrap().remove("made_by");
    assert_eq!(serde_json::from_value::<Training>(old).unwrap().rounds_done(), 2);
}

#[test]
fn failed_rounds_are_repeated_under_a_new_number_but_not_for_ever() {
    let (mut training, _) = begin(spec(1));
    let mut now = Millis(0);
    for number in 1..=3 {
        let found = RoundEvent::DevicesFound { devices: Vec::new() };
        let stale = Event::Round { round: RoundNumber(number - 1), event: found };
        assert_eq!(training.step(now, &stale), []);
        let mut effects = Vec::new();
        while published(&effects).is_empty() {
            now = training.wake_at().unwrap();
            effects = training.step(now, &Event::Tick);
        }
        assert_eq!(published(&effects), [number]);
        if number == 3 {
            assert_eq!(failure(&effects).code, FailureCode::NoQuorum);
            assert!(failure(&effects).message.starts_with("3 rounds in a row failed"));
        } else {
            now = training.wake_at().unwrap();
            let effects = training.step(now, &Event::Tick);
            assert!(matches!(&effects[..], [Effect::Round { round, .. }] if round.0 == number + 1));
        }
    }
}

#[test]
fn a_round_that_fails_leaves_what_the_server_keeps() {
    let (mut training, effects) = begin(spec(2));
    let first = Event::Round {
        round: RoundNumber(2),
        event: RoundEvent::AggregationFailed {
            failure: Failure::new(FailureCode::Diverged, "not a number"),
        },
    };
    let mut all = effects;
    let mut next = 0;
    while let Some(effect) = all.get(next) {
        let aggregate =
            matches!(effect, Effect::Round { effect: RoundEffect::Aggregate { .. }, .. });
        let event = if aggregate && training.rounds_done() == 1 {
            Some(first.clone())
        } else {
            answer(effect, 2, 0.5)
        };
        all.extend(event.iter().flat_map(|event| training.step(Millis(1), event)));
        next += 1;
    }
    assert_eq!(published(&all), [1, 2]);
    assert_eq!((training.parameters(), training.server_state()), (&blob(1), Some(&blob(1001))));
}

#[test]
fn the_deadline_and_a_request_end_the_job() {
    for (now, event, code) in [
        (1, Event::CancelRequested, FailureCode::Cancelled),
        (1_000_000, Event::Tick, FailureCode::DeadlineExceeded),
    ] {
        let (mut training, effects) = begin(spec(1));
        let found = answer(&effects[0], 2, 0.5).unwrap();
        assert_eq!(training.step(Millis(0), &found).len(), 2);
        let effects = training.step(Millis(now), &event);
        let why = failure(&effects);
        assert_eq!(why.code, code);
        // Both devices are told, and what became of the round.
        assert_eq!((effects.len(), published(&effects).len()), (4, 1));
        let round = training.history()[0].failure.as_ref().unwrap();
        assert_eq!((round.code, &round.message), (FailureCode::Cancelled, &why.message));
        assert_eq!(training.step(Millis(now), &event), []);
        assert_eq!(training.wake_at(), None);
    }
}

#[test]
fn a_result_that_is_there_at_the_deadline_is_registered() {
    let (mut training, mut effects) = begin(spec(1));
    while !matches!(training.round().map(Round::status), Some(status) if status.phase == "evaluating")
    {
        let events: Vec<Event> = effects.iter().filter_map(|e| answer(e, 2, 0.5)).collect();
        effects = events.iter().flat_map(|event| training.step(Millis(1), event)).collect();
    }
    let effects = training.step(Millis(1_000_000), &Event::Tick);
    assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(1) }));
}

#[test]
fn the_state_comes_back_from_json_and_owes_what_it_owed() {
    let (mut training, effects) = begin(spec(2));
    let mut effects = effects;
    for _ in 0..100 {
        let stored = serde_json::to_vec(&training).unwrap();
        assert_eq!(serde_json::from_slice::<Training>(&stored).unwrap(), training);
        let Some(event) = effects.iter().find_map(|effect| answer(effect, 2, 0.5)) else { break };
        training.step(Millis(1), &event);
        effects = training.pending_effects();
    }
    assert_eq!(effects.last(), Some(&Effect::Register { parameters: blob(2) }));
}

/// Rounds that follow those of another job are drawn as that one would have drawn them.
#[test]
fn what_is_drawn_goes_on_behind_the_rounds_of_a_job_before() {
    let mut drawing = spec(6);
    drawing.participation.devices = Some(2);
    let seen = |rounds_before, rounds| {
        let spec = TrainSpec { rounds, ..drawing.clone() };
        let start = Start { rounds_before, ..Start::of(blob(0)) };
        let (mut training, effects) =
            Training::begin_with(Millis(0), spec, Millis(1_000_000), start);
        run(&mut training, effects, 9, 0.5);
        let drawn = training.history().iter().map(|outcome| {
            let devices = outcome.updates.iter().map(|(device, _)| device.clone());
            (training.seed(outcome.round), devices.collect::<Vec<_>>())
        });
        drawn.collect::<Vec<_>>()
    };
    let whole = seen(0, 6);
    assert_eq!(seen(4, 2), whole[4..]);
    assert_ne!(seen(0, 2), whole[4..]);
}

#[test]
fn a_second_offer_counts_its_attempts_from_one() {
    let (mut training, effects) = begin(spec(2));
    let effects = run(&mut training, effects, 1, 0.5);
    let mut attempts = Vec::new();
    for effect in effects {
        if let Effect::Round { effect: RoundEffect::Offer { attempt, .. }, .. } = effect {
            attempts.push(attempt);
        }
    }
    assert_eq!(attempts, [Attempt(1); 4]);
}
