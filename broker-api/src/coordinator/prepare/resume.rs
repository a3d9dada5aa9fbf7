//! The parameters of a round of another job, to begin a training with.

use bytes::Bytes;
use futures::TryStreamExt as _;
use jobs::id::{BlobRef, JobId};
use jobs::report::FailureCode;
use jobs::round::Outcome;
use jobs::spec::RoundOf;
use link::blobs::BlobError;
use models::params::{Layout, Parameters};
use models::train::Definition;

use super::{Unprepared, failed};
use crate::broker::Core;
use crate::coordinator::state::round_key;
use crate::record::JobResult;
use crate::store::StoreError;

impl Core {
    /// The parameters after a round; those of a round that was registered come from there.
    pub(super) async fn parameters_of(&self, from: &RoundOf) -> Result<Bytes, Unprepared> {
        let stored = self.store.jobs.get(from.job.as_str()).await?;
        let Some(stored) = stored.map(|stored| stored.value) else {
            return Err(failed(FailureCode::InvalidSpec, format!("there is no job {}", from.job)));
        };
        if let Some(JobResult::Train { model, round, .. }) = &stored.record.result
            && (from.round.is_none() || from.round == *round)
        {
            let made = self.registry.list().into_iter().find(|record| record.reference == *model);
            let training = made.and_then(|record| record.training);
            let gone = format!("{}:{} is not registered any more", model.name, model.version);
            let gone = || failed(FailureCode::UnknownModel, gone);
            return self.weights(&training.ok_or_else(gone)?).await;
        }
        let outcome = self.outcome_of(from).await?;
        match self.store.blobs.get(&outcome.parameters).await {
            Ok(bytes) => Ok(bytes),
            Err(BlobError::NotFound { .. }) => Err(failed(
                FailureCode::BlobUnavailable,
                format!(
                    "the parameters of round {} of job {} are gone: a job has those of its two \
                     newest rounds, one that did not succeed those of its last one; a registered \
                     model can be gone on from with --model",
                    outcome.round, from.job
                ),
            )),
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// The round that is named, or the newest one that gave new parameters.
    async fn outcome_of(&self, from: &RoundOf) -> Result<Outcome, Unprepared> {
        let job = &from.job;
        let found = match from.round {
            Some(round) => {
                let found = self.store.rounds.get(&round_key(job, round.0)).await?;
                found.map(|found| found.value)
            }
            None => self.newest(job).await?,
        };
        found.ok_or_else(|| {
            let which = from.round.map_or_else(
                || "has no round that gave parameters".to_owned(),
                |round| format!("has no round {round} that ended"),
            );
            failed(FailureCode::InvalidSpec, format!("job {job} {which}"))
        })
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Outcome>, StoreError> {
        let good = async |newest, outcome: Outcome| {
            Ok(if outcome.failure.is_none() { Some(outcome) } else { newest })
        };
        self.outcomes(job).try_fold(None, good).await
    }

    async fn weights(&self, onnx: &BlobRef) -> Result<Bytes, Unprepared> {
        let onnx = self.store.blobs.get(onnx).await.map_err(StoreError::from)?;
        let read = tokio::task::spawn_blocking(move || Definition::read_with_parameters(&onnx));
        match read.await {
            Ok(Ok((_, parameters))) => Ok(parameters.into()),
            Ok(Err(error)) => Err(failed(FailureCode::InvalidModel, error.to_string())),
            Err(_) => {
                Err(failed(FailureCode::Internal, "reading the model met a fault of the program"))
            }
        }
    }
}

/// Whether parameters are those of a model, in words if not.
pub(super) fn check_like(parameters: &Bytes, model: &Layout) -> Result<(), String> {
    let parameters = Parameters::from_safetensors(parameters).map_err(|error| error.to_string())?;
    parameters.check_like(model).map_err(|error| error.to_string())
}
