//! What a training leaves in the object store: removed when no round needs it any more, and when
//! the training is over.

use jobs::held::{FORGET, Forget};
use jobs::id::{BlobRef, JobId};
use jobs::job::JobState;
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport};
use jobs::round::Outcome;
use jobs::training::{Ending, Training};
use jobs::{subject, wire};

use super::kept::{Kept, keep};
use super::listed::Listed;
use super::owner::{Owner, Stop};
use super::state::{StoredTraining, is_of, unknown};
use crate::broker::{Core, JobEnd};
use crate::record::{JobResult, StoredJob};
use crate::store::StoreError;

/// Rounds whose blobs are kept.
pub(super) const ROUNDS_KEPT: usize = 2;

impl Owner {
    /// Puts what a device has stored on the list of what goes with the round, whether the round has
    /// a use for it or not; why the report cannot be taken, where it names too much.
    pub(super) fn list(&mut self, report: &TaskReport) -> Result<(), Failure> {
        let known = self.machine.knows(&report.device);
        let stored = match &report.body {
            ReportBody::Trained(update) => {
                let parameters = (!update.held).then_some(&update.parameters);
                [parameters, update.control_change.as_ref()]
            }
            ReportBody::Exchanged(said) => [Some(&said.message), None],
            ReportBody::Accepted
            | ReportBody::Progress(_)
            | ReportBody::Evaluated(_)
            | ReportBody::Inferred(_)
            | ReportBody::Measured(_)
            | ReportBody::Declined(_)
            | ReportBody::Failed(_)
            | ReportBody::Cancelled => [None, None],
        };
        for blob in stored.into_iter().flatten().filter(|blob| is_of(&self.job, blob)) {
            let is_new = self.listed.add(&report.device, known, blob).map_err(|error| {
                let text = format!("device {}: {error}", report.device);
                Failure::new(FailureCode::InvalidUpdate, text)
            })?;
            if is_new {
                self.stored.updates.push(blob.clone());
            }
        }
        Ok(())
    }

    /// Puts a round's blobs on the list, and removes those that are old from the object store; once,
    /// though an owner that takes over tells of the last round again: what is reported by then is the
    /// next one's.
    pub(super) fn forget(&mut self, outcome: &Outcome) {
        if outcome.round <= self.stored.forgotten {
            return;
        }
        self.stored.forgotten = outcome.round;
        let mut blobs = std::mem::take(&mut self.stored.updates);
        self.listed = Listed::default();
        blobs.extend(self.let_go(outcome));
        blobs.extend(outcome.encoded.clone());
        if outcome.failure.is_some() {
            blobs.extend(unknown(&self.job, outcome.round.0, self.stored.term));
        }
        self.stored.garbage.push(blobs);
        let old = self.stored.garbage.len().saturating_sub(ROUNDS_KEPT);
        let mut gone: Vec<BlobRef> = self.stored.garbage.drain(..old).flatten().collect();
        let listed = |blob: &BlobRef| self.stored.garbage.iter().flatten().any(|it| it == blob);
        gone.retain(|blob| !listed(blob));
        gone.sort();
        gone.dedup();
        // What is still needed waits on the list: the best round's parameters until another round
        // is the best, what stragglers train from until they are done.
        let (kept, gone): (Vec<BlobRef>, Vec<BlobRef>) =
            gone.into_iter().partition(|blob| self.needs(blob));
        if !kept.is_empty() {
            self.stored.garbage.insert(0, kept);
        }
        let (core, job) = (self.core.clone(), self.job.clone());
        self.core.spawn(async move { core.remove(&job, gone).await });
    }

    /// Parameters, and what the strategy kept with them, that are not kept for others any more.
    fn let_go(&mut self, outcome: &Outcome) -> Vec<BlobRef> {
        let Outcome { parameters, server_state, failure, .. } = outcome;
        match self.spec.keep_rounds {
            None => std::iter::once(parameters).chain(server_state).cloned().collect(),
            // They are an earlier round's.
            Some(_) if failure.is_some() => Vec::new(),
            Some(most) => keep(&mut self.stored, most as usize, outcome),
        }
    }

    /// Whether a blob is needed in further rounds, or is kept, or the result.
    fn needs(&self, blob: &BlobRef) -> bool {
        let result = self.machine.result().parameters;
        let machine = [self.machine.parameters(), &result].into_iter();
        let machine = machine.chain(self.machine.server_state()).chain(self.machine.encoded());
        let kept = self.stored.kept.iter().chain(&self.stored.kept_states).map(|(_, kept)| kept);
        let mut all = machine.chain(self.machine.stragglers().blobs()).chain(kept);
        all.any(|needed| needed.object_name() == blob.object_name())
    }

    /// Ends the job, then forgets everything that only the training needed.
    pub(super) async fn end(&mut self, ending: Ending) -> Result<(), Stop> {
        let state = match &ending.failure {
            None => JobState::Succeeded,
            Some(failure) if failure.code == FailureCode::Cancelled => JobState::Cancelled,
            Some(_) => JobState::Failed,
        };
        let Ending { model, round, enough, .. } = ending;
        let result = model.map(|model| JobResult::Train { model, round, enough });
        let end = JobEnd { state, failure: ending.failure, result };
        let kept = kept(&self.machine, end.result.is_some(), &self.stored);
        while let Err(error) = self.core.end_training(&self.job, &end, &kept).await {
            self.rest(&error).await?;
        }
        let (core, job, making) = (self.core.clone(), self.job.clone(), self.making.clone());
        let mut stored = self.stored.clone();
        stored.machine = Some(self.machine.clone());
        self.core.spawn(async move {
            // What is being stored has a name only once it is there.
            making.wait().await;
            if let Err(error) = core.forget_training(&job, &stored, &kept).await {
                // Its lease lapses, and whoever takes it over tries again.
                tracing::warn!(%job, %error, "a training that is over is not forgotten");
            }
        });
        Ok(())
    }
}

impl Core {
    /// Ends a job, of which others may go on from what is kept.
    pub(super) async fn end_training(
        &self,
        job: &JobId,
        end: &JobEnd,
        kept: &Kept,
    ) -> Result<(), StoreError> {
        let keep = |stored: &mut StoredJob| {
            let is_new = Kept::of(stored) != *kept;
            let Kept { last, state, rounds, states } = kept.clone();
            (stored.parameters, stored.server_state) = (last, state);
            (stored.kept_rounds, stored.kept_states) = (rounds, states);
            is_new
        };
        if *kept != Kept::default() {
            self.store.jobs.modify(job.as_str(), keep).await?;
        }
        self.end_job(job, end.clone()).await
    }

    /// Removes what only a training needed that is over, but for what is kept, and then the
    /// training itself.
    pub(super) async fn forget_training(
        &self,
        job: &JobId,
        stored: &StoredTraining,
        kept: &Kept,
    ) -> Result<(), StoreError> {
        self.tell_over(job).await;
        self.store.purge_reports(job).await?;
        let mut gone = all(job, stored);
        gone.retain(|blob| !kept.has(blob));
        self.remove(job, gone).await;
        self.store.trainings.remove(job.as_str()).await
    }

    /// Tells devices that nobody asks for updates of this job any more. One that does not hear it
    /// has a bound for what it holds.
    async fn tell_over(&self, job: &JobId) {
        let (subject, told) = (subject::command_all(FORGET), Forget { job: job.clone() });
        let client = self.store.client();
        let sent = link::publish::publish(client, subject, None, wire::encode(&told)).await;
        if let Err(error) = sent {
            tracing::debug!(%job, %error, "devices are not told that a training is over");
        }
    }

    /// Removes those of the blobs that only this job uses.
    pub(super) async fn remove(&self, job: &JobId, mut blobs: Vec<BlobRef>) {
        blobs.retain(|blob| is_of(job, blob));
        blobs.sort_by(|a, b| a.object_name().cmp(b.object_name()));
        blobs.dedup_by(|a, b| a.object_name() == b.object_name());
        for blob in blobs {
            if let Err(error) = self.store.blobs.delete(&blob).await {
                tracing::debug!(blob = blob.object_name(), %error, "a blob of a training stays");
            }
        }
    }
}

/// What another training may go on from: parameters where this one has no result, and what the
/// strategy kept with the newest ones, if it is those that are gone on from.
pub(super) fn kept(machine: &Training, has_result: bool, stored: &StoredTraining) -> Kept {
    let (rounds, states) = (stored.kept.clone(), stored.kept_states.clone());
    if machine.rounds_done() == 0 {
        return Kept { rounds, states, ..Kept::default() };
    }
    let result = machine.result().parameters;
    let state = machine.server_state().filter(|_| result == *machine.parameters()).cloned();
    Kept { last: (!has_result).then_some(result), state, rounds, states }
}

/// All blobs that there may be of a training.
fn all(job: &JobId, stored: &StoredTraining) -> Vec<BlobRef> {
    let mut all: Vec<BlobRef> = stored.garbage.iter().flatten().cloned().collect();
    all.extend_from_slice(&stored.updates);
    all.extend(stored.kept.iter().chain(&stored.kept_states).map(|(_, blob)| blob.clone()));
    let mut round = 0;
    if let Some(machine) = &stored.machine {
        round = machine.number().0;
        all.push(machine.parameters().clone());
        all.push(machine.result().parameters);
        all.extend(machine.server_state().cloned());
        all.extend(machine.encoded().cloned());
    }
    for term in stored.term.saturating_sub(1)..=stored.term {
        all.extend(unknown(job, round, term));
    }
    all
}
