//! A device's side of tasks: offered, at work, reported exactly once.
//!
//! ```text
//!            slots taken, ending: Declined
//!  Offered ──────────────────────────────▶ (not taken)
//!     │ Start; Accepted, of a round's task only where its end does not follow soon
//!     ▼         CancelRequested, Tick, ShutdownRequested: Stop
//!  running ───────────────────────────────▶ stopping
//!     │ Finished: final report                 │ Finished: final report with the reason
//!     └──────────────▶ finished ◀──────────────┘
//! ```
//!
//! - An offer of a running task: `Accepted` again, once it was told. Of a finished one: its final
//!   report again.
//! - A newer attempt at the work of a round (same job, round and purpose) takes over what runs,
//!   or gets the result that is there; what had failed is tried again. An older attempt is
//!   declined.
//! - Answers to a waiting client (infer, telemetry) are not remembered, as their binary part is
//!   not: such a task is done again, and another attempt is another task.
//! - Work that was done although it was to stop is reported as done.
//!
//! Bounded: `slots` tasks at work, [`FINAL_REPORTS_MAX`] final reports.

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, DeviceId, Millis};
use crate::report::{Failure, FailureCode, ReportBody, TaskReport};
use crate::spec::{Purpose, Task, TaskId, TaskWork};

/// What happened to the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A task was offered.
    Offered(Box<Task>),
    /// A task is no longer wanted.
    CancelRequested {
        /// Which.
        task: TaskId,
    },
    /// The executor came to an end with a task.
    Finished {
        /// Which.
        task: TaskId,
        /// A final report body.
        body: ReportBody,
    },
    /// The executor is on its way.
    Progressed {
        /// Which.
        task: TaskId,
        /// How far.
        progress: crate::report::Progress,
    },
    /// The agent is ending: nothing new is taken, work is stopped and reported as failed
    /// with [`crate::report::FailureCode::ShuttingDown`].
    ShutdownRequested,
    /// Time passed: overdue tasks are stopped.
    Tick,
}

/// What the agent has to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Effect {
    /// Start working on a task.
    Start(Box<Task>),
    /// Make the executor stop a task soon; it still answers with [`Event::Finished`].
    Stop {
        /// Which.
        task: TaskId,
        /// Why, for the report.
        failure: Failure,
    },
    /// Send a report.
    Report(Box<TaskReport>),
}

/// How soon it is told that a task of a round was accepted, unless its end is told before or the task
/// wants it at once: a report less where rounds are quick. An offer that nobody accepted is sent again
/// much later.
const ACCEPTED_WITHIN: Millis = Millis(100);
/// Final reports that are remembered.
pub const FINAL_REPORTS_MAX: usize = 64;

/// The machine of a device's work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    device: DeviceId,
    slots: u32,
    /// At work, the oldest first.
    running: Vec<Running>,
    /// What became of the tasks of rounds, the oldest first; one per work.
    finished: VecDeque<TaskReport>,
    shutting_down: bool,
}

/// A task that an executor has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Running {
    /// As it was started.
    task: Box<Task>,
    /// The newest attempt at the same work: what reports are about.
    attempt: Attempt,
    overdue_at: Millis,
    /// When it is to be told that it was accepted.
    accepted_at: Option<Millis>,
    /// Why it was told to stop.
    stopping: Option<Failure>,
}

impl Running {
    fn reported_id(&self) -> TaskId {
        TaskId { attempt: self.attempt, ..self.task.id.clone() }
    }
}

impl Worker {
    /// An idle worker.
    pub fn new(device: DeviceId, slots: u32) -> Self {
        let (running, finished) = (Vec::new(), VecDeque::new());
        Self { device, slots, running, finished, shutting_down: false }
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    pub fn step(&mut self, now: Millis, event: &Event) -> Vec<Effect> {
        match event {
            Event::Offered(task) => self.offered(now, task),
            Event::CancelRequested { task } => {
                let failure = Failure::new(FailureCode::Cancelled, "stopped on request");
                self.stop(&failure, |running| {
                    is_same_work(&running.task.id, task) && running.attempt <= task.attempt
                })
            }
            Event::Finished { task, body } => self.finished(task, body),
            Event::Progressed { task, progress } => {
                let found = self.running.iter().find(|running| running.task.id == *task);
                let found = found.filter(|running| running.stopping.is_none());
                let body = ReportBody::Progress(*progress);
                found.map(|running| self.report(running.reported_id(), body)).into_iter().collect()
            }
            Event::ShutdownRequested => {
                self.shutting_down = true;
                self.stop(&shutting_down(), |_| true)
            }
            Event::Tick => {
                let code = FailureCode::DeadlineExceeded;
                let failure = Failure::new(code, "not done within the time that the task gave");
                let mut effects = self.stop(&failure, |running| running.overdue_at <= now);
                effects.extend(self.tell_accepted(now));
                effects
            }
        }
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        let going = self.running.iter().filter(|running| running.stopping.is_none());
        going.map(|it| it.accepted_at.map_or(it.overdue_at, |at| at.min(it.overdue_at))).min()
    }

    /// Tasks at work, in order; of a work that was offered again the newest attempt.
    pub fn tasks(&self) -> Vec<TaskId> {
        let mut tasks: Vec<TaskId> = self.running.iter().map(Running::reported_id).collect();
        tasks.sort();
        tasks
    }

    fn offered(&mut self, now: Millis, task: &Task) -> Vec<Effect> {
        if let Some(effects) = self.answer_running(now, task) {
            return effects;
        }
        if let Some(effects) = self.answer_finished(task) {
            return effects;
        }
        if self.shutting_down {
            return vec![self.report(task.id.clone(), ReportBody::Declined(shutting_down()))];
        }
        if self.running.len() >= self.slots as usize {
            let message = format!("all {} slots are taken", self.slots);
            let failure = Failure::new(FailureCode::Busy, message);
            return vec![self.report(task.id.clone(), ReportBody::Declined(failure))];
        }
        let may_wait = match &task.work {
            TaskWork::Train(work) => !work.accept_at_once,
            TaskWork::TrainMasked(_) | TaskWork::Evaluate(_) | TaskWork::Exchange => true,
            TaskWork::Infer(_) | TaskWork::Telemetry => false,
        };
        self.running.push(Running {
            task: Box::new(task.clone()),
            attempt: task.id.attempt,
            overdue_at: now.plus(task.timeout_ms),
            accepted_at: may_wait.then(|| now.plus(ACCEPTED_WITHIN)),
            stopping: None,
        });
        let start = Effect::Start(Box::new(task.clone()));
        if may_wait {
            return vec![start];
        }
        vec![self.report(task.id.clone(), ReportBody::Accepted), start]
    }

    /// Tells what was accepted a while ago and goes on.
    fn tell_accepted(&mut self, now: Millis) -> Vec<Effect> {
        let mut tasks = Vec::new();
        for running in self.running.iter_mut().filter(|running| running.stopping.is_none()) {
            if running.accepted_at.take_if(|at| *at <= now).is_some() {
                tasks.push(running.reported_id());
            }
        }
        tasks.into_iter().map(|task| self.report(task, ReportBody::Accepted)).collect()
    }

    /// The answer to an offer of work that came to an end here; `None` when there is none.
    fn answer_finished(&mut self, task: &Task) -> Option<Vec<Effect>> {
        let index = self.finished.iter().position(|done| is_same_work(&done.task, &task.id))?;
        let done = &self.finished[index];
        match task.id.attempt.cmp(&done.task.attempt) {
            Ordering::Less => Some(vec![self.superseded(task.id.clone(), done.task.attempt)]),
            Ordering::Equal => Some(vec![Effect::Report(Box::new(done.clone()))]),
            Ordering::Greater if is_success(&done.body) => {
                // The work is done: the new attempt gets its result.
                let mut report = self.finished.remove(index)?;
                report.task = task.id.clone();
                self.finished.push_back(report.clone());
                Some(vec![Effect::Report(Box::new(report))])
            }
            Ordering::Greater => None,
        }
    }

    /// The answer to an offer of work that is going on here; `None` when there is none.
    fn answer_running(&mut self, now: Millis, task: &Task) -> Option<Vec<Effect>> {
        let same = |running: &Running| is_same_work(&running.task.id, &task.id);
        // A stopped attempt may still be ending beside a newer one.
        let index = self.running.iter().rposition(same)?;
        let running = &mut self.running[index];
        match task.id.attempt.cmp(&running.attempt) {
            Ordering::Less => {
                let newer = running.attempt;
                Some(vec![self.superseded(task.id.clone(), newer)])
            }
            Ordering::Equal if running.stopping.is_some() => Some(Vec::new()),
            // It is told soon.
            Ordering::Equal if running.accepted_at.is_some() => Some(Vec::new()),
            Ordering::Equal => Some(vec![self.report(task.id.clone(), ReportBody::Accepted)]),
            Ordering::Greater if running.stopping.is_none() => {
                running.accepted_at = None;
                running.attempt = task.id.attempt;
                running.overdue_at = running.overdue_at.max(now.plus(task.timeout_ms));
                Some(vec![self.report(task.id.clone(), ReportBody::Accepted)])
            }
            Ordering::Greater => None,
        }
    }

    fn finished(&mut self, task: &TaskId, body: &ReportBody) -> Vec<Effect> {
        let Some(index) = self.running.iter().position(|running| running.task.id == *task) else {
            return Vec::new();
        };
        let running = self.running.remove(index);
        let body = match running.stopping {
            _ if is_success(body) => body.clone(),
            Some(Failure { code: FailureCode::Cancelled, .. }) => ReportBody::Cancelled,
            Some(failure) => ReportBody::Failed(failure),
            None if body.is_final() => body.clone(),
            None => {
                let message = "the executor ended without a final report";
                ReportBody::Failed(Failure::new(FailureCode::Internal, message))
            }
        };
        let id = TaskId { attempt: running.attempt, ..running.task.id };
        let report = TaskReport { task: id, device: self.device.clone(), body };
        if is_remembered(report.task.purpose) {
            self.remember(report.clone());
        }
        vec![Effect::Report(Box::new(report))]
    }

    fn remember(&mut self, report: TaskReport) {
        // A stopped attempt that ends after a newer one says nothing new of the work.
        let known = self.finished.iter().position(|done| is_same_work(&done.task, &report.task));
        if let Some(index) = known {
            if self.finished[index].task.attempt > report.task.attempt {
                return;
            }
            self.finished.remove(index);
        } else if self.finished.len() == FINAL_REPORTS_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back(report);
    }

    fn stop(&mut self, failure: &Failure, chosen: impl Fn(&Running) -> bool) -> Vec<Effect> {
        let going = self.running.iter_mut().filter(|running| running.stopping.is_none());
        let stopped = going.filter(|running| chosen(running)).map(|running| {
            running.stopping = Some(failure.clone());
            Effect::Stop { task: running.task.id.clone(), failure: failure.clone() }
        });
        stopped.collect()
    }

    fn superseded(&self, task: TaskId, newer: Attempt) -> Effect {
        let message = format!("attempt {newer} of the same work is known here");
        self.report(task, ReportBody::Declined(Failure::new(FailureCode::Cancelled, message)))
    }

    fn report(&self, task: TaskId, body: ReportBody) -> Effect {
        Effect::Report(Box::new(TaskReport { task, device: self.device.clone(), body }))
    }
}

/// Whether two ids name the same work, be it another attempt. Answers to a waiting client are
/// never the same work twice: each attempt has a reply subject of its own.
fn is_same_work(one: &TaskId, other: &TaskId) -> bool {
    let same = one.job == other.job && one.round == other.round && one.purpose == other.purpose;
    same && (is_remembered(one.purpose) || one.attempt == other.attempt)
}

/// Whether reports of this purpose go into a stream and stand for themselves. The answers to
/// others hold a binary part that is not kept, so that such a task is done again.
fn is_remembered(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Train | Purpose::Evaluate | Purpose::Share | Purpose::Mask | Purpose::Unmask => {
            true
        }
        Purpose::Infer | Purpose::Telemetry => false,
    }
}

fn is_success(body: &ReportBody) -> bool {
    match body {
        ReportBody::Trained(_)
        | ReportBody::Exchanged(_)
        | ReportBody::Evaluated(_)
        | ReportBody::Inferred(_)
        | ReportBody::Measured(_) => true,
        ReportBody::Accepted
        | ReportBody::Progress(_)
        | ReportBody::Declined(_)
        | ReportBody::Failed(_)
        | ReportBody::Cancelled => false,
    }
}

fn shutting_down() -> Failure {
    Failure::new(FailureCode::ShuttingDown, "the agent is ending")
}

#[cfg(test)]
mod tests;
