//! The parameters of a round of another job, to begin a training with.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::TryStreamExt as _;
use jobs::id::{BlobRef, JobId};
use jobs::report::FailureCode;
use jobs::round::Outcome;
use jobs::spec::{KEEP_ROUNDS_MAX, ModelQuery, RoundOf};
use link::blobs::BlobError;
use models::params::{Layout, Parameters};
use models::train::Definition;

use super::{Unprepared, failed};
use crate::broker::Core;
use crate::coordinator::kept::stretches;
use crate::coordinator::leftovers::ROUNDS_KEPT;
use crate::coordinator::state::round_key;
use crate::record::{JobRecord, JobResult};
use crate::store::StoreError;

impl Core {
    /// The parameters after a round, and which round of the job it is; those of a round that was
    /// registered come from there.
    pub(super) async fn parameters_of(
        &self,
        from: &RoundOf,
    ) -> Result<(RoundOf, Bytes), Unprepared> {
        let exactly = |round| RoundOf { job: from.job.clone(), round };
        let stored = self.store.jobs.get(from.job.as_str()).await?;
        let Some(stored) = stored.map(|stored| stored.value) else {
            return Err(failed(FailureCode::InvalidSpec, format!("there is no job {}", from.job)));
        };
        if let Some(JobResult::Train { model, round, .. }) = &stored.record.result
            && (from.round.is_none() || from.round == *round)
        {
            let (name, version) = (model.name.clone(), Some(model.version.clone()));
            let made = self.registry.look_up(&ModelQuery { name, version }).await?;
            let made = made.filter(|record| record.reference == *model);
            let training = made.and_then(|record| record.training.clone());
            let gone = format!("{}:{} is not registered any more", model.name, model.version);
            let gone = || failed(FailureCode::UnknownModel, gone);
            let parameters = self.weights(&training.ok_or_else(gone)?).await?;
            return Ok((exactly(*round), parameters));
        }
        let Some(outcome) = self.outcome_of(from).await? else {
            let there = self.there(&stored.record).await?;
            let which = from.round.map_or_else(
                || "has no round that gave parameters".to_owned(),
                |round| format!("has no round {round} that ended"),
            );
            let text = format!("job {} {which}: {there}", from.job);
            return Err(failed(FailureCode::InvalidSpec, text));
        };
        match self.store.blobs.get(&outcome.parameters).await {
            Ok(bytes) => Ok((exactly(Some(outcome.round)), bytes)),
            Err(BlobError::NotFound { .. }) => {
                let there = self.there(&stored.record).await?;
                let (round, job) = (outcome.round, &from.job);
                let text =
                    format!("the parameters of round {round} of job {job} are gone: {there}");
                Err(failed(FailureCode::BlobUnavailable, text))
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// The round that is named, or the newest one that gave new parameters.
    async fn outcome_of(&self, from: &RoundOf) -> Result<Option<Outcome>, StoreError> {
        match from.round {
            Some(round) => {
                let found = self.store.rounds.get(&round_key(&from.job, round.0)).await?;
                Ok(found.map(|found| found.value))
            }
            None => self.newest(&from.job).await,
        }
    }

    /// In words, from which rounds of a job another can go on.
    async fn there(&self, job: &JobRecord) -> Result<String, StoreError> {
        let mut newest = VecDeque::new();
        let mut outcomes = self.outcomes(&job.id);
        while let Some(outcome) = outcomes.try_next().await? {
            if outcome.failure.is_none() {
                newest.push_back(outcome);
            }
            let surplus = newest.len().saturating_sub(KEEP_ROUNDS_MAX as usize + ROUNDS_KEPT);
            newest.drain(..surplus);
        }
        let mut there = Vec::new();
        if let Some(JobResult::Train { round: Some(round), .. }) = &job.result {
            there.push(round.0);
        }
        for outcome in newest {
            if self.store.blobs.size(&outcome.parameters).await?.is_some() {
                there.push(outcome.round.0);
            }
        }
        there.sort_unstable();
        there.dedup();
        let which = match there.len() {
            0 => "there are none to go on from".to_owned(),
            1 => format!("those of round {} are there", stretches(&there)),
            _ => format!("those of rounds {} are there", stretches(&there)),
        };
        Ok(format!("{which}; a job has more with keep_rounds (--keep-rounds N)"))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Outcome>, StoreError> {
        let good = async |newest, outcome: Outcome| {
            Ok(if outcome.failure.is_none() { Some(outcome) } else { newest })
        };
        self.outcomes(job).try_fold(None, good).await
    }

    async fn weights(&self, onnx: &BlobRef) -> Result<Bytes, Unprepared> {
        let onnx = self.needed(onnx).await?;
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
