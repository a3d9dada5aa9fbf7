//! A device's part in a secure aggregation: its update leaves it masked only.

use bytes::Bytes;
use jobs::report::{ExchangeReport, Failure, FailureCode, ReportBody, UpdateReport};
use jobs::spec::{MaskedTrainTask, Purpose, TaskId, UpdateEncoding};
use secagg::Refusal;

use super::levels::Masking;
use super::{ENGINE, Run, Sums};
use crate::cache;
use crate::masking::{MaskingStore, Session};

/// Values that are masked at once: enough for each thread to have some pieces.
const PIECE: usize = 64 * secagg::PIECE;

impl Run {
    /// Trains, keeps the update, and sends keys in its place. An update that is there already is
    /// not made again: under one seed there is one update.
    pub(in crate::execute) async fn train_masked(
        &self,
        task: MaskedTrainTask,
    ) -> Result<ReportBody, Failure> {
        let device = &self.executor.device;
        let TaskId { job, round, .. } = &self.id;
        let session = if let Some(session) = device.masking.load(job, *round) {
            session
        } else {
            if let Some(refusal) = device.refusal().await {
                return Ok(ReportBody::Declined(refusal));
            }
            self.begin_masked(task).await?
        };
        let keys = serde_json::to_vec(&session.client().map_err(|error| refused(&error))?.keys());
        let keys = keys.map_err(|error| unsaid(&error))?;
        let stored = device.blobs.put_named(self.update_name(), keys.into()).await;
        let parameters = stored.map_err(|error| cache::explain(&error))?;
        let duration_ms = self.duration();
        Ok(ReportBody::Trained(UpdateReport { parameters, duration_ms, ..session.report }))
    }

    async fn begin_masked(&self, task: MaskedTrainTask) -> Result<Session, Failure> {
        let MaskedTrainTask { mut train, levels } = task;
        train.update = UpdateEncoding::default();
        let local = train.local.clone();
        let parameters = train.parameters.clone();
        let (received, examples) = self.received(&train).await?;
        let (values, sums, steps) = if train.local.epochs == 0 {
            (received.clone(), Sums::default(), 0)
        } else {
            let trained = self.trained(train, received.clone()).await?;
            (trained.update.into(), trained.sums, trained.steps)
        };
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let duration_ms = self.duration();
        let work = move || {
            let seed = random_seed()?;
            let masking = Masking { local: &local, levels, examples, seed };
            let vector = masking.levels(&received, &values)?;
            let report = UpdateReport {
                parameters,
                examples,
                loss: sums.loss(),
                accuracy: sums.accuracy(),
                steps,
                duration_ms,
                engine: ENGINE.to_owned(),
                initial_loss: None,
                control_change: None,
                held: false,
                crc32: None,
                control_anew: false,
            };
            let session = Session::new(seed, report, levels.devices);
            device.masking.begin(&id.job, id.round, &vector, &session)?;
            Ok(session)
        };
        self.executor.compute.train(self.thread_name("levels"), work).await
    }

    /// Answers a stage with what the offer holds.
    pub(in crate::execute) async fn exchange(
        &self,
        question: Bytes,
    ) -> Result<ReportBody, Failure> {
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let work = move || {
            let Some(session) = device.masking.load(&id.job, id.round) else {
                let message = "this device has no update of this round";
                return Err(Failure::new(FailureCode::InvalidInput, message));
            };
            let answer = match id.purpose {
                Purpose::Share => share(session, &id, &question, &device.masking),
                Purpose::Mask => mask(session, &id, &question, &device.masking),
                Purpose::Unmask
                | Purpose::Train
                | Purpose::Evaluate
                | Purpose::Infer
                | Purpose::Telemetry => unmask(session, &id, &question, &device.masking),
            };
            answer.map(Bytes::from)
        };
        let answer =
            self.executor.compute.train(self.thread_name(self.id.purpose.as_str()), work).await?;
        let device = &self.executor.device;
        let TaskId { job, round, purpose, attempt } = &self.id;
        let (purpose, name) = (purpose.as_str(), &device.config.device);
        let name = format!("exchange/{job}/{round}/{purpose}/{name}/{attempt}");
        let message = device.blobs.put_named(name, answer).await;
        let message = message.map_err(|error| cache::explain(&error))?;
        Ok(ReportBody::Exchanged(ExchangeReport { message }))
    }
}

fn share(
    mut session: Session,
    id: &TaskId,
    question: &[u8],
    store: &MaskingStore,
) -> Result<Vec<u8>, Failure> {
    let roster: secagg::Roster = understood(question)?;
    let levels = store.length(&id.job, id.round)?;
    let expected = format!("{}.{}", id.job, id.round);
    if roster.purpose != expected
        || roster.length != levels
        || roster.devices.len() > session.devices as usize
    {
        let message = format!(
            "the roster is for {:?}, {} values, {} devices: expected {expected:?}, {levels}, {} at \
             most",
            roster.purpose,
            roster.length,
            roster.devices.len(),
            session.devices
        );
        return Err(Failure::new(FailureCode::InvalidInput, message));
    }
    let shares = client(&session)?.share(&roster).map_err(|error| refused(&error))?;
    session.roster = Some(roster);
    store.save(&id.job, id.round, &session)?;
    serde_json::to_vec(&shares).map_err(|error| unsaid(&error))
}

fn mask(
    mut session: Session,
    id: &TaskId,
    question: &[u8],
    store: &MaskingStore,
) -> Result<Vec<u8>, Failure> {
    let inbox: secagg::Inbox = understood(question)?;
    let masks = client(&session)?.mask(&inbox).map_err(|error| refused(&error))?;
    session.inbox = Some(inbox);
    store.save(&id.job, id.round, &session)?;
    let mut vector = store.levels(&id.job, id.round)?;
    let mut piece = Vec::with_capacity(PIECE);
    for (number, bytes) in vector.chunks_mut(4 * PIECE).enumerate() {
        piece.clear();
        piece.extend(bytes.as_chunks().0.iter().map(|level| u32::from_le_bytes(*level)));
        masks.apply(number * PIECE, &mut piece);
        for (bytes, level) in bytes.chunks_exact_mut(4).zip(&piece) {
            bytes.copy_from_slice(&level.to_le_bytes());
        }
    }
    Ok(vector)
}

fn unmask(
    mut session: Session,
    id: &TaskId,
    question: &[u8],
    store: &MaskingStore,
) -> Result<Vec<u8>, Failure> {
    let request: secagg::UnmaskRequest = understood(question)?;
    let unmasking = client(&session)?.unmask(&request).map_err(|error| refused(&error))?;
    session.request = Some(request);
    store.save(&id.job, id.round, &session)?;
    serde_json::to_vec(&unmasking).map_err(|error| unsaid(&error))
}

fn client(session: &Session) -> Result<secagg::Client, Failure> {
    session.client().map_err(|error| refused(&error))
}

/// 32 bytes of the system's randomness.
fn random_seed() -> Result<[u8; 32], Failure> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed)
        .map_err(|_| Failure::new(FailureCode::Internal, "the system gives no randomness"))?;
    Ok(seed)
}

fn understood<T: serde::de::DeserializeOwned>(question: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(question).map_err(|error| {
        let message = format!("what the broker asks is not understood: {error}");
        Failure::new(FailureCode::InvalidInput, message)
    })
}

fn unsaid(error: &serde_json::Error) -> Failure {
    Failure::new(FailureCode::Internal, format!("an answer cannot be written: {error}"))
}

/// The device does not answer: to do so would say too much of it or of its neighbours.
fn refused(error: &Refusal) -> Failure {
    let message = format!("refused, to keep updates hidden: {error}");
    Failure::new(FailureCode::InvalidInput, message)
}
