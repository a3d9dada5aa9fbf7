//! What holds for every sequence of events, beside a worker told in the simplest way.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SLOTS: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    Offer(TaskId),
    Cancel(TaskId),
    Finish(TaskId, bool),
    Progress(TaskId),
    Shutdown,
    Tick,
}

fn op() -> impl Strategy<Value = Op> {
    let purpose = prop::sample::select(vec![Purpose::Train, Purpose::Infer]);
    let task = (prop::sample::select(vec!["a", "b", "c"]), purpose, 1..4_u32)
        .prop_map(|(job, purpose, attempt)| id(job, purpose, attempt));
    prop_oneof![
        10 => task.clone().prop_map(Op::Offer),
        2 => task.clone().prop_map(Op::Cancel),
        8 => (task.clone(), any::<bool>()).prop_map(|(task, good)| Op::Finish(task, good)),
        2 => task.prop_map(Op::Progress),
        1 => prop::bool::weighted(0.1).prop_map(|end| if end { Op::Shutdown } else { Op::Tick }),
        3 => Just(Op::Tick),
    ]
}

/// A piece of work: a job's training, or one attempt at an answer.
type Work = (String, Purpose, u32);

fn work(task: &TaskId) -> Work {
    let attempt = if task.purpose == Purpose::Train { 0 } else { task.attempt.0 };
    (task.job.to_string(), task.purpose, attempt)
}

#[derive(Debug, Clone)]
struct Going {
    started: TaskId,
    attempt: u32,
    until: u64,
    /// When it is told that it was accepted.
    told_at: Option<u64>,
    stopped: Option<FailureCode>,
}

#[derive(Debug, Default)]
struct Model {
    going: Vec<Going>,
    /// Newest attempt of a finished training, and how it ended.
    done: BTreeMap<Work, (u32, &'static str)>,
    ending: bool,
}

impl Model {
    /// The effects that must follow, as words.
    fn step(&mut self, now: u64, op: &Op) -> Vec<String> {
        match op {
            Op::Offer(task) => self.offer(now, task),
            Op::Cancel(task) => self.stop(FailureCode::Cancelled, |going| {
                work(&going.started) == work(task) && going.attempt <= task.attempt.0
            }),
            Op::Shutdown => {
                self.ending = true;
                self.stop(FailureCode::ShuttingDown, |_| true)
            }
            Op::Tick => {
                let mut words =
                    self.stop(FailureCode::DeadlineExceeded, |going| going.until <= now);
                for going in self.going.iter_mut().filter(|going| going.stopped.is_none()) {
                    if going.told_at.take_if(|at| *at <= now).is_some() {
                        words.push(format!("accepted {}", going.attempt));
                    }
                }
                words
            }
            Op::Progress(task) => {
                let going = self.going.iter().find(|going| going.started == *task);
                let going = going.filter(|going| going.stopped.is_none());
                going.map(|going| format!("progress {}", going.attempt)).into_iter().collect()
            }
            Op::Finish(task, good) => {
                let Some(index) = self.going.iter().position(|going| going.started == *task) else {
                    return Vec::new();
                };
                let going = self.going.remove(index);
                let word = match going.stopped {
                    _ if *good => "good",
                    Some(FailureCode::Cancelled) => "cancelled",
                    Some(code) => code.as_str(),
                    None => "disk_full",
                };
                let newest = self.done.get(&work(task)).is_none_or(|done| done.0 < going.attempt);
                if task.purpose == Purpose::Train && newest {
                    self.done.insert(work(task), (going.attempt, word));
                }
                vec![format!("{word} {}", going.attempt)]
            }
        }
    }

    fn offer(&mut self, now: u64, task: &TaskId) -> Vec<String> {
        let attempt = task.attempt.0;
        let same = |going: &&mut Going| work(&going.started) == work(task);
        if let Some(going) = self.going.iter_mut().rev().find(same) {
            if attempt < going.attempt {
                return vec![format!("cancelled {attempt}")];
            }
            if attempt == going.attempt {
                let heard = going.stopped.is_none() && going.told_at.is_none();
                return heard.then(|| format!("accepted {attempt}")).into_iter().collect();
            }
            if going.stopped.is_none() {
                (going.attempt, going.until, going.told_at) = (attempt, now + 100, None);
                return vec![format!("accepted {attempt}")];
            }
        }
        if let Some((known, word)) = self.done.get(&work(task)).copied() {
            if attempt < known {
                return vec![format!("cancelled {attempt}")];
            }
            if attempt == known || word == "good" {
                self.done.insert(work(task), (attempt, word));
                return vec![format!("{word} {attempt}")];
            }
        }
        if self.ending {
            return vec![format!("shutting_down {attempt}")];
        }
        if self.going.len() == SLOTS {
            return vec![format!("busy {attempt}")];
        }
        let (started, until) = (task.clone(), now + 100);
        let told_at = (task.purpose == Purpose::Train).then_some(now + 100);
        self.going.push(Going { started, attempt, until, told_at, stopped: None });
        let told = told_at.is_none().then(|| format!("accepted {attempt}"));
        told.into_iter().chain([format!("start {attempt}")]).collect()
    }

    fn stop(&mut self, code: FailureCode, chosen: impl Fn(&Going) -> bool) -> Vec<String> {
        let mut words = Vec::new();
        for going in &mut self.going {
            if going.stopped.is_none() && chosen(going) {
                going.stopped = Some(code);
                words.push(format!("stop {}", going.started.attempt));
            }
        }
        words
    }
}

fn word(effect: &Effect) -> String {
    match effect {
        Effect::Start(task) => format!("start {}", task.id.attempt),
        Effect::Stop { task, .. } => format!("stop {}", task.attempt),
        Effect::Report(report) => {
            let word = match &report.body {
                ReportBody::Accepted => "accepted",
                ReportBody::Progress(_) => "progress",
                ReportBody::Cancelled => "cancelled",
                ReportBody::Declined(failure) | ReportBody::Failed(failure) => {
                    failure.code.as_str()
                }
                ReportBody::Trained(_)
                | ReportBody::Exchanged(_)
                | ReportBody::Evaluated(_)
                | ReportBody::Inferred(_)
                | ReportBody::Measured(_) => "good",
            };
            format!("{word} {}", report.task.attempt)
        }
    }
}

proptest! {
    #[test]
    fn a_worker_does_what_the_model_says(ops in prop::collection::vec((0..40_u64, op()), 0..80)) {
        let mut worker = worker(2);
        let mut model = Model::default();
        let mut now = 0;
        for (pause, op) in ops {
            now += pause;
            let event = match &op {
                Op::Offer(task) => offer(task),
                Op::Cancel(task) => Event::CancelRequested { task: task.clone() },
                Op::Finish(task, true) => done(task),
                Op::Finish(task, false) => {
                    let failure = Failure::new(FailureCode::DiskFull, "full");
                    Event::Finished { task: task.clone(), body: ReportBody::Failed(failure) }
                }
                Op::Progress(task) => Event::Progressed {
                    task: task.clone(),
                    progress: Progress { step: 1, steps: 2, loss: 0.5, ..Progress::default() },
                },
                Op::Shutdown => Event::ShutdownRequested,
                Op::Tick => Event::Tick,
            };
            let effects = worker.step(Millis(now), &event);
            let words: Vec<String> = effects.iter().map(word).collect();
            prop_assert_eq!(words, model.step(now, &op), "after {:?}", op);
            prop_assert!(worker.running.len() <= SLOTS);
            prop_assert_eq!(worker.tasks().len(), model.going.len());
            // A repetition starts nothing and changes nothing; the state can be stored.
            let after = worker.clone();
            let again = worker.step(Millis(now), &event);
            model.step(now, &op);
            prop_assert!(!again.iter().any(|effect| !matches!(effect, Effect::Report(_))));
            prop_assert_eq!(&worker, &after);
            let stored = serde_json::to_string(&worker).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Worker>(&stored).unwrap(), &worker);
            if let Event::Tick = event {
                prop_assert!(worker.wake_at().is_none_or(|at| at.0 > now));
            }
        }
    }
}
