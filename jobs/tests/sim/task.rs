//! What a broker says to devices, and what it understands of what they say.

use jobs::id::{BlobRef, DeviceId, RoundNumber};
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport};
use jobs::round;
use jobs::spec::{
    EvaluateTask, Levels, LocalTraining, Loss, MaskedTrainTask, Normalization, Offer, Purpose,
    Task, TaskId, TaskWork, TrainTask, UpdateEncoding,
};
use jobs::training::Event;

use crate::masked;
use crate::world::{Blob, World, reference};

impl World {
    pub(crate) fn tell_device(
        &mut self,
        round: RoundNumber,
        effect: round::Effect,
    ) -> Result<(), String> {
        let id =
            |purpose, attempt| TaskId { job: "01job".parse().unwrap(), round, purpose, attempt };
        match effect {
            round::Effect::Offer { device, purpose, attempt, parameters } => {
                if self.is_masked() {
                    masked::check::told(self, round, purpose)?;
                }
                if matches!(purpose, Purpose::Share | Purpose::Mask | Purpose::Unmask) {
                    return self.offer_stage(round, &device, purpose, attempt);
                }
                let id = id(purpose, attempt);
                let timeout_ms = self.spec.training_timeout_ms();
                let work = self.work(purpose, parameters);
                let task = Task { id, timeout_ms, work };
                self.send_offer(&device, &Offer::Task(Box::new(task)), None);
            }
            round::Effect::Withdraw { device, purpose, attempt, reason } => {
                let task = id(purpose, attempt);
                let offer = Offer::Cancel { task, reason, refused: false };
                self.send_offer(&device, &offer, None);
            }
            round::Effect::FindDevices
            | round::Effect::CheckUpdate { .. }
            | round::Effect::CheckMessage { .. }
            | round::Effect::Unmask { .. }
            | round::Effect::Aggregate { .. }
            | round::Effect::Evaluate { .. }
            | round::Effect::Earlier { .. }
            | round::Effect::End(_) => {}
        }
        Ok(())
    }

    fn work(&self, purpose: Purpose, parameters: BlobRef) -> TaskWork {
        let graph = reference("graph", &Blob { value: 0, base: 0, bad: false });
        let dataset = self.spec.dataset.clone();
        let machine = self.broker.as_ref().map(|broker| &broker.machine);
        let encoded = machine.and_then(|machine| machine.encoded_of(&parameters)).cloned();
        if purpose != Purpose::Train {
            return TaskWork::Evaluate(EvaluateTask {
                graph,
                parameters,
                dataset,
                batch_size: 1,
                normalization: Normalization::Format,
                loss: Loss::default(),
                kept_local: Vec::new(),
                encoded,
            });
        }
        let train = TrainTask {
            graph,
            parameters,
            dataset,
            local: LocalTraining::default(),
            seed: 1,
            rounds_done: 0,
            rounds: 0,
            initial_loss: false,
            control: None,
            update: UpdateEncoding::default(),
            encoded,
            hold: false,
            next: None,
            counted: None,
            accept_at_once: self.spec.staleness().is_some(),
        };
        let Some(secure) = self.spec.secure_aggregation else { return TaskWork::Train(train) };
        let (clip, weight_max, rounding) = (secure.clip, secure.weight_max, secure.rounding);
        let levels = Levels { clip, weight_max, rounding, devices: 100, within: false };
        TaskWork::TrainMasked(Box::new(MaskedTrainTask { train, levels }))
    }

    /// Remembers whose words cannot be used because of what is in them.
    pub(crate) fn note_refused(
        &mut self,
        round: RoundNumber,
        device: &DeviceId,
        refused: Option<&Failure>,
    ) {
        if refused.is_some_and(|failure| failure.code == FailureCode::InvalidUpdate) {
            self.refused.insert((round, device.clone()));
        }
    }
}

pub(crate) fn understood(report: TaskReport) -> Event {
    let TaskReport { task, device, body } = report;
    let (purpose, attempt) = (task.purpose, task.attempt);
    let event = match body {
        ReportBody::Accepted => round::Event::Accepted { device, purpose, attempt },
        ReportBody::Progress(progress) => round::Event::Progressed { device, progress },
        ReportBody::Trained(update) => round::Event::UpdateReceived { device, attempt, update },
        ReportBody::Exchanged(said) => {
            round::Event::MessageReceived { device, purpose, attempt, message: said.message }
        }
        ReportBody::Evaluated(evaluation) => {
            round::Event::EvaluationReceived { device, attempt, evaluation }
        }
        ReportBody::Declined(failure) | ReportBody::Failed(failure) => {
            round::Event::TaskFailed { device, purpose, attempt, failure }
        }
        ReportBody::Cancelled | ReportBody::Inferred(_) | ReportBody::Measured(_) => {
            let failure = Failure::new(FailureCode::Cancelled, "the device stopped");
            round::Event::TaskFailed { device, purpose, attempt, failure }
        }
    };
    Event::Round { round: task.round, event }
}
