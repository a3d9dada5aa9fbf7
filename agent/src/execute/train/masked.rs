//! A device's part in a secure aggregation: its update leaves it masked only.

use bytes::Bytes;
use jobs::report::{ExchangeReport, Failure, FailureCode, ReportBody, UpdateReport};
use jobs::spec::{
    Levels, LocalTraining, MaskedTrainTask, Purpose, Rounding as Wanted, TaskId, UpdateEncoding,
};
use models::federated::distances::UpdateNorms;
use models::federated::robust::norm_bound::NormBound;
use models::federated::tile::TileError;
use models::params::{Parameters, is_named};
use secagg::{Quantisation, QuantisationError, Refusal, Rounding, Secret};

use super::{ENGINE, Run, Sums, Trained};
use crate::cache;
use crate::execute::failures;
use crate::masking::Session;

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
        let trained = if train.local.epochs == 0 {
            let (sums, update) = (Sums::default(), received.to_vec());
            let (initial_loss, control_change) = (None, None);
            Trained { update, examples, sums, steps: 0, initial_loss, control_change }
        } else {
            self.trained(train, received.clone()).await?
        };
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let duration_ms = self.duration();
        let work = move || {
            let Trained { update: values, examples, sums, steps, .. } = trained;
            let seed = random_seed()?;
            let moved = moved(&received, &values, &local)?;
            let vector = quantised(&moved, examples, levels, seed)?;
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

type Store = crate::masking::MaskingStore;

fn share(
    mut session: Session,
    id: &TaskId,
    question: &[u8],
    store: &Store,
) -> Result<Vec<u8>, Failure> {
    let roster: secagg::Roster = understood(question)?;
    let levels = store.levels(&id.job, id.round)?.len() as u64;
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
    store: &Store,
) -> Result<Vec<u8>, Failure> {
    let inbox: secagg::Inbox = understood(question)?;
    let masks = client(&session)?.mask(&inbox).map_err(|error| refused(&error))?;
    session.inbox = Some(inbox);
    store.save(&id.job, id.round, &session)?;
    let mut vector = store.levels(&id.job, id.round)?;
    masks.apply(0, &mut vector);
    Ok(vector.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn unmask(
    mut session: Session,
    id: &TaskId,
    question: &[u8],
    store: &Store,
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

/// An update's difference from what was received.
struct Moved {
    /// Shortened, if the task says so.
    values: Vec<f32>,
    /// Whether it was not longer than asked for, and is as it was.
    within: bool,
}

fn moved(received: &[u8], trained: &[u8], local: &LocalTraining) -> Result<Moved, Failure> {
    let read = |bytes: &[u8]| {
        Parameters::from_safetensors(bytes).map_err(|error| failures::of_parameters(&error))
    };
    let (received, trained) = (read(received)?, read(trained)?);
    let fixed = [&local.frozen[..], &local.kept_local].concat();
    let mut moved = Vec::with_capacity(trained.total_len());
    for (before, after) in received.items().iter().zip(trained.items()) {
        let stays = local.update_norm_max.is_some() && is_named(&fixed, &before.name);
        let after = if stays { &before.values } else { &after.values };
        moved.extend(after.iter().zip(&before.values).map(|(after, before)| after - before));
    }
    let Some(norm) = local.update_norm_max else {
        return Ok(Moved { values: moved, within: true });
    };
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(FailureCode::InvalidSpec, format!("update_norm_max: {error}"))
    };
    let bound = NormBound::new(norm).map_err(|error| unusable(&error))?;
    let mut norms = UpdateNorms::new(1);
    let diverged =
        |error: TileError| Failure::new(FailureCode::Diverged, format!("the update: {error}"));
    norms.add(0, None, &[&moved]).map_err(diverged)?;
    let norm = norms.norms()[0];
    bound.shorten(norm, &mut moved);
    Ok(Moved { values: moved, within: norm <= bound.bound() })
}

/// How far an update moved, in levels, and behind them the weight, and whether it is as it was, if
/// that is to be said.
fn quantised(
    moved: &Moved,
    examples: u64,
    levels: Levels,
    seed: [u8; 32],
) -> Result<Vec<u32>, Failure> {
    let unusable =
        |error: QuantisationError| Failure::new(FailureCode::InvalidSpec, error.to_string());
    let quantisation = Quantisation::new(levels.clip, levels.devices, levels.weight_max);
    let quantisation = quantisation.map_err(unusable)?;
    let rounding = match levels.rounding {
        Wanted::Nearest => Rounding::Nearest,
        Wanted::Stochastic => Rounding::Stochastic(Secret::new(seed).derived("rounding")),
    };
    let weight = u32::try_from(examples).unwrap_or(u32::MAX).min(levels.weight_max);
    let Moved { values, within } = moved;
    let mut vector = Vec::with_capacity(values.len() + 2);
    let clipped = quantisation.encode(0, values, weight, &rounding, &mut vector);
    let clipped = clipped
        .map_err(|error| Failure::new(FailureCode::Diverged, format!("the update: {error}")))?;
    if clipped > 0 {
        let (all, clip) = (vector.len(), levels.clip);
        tracing::warn!("{clipped} of {all} parameters moved by more than {clip}, and were clipped");
    }
    vector.push(weight);
    vector.extend(levels.within.then_some(u32::from(*within)));
    Ok(vector)
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
