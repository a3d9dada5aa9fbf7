use super::*;
use crate::id::{BlobRef, Bytes, DatasetName, Digest, JobId, RoundNumber};
use crate::report::{EvaluationReport, Progress};
use crate::spec::{EvaluateTask, Loss, Normalization, TaskWork};

mod properties;

fn id(job: &str, purpose: Purpose, attempt: u32) -> TaskId {
    let job = JobId::parse(job).unwrap();
    TaskId { job, round: RoundNumber(1), purpose, attempt: Attempt(attempt) }
}

fn task(id: TaskId) -> Task {
    let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
    let blob = BlobRef::by_digest(digest, Bytes(1));
    let work = match id.purpose {
        Purpose::Infer | Purpose::Telemetry => TaskWork::Telemetry,
        Purpose::Share | Purpose::Mask | Purpose::Unmask => TaskWork::Exchange,
        Purpose::Train | Purpose::Evaluate => TaskWork::Evaluate(EvaluateTask {
            graph: blob.clone(),
            parameters: blob,
            dataset: DatasetName::parse("digits").unwrap(),
            batch_size: 1,
            normalization: Normalization::Format,
            loss: Loss::default(),
            kept_local: Vec::new(),
            encoded: None,
        }),
    };
    Task { id, timeout_ms: Millis(100), work }
}

fn offer(id: &TaskId) -> Event {
    Event::Offered(Box::new(task(id.clone())))
}

fn done(id: &TaskId) -> Event {
    Event::Finished { task: id.clone(), body: judged() }
}

fn judged() -> ReportBody {
    ReportBody::Evaluated(EvaluationReport {
        examples: 10,
        loss: 0.5,
        accuracy: 0.9,
        duration_ms: Millis(7),
    })
}

fn worker(slots: u32) -> Worker {
    Worker::new(DeviceId::parse("pi").unwrap(), slots)
}

/// Task and body of the only effect, which is a report.
fn report(effects: &[Effect]) -> (TaskId, ReportBody) {
    match effects {
        [Effect::Report(report)] => (report.task.clone(), report.body.clone()),
        other => panic!("{other:?}"),
    }
}

fn failure_code(body: &ReportBody) -> Option<FailureCode> {
    if let ReportBody::Declined(failure) | ReportBody::Failed(failure) = body {
        Some(failure.code)
    } else {
        None
    }
}

#[test]
fn a_task_is_accepted_started_and_reported_once() {
    let mut worker = worker(1);
    let train = id("a", Purpose::Train, 1);
    let effects = worker.step(Millis(0), &offer(&train));
    assert!(matches!(&effects[..], [Effect::Start(started)] if started.id == train));
    assert_eq!(worker.step(Millis(0), &offer(&train)), []);
    let progress = Progress { step: 1, steps: 2, loss: 0.1, ..Progress::default() };
    let event = Event::Progressed { task: train.clone(), progress };
    assert_eq!(report(&worker.step(Millis(1), &event)).1, ReportBody::Progress(progress));
    assert_eq!(report(&worker.step(Millis(2), &done(&train))), (train.clone(), judged()));
    assert_eq!(worker.step(Millis(3), &done(&train)), []);
    assert_eq!(worker.step(Millis(3), &event), []);
    assert_eq!(report(&worker.step(Millis(9), &offer(&train))), (train, judged()));
    assert_eq!(worker.tasks(), []);
}

#[test]
fn what_ends_soon_need_not_be_accepted_before() {
    let mut worker = worker(3);
    let [quick, slow] = [id("quick", Purpose::Train, 1), id("slow", Purpose::Evaluate, 1)];
    for id in [&quick, &slow] {
        let offered = Task { timeout_ms: Millis(5000), ..task(id.clone()) };
        let effects = worker.step(Millis(10), &Event::Offered(Box::new(offered)));
        assert!(matches!(&effects[..], [Effect::Start(_)]), "{effects:?}");
    }
    assert_eq!(worker.wake_at(), Some(Millis(110)));
    assert_eq!(report(&worker.step(Millis(50), &done(&quick))), (quick, judged()));
    assert_eq!(worker.step(Millis(109), &Event::Tick), []);
    let told = report(&worker.step(Millis(110), &Event::Tick));
    assert_eq!(told, (slow.clone(), ReportBody::Accepted));
    assert_eq!(worker.step(Millis(111), &Event::Tick), []);
    assert_eq!(report(&worker.step(Millis(111), &offer(&slow))), (slow, ReportBody::Accepted));
    assert_eq!(worker.wake_at(), Some(Millis(5010)));
    // Where it matters that a device is at work when its round closes, it is told at once.
    let mut late = task(id("late", Purpose::Train, 1));
    let TaskWork::Evaluate(work) = &late.work else { unreachable!() };
    let work = serde_json::json!({"graph": work.graph, "parameters": work.parameters, "seed": 1,
        "dataset": "digits", "local": {"epochs": 1}, "accept_at_once": true});
    late.work = TaskWork::Train(serde_json::from_value(work).unwrap());
    let effects = worker.step(Millis(150), &Event::Offered(Box::new(late)));
    assert!(matches!(&effects[..], [Effect::Report(_), Effect::Start(_)]), "{effects:?}");
    // And so is who waits for an answer.
    let question = id("question", Purpose::Infer, 1);
    let effects = worker.step(Millis(200), &offer(&question));
    assert!(matches!(&effects[..], [Effect::Report(_), Effect::Start(_)]), "{effects:?}");
}

#[test]
fn taken_slots_decline_and_memory_is_bounded() {
    let mut worker = worker(2);
    for job in 0..1000 {
        let one = id(&format!("{job}-one"), Purpose::Train, 1);
        let two = id(&format!("{job}-two"), Purpose::Evaluate, 1);
        let three = id(&format!("{job}-three"), Purpose::Infer, 1);
        worker.step(Millis(0), &offer(&one));
        worker.step(Millis(0), &offer(&two));
        assert_eq!(worker.tasks(), [one.clone(), two.clone()]);
        let (_, body) = report(&worker.step(Millis(0), &offer(&three)));
        assert_eq!(failure_code(&body), Some(FailureCode::Busy));
        worker.step(Millis(0), &done(&one));
        worker.step(Millis(0), &done(&two));
        assert!(worker.finished.len() <= FINAL_REPORTS_MAX);
    }
}

#[test]
fn a_newer_attempt_takes_over_what_runs() {
    let mut worker = worker(1);
    let [first, second] = [1, 2].map(|attempt| id("a", Purpose::Train, attempt));
    worker.step(Millis(0), &offer(&first));
    assert_eq!(
        report(&worker.step(Millis(50), &offer(&second))),
        (second.clone(), ReportBody::Accepted)
    );
    assert_eq!(worker.wake_at(), Some(Millis(150)));
    assert_eq!(worker.tasks(), std::slice::from_ref(&second));
    // The older one is no longer of interest: not to offer, not to cancel.
    let (_, body) = report(&worker.step(Millis(50), &offer(&first)));
    assert_eq!(failure_code(&body), Some(FailureCode::Cancelled));
    let cancel = Event::CancelRequested { task: first.clone() };
    assert_eq!(worker.step(Millis(50), &cancel), []);
    assert_eq!(report(&worker.step(Millis(60), &done(&first))), (second, judged()));
    // A third attempt gets the result, too.
    let third = id("a", Purpose::Train, 3);
    assert_eq!(report(&worker.step(Millis(70), &offer(&third))), (third.clone(), judged()));
    assert_eq!(report(&worker.step(Millis(70), &offer(&third))), (third, judged()));
}

#[test]
fn a_newer_attempt_tries_again_what_failed() {
    let mut worker = worker(1);
    let [first, second] = [1, 2].map(|attempt| id("a", Purpose::Train, attempt));
    worker.step(Millis(0), &offer(&first));
    let failed = ReportBody::Failed(Failure::new(FailureCode::DiskFull, "no space"));
    let event = Event::Finished { task: first.clone(), body: failed.clone() };
    assert_eq!(report(&worker.step(Millis(1), &event)).1, failed);
    assert_eq!(report(&worker.step(Millis(1), &offer(&first))).1, failed);
    assert_eq!(worker.step(Millis(1), &offer(&second)).len(), 1);
}

#[test]
fn overdue_tasks_stop_with_the_reason() {
    let mut worker = worker(2);
    let train = id("a", Purpose::Train, 1);
    worker.step(Millis(5), &offer(&train));
    assert_eq!(worker.wake_at(), Some(Millis(105)));
    assert_eq!(worker.step(Millis(104), &Event::Tick), []);
    assert!(matches!(&worker.step(Millis(105), &Event::Tick)[..], [Effect::Stop { .. }]));
    assert_eq!(worker.wake_at(), None);
    assert_eq!(worker.step(Millis(105), &offer(&train)), []);
    let event = Event::Finished { task: train, body: ReportBody::Cancelled };
    let (_, body) = report(&worker.step(Millis(106), &event));
    assert_eq!(failure_code(&body), Some(FailureCode::DeadlineExceeded));
}

#[test]
fn cancelled_tasks_end_as_cancelled_unless_they_were_done() {
    for (body, expected) in [
        (ReportBody::Cancelled, ReportBody::Cancelled),
        (ReportBody::Failed(shutting_down()), ReportBody::Cancelled),
        (judged(), judged()),
    ] {
        let mut worker = worker(1);
        let train = id("a", Purpose::Train, 1);
        worker.step(Millis(0), &offer(&train));
        let cancel = Event::CancelRequested { task: train.clone() };
        assert_eq!(worker.step(Millis(0), &cancel).len(), 1);
        assert_eq!(worker.step(Millis(0), &cancel), []);
        let event = Event::Finished { task: train.clone(), body };
        assert_eq!(report(&worker.step(Millis(0), &event)).1, expected);
        assert_eq!(report(&worker.step(Millis(0), &offer(&train))).1, expected);
    }
}

#[test]
fn an_ending_agent_takes_nothing_and_stops_everything() {
    let mut worker = worker(2);
    let train = id("a", Purpose::Train, 1);
    worker.step(Millis(0), &offer(&train));
    assert_eq!(worker.step(Millis(1), &Event::ShutdownRequested).len(), 1);
    let (_, body) = report(&worker.step(Millis(1), &offer(&id("b", Purpose::Infer, 1))));
    assert_eq!(failure_code(&body), Some(FailureCode::ShuttingDown));
    let event = Event::Finished { task: train, body: ReportBody::Cancelled };
    let (_, body) = report(&worker.step(Millis(2), &event));
    assert_eq!(failure_code(&body), Some(FailureCode::ShuttingDown));
}

#[test]
fn an_answer_to_a_client_is_given_again_by_working_again() {
    let mut worker = worker(2);
    let infer = id("a", Purpose::Infer, 1);
    assert_eq!(worker.step(Millis(0), &offer(&infer)).len(), 2);
    assert_eq!(worker.step(Millis(0), &offer(&id("a", Purpose::Infer, 2))).len(), 2);
    worker.step(Millis(0), &Event::Finished { task: infer.clone(), body: judged() });
    assert_eq!(worker.step(Millis(0), &offer(&infer)).len(), 2);
}

#[test]
fn an_executor_without_an_answer_is_a_fault_of_the_program() {
    let mut worker = worker(1);
    let train = id("a", Purpose::Train, 1);
    worker.step(Millis(0), &offer(&train));
    let event = Event::Finished { task: train, body: ReportBody::Accepted };
    let (_, body) = report(&worker.step(Millis(0), &event));
    assert_eq!(failure_code(&body), Some(FailureCode::Internal));
}
