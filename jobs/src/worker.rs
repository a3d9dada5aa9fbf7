//! A device's side of tasks: offered, at work, reported exactly once.
//!
//! Bounded: `slots` tasks at work, and a bounded memory of final reports, from which an offer
//! that is delivered again is answered without working again.

use serde::{Deserialize, Serialize};

use crate::id::{DeviceId, Millis};
use crate::report::{Failure, ReportBody, TaskReport};
use crate::spec::{Task, TaskId};

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

/// The machine of a device's work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    device: DeviceId,
    slots: u32,
}

impl Worker {
    /// An idle worker.
    pub fn new(_device: DeviceId, _slots: u32) -> Self {
        unimplemented!()
    }

    /// Applies an event; total over states and events, idempotent for repeated events.
    pub fn step(&mut self, _now: Millis, _event: &Event) -> Vec<Effect> {
        unimplemented!()
    }

    /// When to send [`Event::Tick`] if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        unimplemented!()
    }

    /// Tasks at work, in order.
    pub fn tasks(&self) -> Vec<TaskId> {
        unimplemented!()
    }
}
