//! The shell around the worker machines: offers and results in, effects performed.
//!
//! Two machines, so that a question never waits behind a training: one for training and
//! evaluation with the configured slots, one for inference and telemetry. This task owns both
//! and holds no rule.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{JobId, Millis};
use jobs::report::{Failure, TaskReport};
use jobs::spec::{Offer, Purpose, Task, TaskId};
use jobs::worker::{Effect, Event, Worker};
use jobs::{subject, wire};
use tokio::sync::{mpsc, watch};

use crate::AgentError;
use crate::clock::Clock;
use crate::device::Device;
use crate::execute::{Executor, Latest, Outcome, Stop};

use self::reporter::Reporter;

mod reporter;

/// Inference and telemetry tasks at once, at most; the next ones are declined as busy.
const QUICK_SLOTS: u32 = 32;
/// Results and progress that wait for the machines, at most.
const INBOX_MAX: usize = 256;

/// What executors tell.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "few wait at a time")]
pub(crate) enum Told {
    /// How far a training is: the newest of it is to be taken there.
    Progress(TaskId, Latest),
    /// The end of a task.
    Done(TaskId, Outcome),
}

/// All work of a device.
#[derive(Debug)]
pub(crate) struct Work {
    device: Arc<Device>,
    offers: Subscriber,
    heavy: Worker,
    quick: Worker,
    running: HashMap<TaskId, AtWork>,
    executor: Executor,
    reporter: Reporter,
    told: mpsc::Receiver<Told>,
    /// The newest failure of a task, which is told once.
    failed: Option<(JobId, String)>,
}

/// Bytes that came with what caused effects.
#[derive(Debug)]
enum Binary {
    None,
    /// Of a task that was offered: reports do not carry it back.
    Input(Bytes),
    /// Of a task that came to an end.
    Outputs(Bytes),
}

/// A task that an executor has.
#[derive(Debug)]
struct AtWork {
    stop: watch::Sender<Option<Stop>>,
    /// Where the answer goes, for those who wait for one.
    reply: Option<String>,
}

impl Work {
    /// Listens to offers.
    pub(crate) async fn subscribe(device: &Arc<Device>) -> Result<Self, AgentError> {
        let id = device.config.device.clone();
        let offers = device.subscribe(subject::offer(&id)).await?;
        let (tell, told) = mpsc::channel(INBOX_MAX);
        Ok(Self {
            offers,
            heavy: Worker::new(id.clone(), device.config.slots),
            quick: Worker::new(id, QUICK_SLOTS),
            running: HashMap::new(),
            executor: Executor::new(device.clone(), tell),
            reporter: Reporter::start(device.clone()),
            told,
            failed: None,
            device: device.clone(),
        })
    }

    /// Works until `stopping` says so and the work at hand has ended.
    pub(crate) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut ending = false;
        while !(ending && self.running.is_empty()) {
            let wake = self.sleep_until_wake();
            tokio::select! {
                Some(message) = self.offers.next() => self.offered(message).await,
                Some(told) = self.told.recv() => self.told(told).await,
                () = wake => self.step_both(&Event::Tick).await,
                () = stop_requested(&mut stopping), if !ending => {
                    ending = true;
                    self.step_both(&Event::ShutdownRequested).await;
                }
            }
        }
        self.reporter.finish().await;
    }

    async fn offered(&mut self, message: Message) {
        let length = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(wire::JSON_LENGTH_HEADER))
            .and_then(|length| length.as_str().parse().ok());
        match wire::decode_with_binary::<Offer>(&message.payload, length) {
            Ok((Offer::Task(task), binary)) => {
                let reply = message.reply.map(|reply| reply.to_string());
                let effects = self.step(task.id.purpose, &Event::Offered(task));
                self.perform(effects, Binary::Input(binary), reply).await;
            }
            Ok((Offer::Cancel { task, reason, refused: true }, _)) => {
                let at = Clock::now();
                self.device.refusals.note(at, &task, &reason);
            }
            Ok((Offer::Cancel { task, reason, refused: false }, _)) => {
                tracing::info!(job = %task.job, reason, "asked to stop");
                let effects = self.step(task.purpose, &Event::CancelRequested { task });
                self.perform(effects, Binary::None, None).await;
            }
            Err(error) => tracing::warn!("offer that cannot be read: {error}"),
        }
    }

    async fn told(&mut self, told: Told) {
        match told {
            Told::Progress(task, latest) => {
                let Some(progress) = latest.take() else { return };
                let effects = self.step(task.purpose, &Event::Progressed { task, progress });
                self.perform(effects, Binary::None, None).await;
            }
            Told::Done(task, outcome) => {
                let reply = self.running.remove(&task).and_then(|at_work| at_work.reply);
                let event = Event::Finished { task, body: outcome.body };
                let purpose = event_purpose(&event);
                let effects = self.step(purpose, &event);
                self.perform(effects, Binary::Outputs(outcome.outputs), reply).await;
                self.show_tasks();
            }
        }
    }

    async fn step_both(&mut self, event: &Event) {
        for purpose in [Purpose::Train, Purpose::Infer] {
            let effects = self.step(purpose, event);
            self.perform(effects, Binary::None, None).await;
        }
    }

    fn step(&mut self, purpose: Purpose, event: &Event) -> Vec<Effect> {
        let now = self.device.clock.steady();
        match purpose {
            Purpose::Train | Purpose::Evaluate => self.heavy.step(now, event),
            // Stages of a round wait for nothing: their neighbours wait for them.
            Purpose::Share
            | Purpose::Mask
            | Purpose::Unmask
            | Purpose::Infer
            | Purpose::Telemetry => self.quick.step(now, event),
        }
    }

    /// Performs effects; `binary` and `reply` belong to the message or result that caused them.
    async fn perform(&mut self, effects: Vec<Effect>, binary: Binary, reply: Option<String>) {
        let (input, outputs) = match binary {
            Binary::Input(input) => (input, Bytes::new()),
            Binary::Outputs(outputs) => (Bytes::new(), outputs),
            Binary::None => Default::default(),
        };
        for effect in effects {
            match effect {
                Effect::Start(task) => self.start(*task, input.clone(), reply.clone()),
                Effect::Stop { task, failure } => self.stop(&task, failure),
                Effect::Report(report) => {
                    self.report(*report, outputs.clone(), reply.clone()).await;
                }
            }
        }
    }

    fn start(&mut self, task: Task, input: Bytes, reply: Option<String>) {
        let (stop, stopped) = watch::channel(None);
        self.running.insert(task.id.clone(), AtWork { stop, reply });
        self.show_tasks();
        self.executor.start(task, input, stopped);
    }

    fn stop(&mut self, task: &TaskId, failure: Failure) {
        if let Some(at_work) = self.running.get(task) {
            let _ = at_work.stop.send(Some(Stop(failure)));
        }
    }

    async fn report(&mut self, report: TaskReport, outputs: Bytes, reply: Option<String>) {
        if let jobs::report::ReportBody::Failed(failure) = &report.body {
            let (job, code) = (&report.task.job, failure.code.as_str());
            let failed = Some((job.clone(), failure.message.clone()));
            if self.failed == failed {
                tracing::debug!(%job, code, "task failed again for the same reason");
            } else {
                tracing::warn!(%job, code, "task failed: {}", failure.message);
            }
            self.failed = failed;
        }
        match report.task.purpose {
            Purpose::Train
            | Purpose::Evaluate
            | Purpose::Share
            | Purpose::Mask
            | Purpose::Unmask => self.reporter.to_stream(report).await,
            Purpose::Infer | Purpose::Telemetry => {
                if let Some(reply) = reply {
                    self.reporter.to_inbox(report, &outputs, reply).await;
                }
            }
        }
    }

    fn show_tasks(&self) {
        let mut tasks = self.heavy.tasks();
        tasks.extend(self.quick.tasks());
        self.device.tasks.send_replace(tasks);
    }

    /// Completes when a machine wants to be called again.
    fn sleep_until_wake(&self) -> impl Future<Output = ()> + use<> {
        let wake = [self.heavy.wake_at(), self.quick.wake_at()].into_iter().flatten().min();
        let now = self.device.clock.steady();
        async move {
            match wake {
                Some(wake) => {
                    let Millis(wait) = wake.since(now);
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                None => std::future::pending().await,
            }
        }
    }
}

/// Waits until the agent is to end.
async fn stop_requested(stopping: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to ask: an end too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn event_purpose(event: &Event) -> Purpose {
    match event {
        Event::Finished { task, .. }
        | Event::CancelRequested { task }
        | Event::Progressed { task, .. } => task.purpose,
        Event::Offered(task) => task.id.purpose,
        Event::ShutdownRequested | Event::Tick => Purpose::Train,
    }
}
