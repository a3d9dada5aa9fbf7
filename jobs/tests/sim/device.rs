//! Devices: the real worker, an executor that takes time, and reports that are sent until they
//! are stored.

use jobs::id::{DeviceId, Millis};
use jobs::report::{EvaluationReport, Failure, FailureCode, ReportBody, TaskReport, UpdateReport};
use jobs::spec::{Offer, Purpose, TaskId, TaskWork};
use jobs::worker::{Effect, Event, Worker};
use rand::RngExt as _;

use crate::masked::{Desk, Question, confused};
use crate::world::{Blob, Happening, World, mixed, reference};

/// How long a broker hears nothing before it takes a device for lost.
const SILENCE: u64 = 900;

pub(crate) struct Device {
    pub(crate) id: DeviceId,
    /// Counts its processes.
    pub(crate) instance: u32,
    /// Absent while it is down.
    pub(crate) worker: Option<Worker>,
    /// What it keeps of masked rounds.
    pub(crate) desk: Desk,
}

impl Device {
    pub(crate) fn new(number: u32) -> Self {
        let id: DeviceId = format!("device-{number}").parse().unwrap();
        let (worker, desk) = (Some(Worker::new(id.clone(), 2)), Desk::default());
        Self { worker, id, instance: 1, desk }
    }
}

impl World {
    /// A message to a device on its way: it may be lost, repeated, or late.
    pub(crate) fn send_offer(
        &mut self,
        device: &DeviceId,
        offer: &Offer,
        question: Option<&Question>,
    ) {
        let device = self.devices.iter().position(|known| known.id == *device).unwrap();
        let copies = match (self.goes_wrong(), self.goes_wrong()) {
            (true, _) => 0,
            (false, repeated) => 1 + u32::from(repeated),
        };
        if copies == 0 {
            self.counts.offers_lost += 1;
        }
        for _ in 0..copies {
            let delay = self.delay(10);
            let (offer, question) = (offer.clone(), question.cloned());
            self.after(delay, Happening::OfferArrives { device, offer, question });
        }
    }

    pub(crate) fn offer_arrives(
        &mut self,
        device: usize,
        offer: Offer,
        question: Option<Question>,
    ) -> Result<(), String> {
        let event = match offer {
            Offer::Task(task) => Event::Offered(task),
            Offer::Cancel { task, .. } => Event::CancelRequested { task },
        };
        if self.goes_wrong() && self.random.random_bool(0.3) {
            self.device_crashes(device);
            return Ok(());
        }
        self.step_worker(device, &event, question)
    }

    fn step_worker(
        &mut self,
        device: usize,
        event: &Event,
        mut question: Option<Question>,
    ) -> Result<(), String> {
        let now = Millis(self.now);
        let Some(worker) = &mut self.devices[device].worker else { return Ok(()) };
        let effects = worker.step(now, event);
        let instance = self.devices[device].instance;
        for effect in effects {
            match effect {
                Effect::Start(task) => {
                    let delay = self.delay(400);
                    let task = self.result_of(device, *task, question.take())?;
                    self.after(delay, Happening::WorkDone { device, instance, task });
                }
                // The executor stops between two batches.
                Effect::Stop { task, .. } => {
                    self.after(5, Happening::WorkDone { device, instance, task });
                }
                Effect::Report(report) => {
                    let delay = self.delay(10);
                    self.after(delay, Happening::ReportSent { device, instance, report: *report });
                }
            }
            if self.goes_wrong() && self.random.random_bool(0.2) {
                self.device_crashes(device);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does the work ahead of its end and remembers what it came to under the task's name.
    fn result_of(
        &mut self,
        device: usize,
        task: jobs::spec::Task,
        question: Option<Question>,
    ) -> Result<TaskId, String> {
        let (train, is_masked) = match &task.work {
            TaskWork::Train(train) => (train, false),
            TaskWork::TrainMasked(masked) => (&masked.train, true),
            TaskWork::Exchange => {
                self.answer_ahead(device, &task.id, question)?;
                return Ok(task.id);
            }
            TaskWork::Evaluate(_) | TaskWork::Infer(_) | TaskWork::Telemetry => {
                return Ok(task.id);
            }
        };
        let fetched = train.encoded.as_ref().unwrap_or(&train.parameters);
        let Some(base) = self.read(fetched) else { return Ok(task.id) };
        let blob = if is_masked {
            self.keys_for(device, task.id.round, base.value)
        } else {
            let salt = self.random.random_range(0..u64::MAX);
            let value = mixed([base.value, device as u64, salt]);
            Blob { value, base: base.value, bad: self.goes_wrong() }
        };
        self.objects.insert(self.update_name(device, &task.id, true), blob);
        Ok(task.id)
    }

    fn update_name(&self, device: usize, task: &TaskId, working: bool) -> String {
        let Device { id, instance, .. } = &self.devices[device];
        let name = format!("update/{}/{}/{id}/{}", task.job, task.round, task.attempt);
        if working { format!("{name} in {instance}") } else { name }
    }

    pub(crate) fn work_done(
        &mut self,
        device: usize,
        instance: u32,
        task: &TaskId,
    ) -> Result<(), String> {
        if self.devices[device].instance != instance || self.devices[device].worker.is_none() {
            return Ok(());
        }
        let body = if self.goes_wrong() {
            let code = if self.random.random_bool(0.5) {
                FailureCode::DiskFull
            } else {
                FailureCode::InvalidDataset
            };
            ReportBody::Failed(Failure::new(code, "as the seed wants"))
        } else if task.purpose == Purpose::Train {
            self.upload(device, task)
        } else if let Some(other) = confused(task.purpose) {
            self.answered(device, task, other)
        } else {
            ReportBody::Evaluated(EvaluationReport {
                examples: 10,
                loss: 0.5,
                accuracy: 0.5,
                duration_ms: Millis(1),
            })
        };
        self.step_worker(device, &Event::Finished { task: task.clone(), body }, None)
    }

    /// A stage's answer; a device that errs gives it as one to another stage as well.
    fn answered(&mut self, device: usize, task: &TaskId, other: Purpose) -> ReportBody {
        let body = self.upload_answer(device, task);
        if self.goes_wrong() {
            let (id, instance) = (self.devices[device].id.clone(), self.devices[device].instance);
            let task = TaskId { purpose: other, ..task.clone() };
            let report = TaskReport { task, device: id, body: body.clone() };
            let delay = self.delay(300);
            self.after(delay, Happening::ReportSent { device, instance, report });
        }
        body
    }

    /// The result becomes an object under the name of the task.
    fn upload(&mut self, device: usize, task: &TaskId) -> ReportBody {
        let working = self.update_name(device, task, true);
        let Some(blob) = self.objects.remove(&working) else {
            let failure = Failure::new(FailureCode::BlobUnavailable, "no such parameters");
            return ReportBody::Failed(failure);
        };
        let name = self.update_name(device, task, false);
        let parameters = reference(&name, &blob);
        self.objects.insert(name, blob);
        ReportBody::Trained(UpdateReport {
            parameters,
            examples: 10,
            loss: 0.5,
            accuracy: 0.5,
            steps: 1,
            duration_ms: Millis(1),
            engine: "sim".to_owned(),
            initial_loss: None,
            control_change: None,
            held: false,
            crc32: None,
            control_anew: false,
        })
    }

    /// A report on its way to the stream: sent again until it is known to be stored.
    pub(crate) fn report_sent(&mut self, device: usize, instance: u32, report: TaskReport) {
        if self.devices[device].instance != instance || self.devices[device].worker.is_none() {
            return;
        }
        let lost = self.goes_wrong();
        if !lost {
            self.stream.push((self.now, report.clone()));
            if let Some(broker) = &self.broker {
                let term = broker.term;
                let delay = self.delay(5);
                self.after(delay, Happening::BrokerReads { term });
            }
        }
        let acknowledged = !lost && !self.goes_wrong();
        if !acknowledged {
            self.counts.reports_repeated += u64::from(!lost);
            let delay = 100 + self.delay(100);
            self.after(delay, Happening::ReportSent { device, instance, report });
        }
    }

    pub(crate) fn device_crashes(&mut self, device: usize) {
        if self.devices[device].worker.take().is_none() {
            return;
        }
        self.counts.device_crashes += 1;
        let loses = self.goes_wrong() && self.random.random_bool(0.3);
        self.devices[device].desk.crash(loses);
        let instance = self.devices[device].instance;
        let down = self.random.random_range(50..5000);
        self.after(down, Happening::DeviceStarts { device });
        self.after(SILENCE, Happening::Silence { device, instance });
    }

    pub(crate) fn device_starts(&mut self, device: usize) -> Result<(), String> {
        let known = &mut self.devices[device];
        known.worker = Some(Worker::new(known.id.clone(), 2));
        known.instance += 1;
        self.announce(device)
    }

    pub(crate) fn silence(&mut self, device: usize, instance: u32) -> Result<(), String> {
        let known = &self.devices[device];
        if known.instance == instance && known.worker.is_none() {
            return self.lose(device);
        }
        Ok(())
    }
}
