use super::*;
use crate::device::Telemetry;
use crate::id::RoundNumber;
use crate::spec::{Purpose, TaskId};

mod properties;

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

fn job(deadline: u64, work: &str) -> (Job, Vec<Effect>) {
    let text = format!(r#"{{"deadline_ms":{deadline},"work":{work}}}"#);
    Job::accept(Millis(0), JobId::parse("j").unwrap(), serde_json::from_str(&text).unwrap())
}

fn telemetry(deadline: u64) -> Job {
    job(deadline, r#"{"kind":"telemetry"}"#).0
}

fn training() -> (Job, Vec<Effect>) {
    job(9, r#"{"kind":"train","model":"mlp","dataset":"digits","rounds":1}"#)
}

fn chosen(name: &str) -> Event {
    Event::DeviceChosen { device: Some(device(name)) }
}

fn report(name: &str, attempt: u32, body: ReportBody) -> Event {
    let (job, purpose) = (JobId::parse("j").unwrap(), Purpose::Telemetry);
    let task = TaskId { job, round: RoundNumber(0), purpose, attempt: Attempt(attempt) };
    Event::Reported(Box::new(TaskReport { task, device: device(name), body }))
}

fn measured(name: &str, attempt: u32) -> Event {
    report(name, attempt, ReportBody::Measured(Box::<Telemetry>::default()))
}

fn declined(name: &str, attempt: u32, code: FailureCode) -> Event {
    report(name, attempt, ReportBody::Declined(Failure::new(code, "because")))
}

fn find(avoid: &[&str]) -> Effect {
    Effect::FindDevice { avoid: avoid.iter().map(|name| device(name)).collect() }
}

fn offer(name: &str, attempt: u32, timeout: u64) -> Effect {
    let (attempt, timeout_ms) = (Attempt(attempt), Millis(timeout));
    Effect::Offer { device: device(name), attempt, timeout_ms }
}

fn ending(effects: &[Effect]) -> (JobState, Option<&Failure>) {
    let Some(Effect::End { state, failure, .. }) = effects.last() else { panic!("{effects:?}") };
    (*state, failure.as_ref())
}

#[test]
fn a_device_is_found_and_answers() {
    let (mut job, effects) = job(100_000, r#"{"kind":"telemetry"}"#);
    assert_eq!(effects, [find(&[])]);
    assert_eq!(job.step(Millis(10), &chosen("a")), [offer("a", 1, 99_990)]);
    assert_eq!(job.step(Millis(10), &chosen("b")), []);
    assert_eq!((job.state, job.wake_at()), (JobState::Placed, Some(Millis(5010))));
    assert_eq!(job.pending_effects(), [offer("a", 1, 99_990)]);
    assert_eq!(job.step(Millis(20), &report("a", 1, ReportBody::Accepted)), []);
    assert_eq!((job.state, job.wake_at()), (JobState::Running, Some(Millis(50_010))));
    let effects = job.step(Millis(30), &measured("a", 1));
    assert_eq!(ending(&effects), (JobState::Succeeded, None));
    assert_eq!(job.step(Millis(30), &measured("a", 1)), []);
    assert_eq!((job.pending_effects(), job.wake_at()), (effects, None));
}

#[test]
fn the_job_waits_for_a_device_until_its_deadline() {
    let mut job = telemetry(2500);
    assert_eq!(job.step(Millis(0), &Event::DeviceChosen { device: None }), []);
    for now in [1000, 2000] {
        assert_eq!(job.wake_at(), Some(Millis(now)));
        assert_eq!(job.step(Millis(now), &Event::Tick), [find(&[])]);
    }
    let effects = job.step(Millis(2500), &Event::Tick);
    let (state, failure) = ending(&effects);
    assert_eq!(state, JobState::Failed);
    assert_eq!(
        failure.unwrap().message,
        "not done within 2500 ms; the last reason: no_device: no device that matches is online"
    );
}

#[test]
fn why_there_is_no_device_is_told_at_the_deadline() {
    let unplaced = |code, message: &str| Event::Unplaced { failure: Failure::new(code, message) };
    let overdue = |job: &mut Job| {
        let effects = job.step(Millis(2500), &Event::Tick);
        ending(&effects).1.unwrap().message.clone()
    };
    let mut job = telemetry(2500);
    job.step(Millis(0), &unplaced(FailureCode::Busy, "all are busy"));
    job.step(Millis(1), &unplaced(FailureCode::NoDevice, "none has cuda"));
    let expected = "not done within 2500 ms; the last reason: no_device: none has cuda";
    assert_eq!(overdue(&mut job), expected);
    let mut job = telemetry(2500);
    job.step(Millis(0), &chosen("a"));
    job.step(Millis(1), &declined("a", 1, FailureCode::DiskFull));
    job.step(Millis(2), &unplaced(FailureCode::NoDevice, "it is gone"));
    assert!(overdue(&mut job).ends_with("disk_full: a: because"));
}

#[test]
fn a_device_whose_engines_cannot_answer_is_not_asked_a_third_time() {
    let unavailable = |name: &str, attempt, message: &str| {
        let failure = Failure::new(FailureCode::EngineUnavailable, message);
        report(name, attempt, ReportBody::Failed(failure))
    };
    let mut job = telemetry(60_000);
    job.step(Millis(0), &chosen("a"));
    assert_eq!(job.step(Millis(1), &unavailable("a", 1, "operator Mod")), [find(&["a"])]);
    job.step(Millis(1), &chosen("b"));
    assert_eq!(job.step(Millis(2), &unavailable("b", 2, "operator Mod")), [find(&["a", "b"])]);
    job.step(Millis(5000), &chosen("a"));
    // Another reason may pass.
    assert_eq!(job.step(Millis(5001), &unavailable("a", 3, "signal 9")), [find(&["b", "a"])]);
    job.step(Millis(9000), &chosen("a"));
    let effects = job.step(Millis(9001), &unavailable("a", 4, "operator Mod"));
    let (state, failure) = ending(&effects);
    assert_eq!((state, failure.unwrap().message.as_str()), (JobState::Failed, "a: operator Mod"));
}

#[test]
fn another_device_is_tried_at_once_and_the_same_after_a_pause() {
    let mut job = telemetry(60_000);
    job.step(Millis(0), &chosen("a"));
    let lost = Event::DeviceLost { device: device("a") };
    assert_eq!(job.step(Millis(1), &lost), [find(&["a"])]);
    assert_eq!(job.step(Millis(1), &lost), []);
    assert_eq!(job.step(Millis(1), &chosen("b")), [offer("b", 2, 59_999)]);
    let busy = declined("b", 2, FailureCode::Busy);
    assert_eq!(job.step(Millis(2), &busy), [find(&["a", "b"])]);
    assert_eq!(job.step(Millis(2), &busy), []);
    assert_eq!(job.step(Millis(2), &chosen("b")), []);
    assert_eq!(job.wake_at(), Some(Millis(202)));
    assert_eq!(job.step(Millis(202), &Event::Tick), [find(&["a", "b"])]);
    assert_eq!(job.step(Millis(202), &chosen("b")).len(), 1);
    // What was given up may still answer.
    let effects = job.step(Millis(203), &measured("a", 1));
    assert!(matches!(&effects[..], [Effect::Withdraw { .. }, Effect::End { .. }]));
}

#[test]
fn attempts_are_bounded_but_not_by_busy_devices() {
    let mut job = telemetry(600_000);
    let mut now = 0;
    let mut fail = |job: &mut Job, code| {
        now += 10_000;
        assert_eq!(job.step(Millis(now), &chosen("a")).len(), 1);
        job.step(Millis(now), &declined("a", job.attempt.0, code))
    };
    for _ in 0..20 {
        assert_eq!(fail(&mut job, FailureCode::Busy), [find(&["a"])]);
    }
    for _ in 1..TRIES_MAX {
        assert_eq!(fail(&mut job, FailureCode::DiskFull), [find(&["a"])]);
    }
    let effects = fail(&mut job, FailureCode::DiskFull);
    let failure = ending(&effects).1.unwrap();
    assert_eq!(failure.code, FailureCode::DiskFull);
    assert_eq!(failure.message, "5 attempts failed, the last on a: because");
}

#[test]
fn what_cannot_succeed_elsewhere_ends_the_job() {
    let mut job = telemetry(600_000);
    job.step(Millis(0), &chosen("a"));
    let effects = job.step(Millis(0), &declined("a", 1, FailureCode::InvalidInput));
    assert_eq!(ending(&effects).1.unwrap().message, "a: because");
}

#[test]
fn silent_devices_are_given_up_before_the_deadline() {
    let mut job = telemetry(100_000);
    job.step(Millis(0), &chosen("a"));
    let effects = job.step(Millis(5000), &Event::Tick);
    assert!(matches!(&effects[..], [Effect::Withdraw { .. }, Effect::FindDevice { .. }]));
    job.step(Millis(6000), &chosen("b"));
    job.step(Millis(6000), &report("b", 2, ReportBody::Accepted));
    assert_eq!(job.wake_at(), Some(Millis(53_000)));
    assert_eq!(job.step(Millis(53_000), &Event::Tick).len(), 2);
    job.step(Millis(90_000), &chosen("c"));
    job.step(Millis(90_000), &report("c", 3, ReportBody::Accepted));
    assert_eq!(job.wake_at(), Some(Millis(100_000)));
    let effects = job.step(Millis(100_000), &Event::Tick);
    assert!(matches!(&effects[0], Effect::Withdraw { .. }));
    assert_eq!(ending(&effects).1.unwrap().message, "not done within 100000 ms; c was at it");
}

#[test]
fn foreign_reports_change_nothing() {
    let mut job = telemetry(100_000);
    job.step(Millis(0), &chosen("a"));
    let before = job.clone();
    for event in [
        measured("a", 2),
        report("b", 1, ReportBody::Accepted),
        declined("b", 1, FailureCode::Busy),
        Event::TrainingBegan,
        Event::TrainingEnded { failure: None },
        Event::DeviceLost { device: device("b") },
    ] {
        assert_eq!(job.step(Millis(1), &event), []);
        assert_eq!(job, before, "{event:?}");
    }
    let cancelled = report("a", 1, ReportBody::Cancelled);
    assert_eq!(job.step(Millis(1), &cancelled), [find(&["a"])]);
}

#[test]
fn a_request_cancels() {
    let mut job = telemetry(100_000);
    job.step(Millis(0), &chosen("a"));
    let effects = job.step(Millis(1), &Event::CancelRequested);
    assert!(matches!(&effects[..], [Effect::Withdraw { .. }, Effect::End { .. }]));
    assert_eq!(job.state, JobState::Cancelled);
    assert_eq!(job.step(Millis(1), &measured("a", 1)), []);
}

#[test]
fn a_training_begins_and_ends() {
    for (cancel, failure, state) in [
        (false, None, JobState::Succeeded),
        (true, None, JobState::Succeeded),
        (false, Some(FailureCode::NoQuorum), JobState::Failed),
        (true, Some(FailureCode::Cancelled), JobState::Cancelled),
    ] {
        let (mut job, effects) = training();
        assert_eq!(effects, [Effect::BeginTraining]);
        assert_eq!(job.step(Millis(1), &chosen("a")), []);
        assert_eq!(job.step(Millis(1), &Event::TrainingBegan), []);
        assert_eq!((job.state, job.wake_at()), (JobState::Running, None));
        assert_eq!(job.step(Millis(100), &Event::Tick), []);
        if cancel {
            assert_eq!(job.step(Millis(1), &Event::CancelRequested), [Effect::CancelTraining]);
            assert_eq!(job.step(Millis(1), &Event::CancelRequested), []);
            assert_eq!(job.pending_effects().len(), 2);
        }
        let failure = failure.map(|code| Failure::new(code, "because"));
        let effects = job.step(Millis(2), &Event::TrainingEnded { failure: failure.clone() });
        assert_eq!(ending(&effects), (state, failure.as_ref()));
    }
}
