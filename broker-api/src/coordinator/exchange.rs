//! What an owner does at the stages of a secure aggregation.

use jobs::id::{Attempt, BlobRef, Bytes, DeviceId, RoundNumber};
use jobs::report::Failure;
use jobs::round::{self, Exchange};
use jobs::spec::{Levels, MaskedTrainTask, Offer, Purpose, Task, TaskWork, TrainTask};
use jobs::training::Event;
use link::blobs::BlobError;

use super::masking::{Masking, MaskingError, Terms};
use super::owner::{Owner, REST, Stop};
use crate::metrics::Counter;

impl Owner {
    /// Of a round whose updates are masked; none where they are not.
    pub(super) fn terms(&self, round: RoundNumber) -> Option<Terms> {
        let secure = self.machine.secure_aggregation()?;
        let length = self.updates.masked_len(self.machine.spec().masks_within());
        Some(Terms { job: self.job.clone(), round, length, secure })
    }

    /// Training, with masks where the job wants them.
    pub(super) fn masked_or_not(&self, train: TrainTask) -> TaskWork {
        let Some(secure) = self.machine.secure_aggregation() else {
            return TaskWork::Train(train);
        };
        let levels = Levels {
            clip: secure.clip,
            weight_max: secure.weight_max,
            rounding: secure.rounding,
            devices: self.devices_max(),
            within: self.machine.spec().masks_within(),
        };
        TaskWork::TrainMasked(Box::new(MaskedTrainTask { train, levels }))
    }

    /// Updates of the round at work, at most.
    pub(super) fn devices_max(&self) -> u32 {
        let target = self.machine.round().map_or(0, |round| round.status().target);
        u32::try_from(target).unwrap_or(u32::MAX)
    }

    fn exchange(&self) -> Option<Exchange> {
        self.machine.round().and_then(|round| round.exchange()).cloned()
    }

    /// Asks a device for its part in a stage; how many bytes that are. What it needs for that is the
    /// binary part.
    pub(super) async fn offer_stage(
        &mut self,
        round: RoundNumber,
        device: DeviceId,
        purpose: Purpose,
        attempt: Attempt,
    ) -> Result<Bytes, Stop> {
        // It may have waited until the stage was over.
        let is_at_work = self.machine.round().is_some_and(|it| it.stage() == Some(purpose));
        let (Some(terms), Some(exchange)) = (self.terms(round), self.exchange()) else {
            return Ok(Bytes(0));
        };
        if !is_at_work {
            return Ok(Bytes(0));
        }
        let question = match self.question(terms.clone(), exchange, purpose, &device).await? {
            Ok(question) => question,
            Err(error) => {
                self.tell_impossible(round, error.failure());
                return Ok(Bytes(0));
            }
        };
        let timeout_ms = terms.secure.stage_deadline_ms;
        let id = self.task_id(round, purpose, attempt);
        let task = Task { id, timeout_ms, work: TaskWork::Exchange };
        let bytes = question.len() as u64;
        self.core.metrics.add(Counter::RoundBytes, "direction=\"down\"".to_owned(), bytes);
        self.send(&device, &Offer::Task(Box::new(task)), Some(&question), true).await;
        Ok(Bytes(bytes))
    }

    async fn question(
        &mut self,
        terms: Terms,
        exchange: Exchange,
        stage: Purpose,
        device: &DeviceId,
    ) -> Result<Result<Vec<u8>, MaskingError>, Stop> {
        let masking = self.masking.clone();
        let known = |masking: &Option<Masking>| {
            masking.as_ref().filter(|it| it.is_at(terms.round, stage)).map(|it| it.question(device))
        };
        loop {
            // Whoever looks into a message may wait for the store too.
            let known = async { known(&*masking.lock().await) };
            if let Some(question) = self.while_renewing(known).await? {
                return Ok(question);
            }
            let (updates, terms, exchange) =
                (self.updates.clone(), terms.clone(), exchange.clone());
            let load = async move { updates.masking(&terms, &exchange, stage).await };
            match self.while_renewing(Box::pin(load)).await? {
                Ok(made) => *masking.lock().await = Some(made),
                Err(MaskingError::Blob(error @ BlobError::Unavailable { .. })) => {
                    tracing::warn!(job = %self.job, %error, "a stage waits for the store");
                    self.while_renewing(tokio::time::sleep(REST)).await?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// The round cannot go on.
    fn tell_impossible(&self, round: RoundNumber, failure: Failure) {
        let done = self.done.clone();
        self.core.spawn(async move {
            let event = round::Event::AggregationFailed { failure };
            let _ = done.send(Event::Round { round, event }).await;
        });
    }

    /// Looks into what a device said.
    pub(super) fn check_message(
        &mut self,
        round: RoundNumber,
        device: DeviceId,
        purpose: Purpose,
        message: BlobRef,
    ) {
        let (Some(terms), Some(exchange)) = (self.terms(round), self.exchange()) else { return };
        let (core, updates) = (self.core.clone(), self.updates.clone());
        let masking = self.masking.clone();
        let (of, named) = (device.clone(), message.clone());
        let checked = move |refused| round::Event::MessageChecked {
            device: of,
            purpose,
            message: named,
            refused,
        };
        let check = async move {
            let refused = if purpose == Purpose::Mask {
                updates.check_masked(&terms, &device, &message).await
            } else {
                let mut masking = masking.lock().await;
                let known = masking.take().filter(|known| known.is_at(round, purpose));
                let made = match known {
                    Some(known) => Ok(known),
                    None => updates.masking(&terms, &exchange, purpose).await,
                };
                match made {
                    Ok(made) => {
                        let made: &mut Masking = masking.insert(made);
                        updates.check_message(made, &terms, &device, &message).await
                    }
                    Err(error) => Some(error.failure()),
                }
            };
            let bytes = message.size.0;
            core.metrics.add(Counter::RoundBytes, "direction=\"up\"".to_owned(), bytes);
            refused
        };
        self.beside(round, check, Some, checked);
    }
}
