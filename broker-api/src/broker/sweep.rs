//! Makes good what a broker that died left half done, and keeps the store bounded.

use std::sync::Arc;
use std::time::Duration;

use jobs::id::{JobId, Millis};
use jobs::spec::JobKind;

use super::Core;
use super::index::Brief;
use crate::coordinator::kept::Kept;
use crate::coordinator::state::rounds_of;
use crate::error::ApiError;
use crate::record::StoredJob;
use crate::store::{FILLED_MAX, StoreError};

/// How often open jobs are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// How old a job must be to be looked at while its broker may still be accepting it.
const SETTLED: Millis = Millis(10_000);
/// Trainings that are over and may have parameters that another goes on from.
const RESUMABLE: usize = 20;
/// Older trainings whose parameters are looked for in a sweep.
const FORGOTTEN_AT_ONCE: usize = 100;
/// Jobs that are over and kept.
const KEEP_ENDED: usize = 20_000;
/// Jobs that are over and kept while the store is too full.
const KEEP_ALWAYS: usize = 20;

/// Sweeps at once and then for ever.
pub(super) async fn run(core: Arc<Core>) {
    let mut settled = Millis(0);
    loop {
        for (id, brief) in core.index.open() {
            let age = core.fleet.now().since(brief.accepted_at);
            if age < settled {
                continue;
            }
            if let Err(error) = core.requeue(&id, brief).await {
                tracing::warn!(job = %id, %error, "an open job was not looked at");
            }
        }
        if let Err(error) = core.prune().await {
            tracing::warn!(%error, "old jobs were not removed");
        }
        if let Err(error) = core.forget_parameters().await {
            tracing::warn!(%error, "parameters of old trainings were not removed");
        }
        if let Err(error) = core.fleet.forget_absent().await {
            tracing::warn!(%error, "devices that are away were not forgotten");
        }
        core.judge.forget_unused();
        settled = SETTLED;
        let rest = tokio::time::sleep(SWEEP_EVERY);
        if core.closing.run_until_cancelled(rest).await.is_none() {
            return;
        }
    }
}

impl Core {
    /// Puts an open job into the work queue if it is nowhere.
    async fn requeue(&self, id: &JobId, brief: Brief) -> Result<(), ApiError> {
        if brief.kind == JobKind::Train && self.store.trainings.get(id.as_str()).await?.is_some() {
            return Ok(());
        }
        if self.store.has_work(brief.kind, id).await? {
            return Ok(());
        }
        // It may have ended, or its training begun, since the index was read.
        let Some(stored) = self.store.jobs.get(id.as_str()).await? else { return Ok(()) };
        if stored.value.record.state.is_final() {
            return Ok(());
        }
        if brief.kind == JobKind::Train && self.store.trainings.get(id.as_str()).await?.is_some() {
            return Ok(());
        }
        tracing::info!(job = %id, "an accepted job is queued again");
        Ok(self.store.queue_work(brief.kind, id).await?)
    }

    /// Removes what trainings that are over left for others, but for the newest ones.
    async fn forget_parameters(&self) -> Result<(), ApiError> {
        for id in self.index.ended_trainings(RESUMABLE, FORGOTTEN_AT_ONCE) {
            let Some(stored) = self.store.jobs.get(id.as_str()).await? else { continue };
            let kept = Kept { last: None, state: None, ..Kept::of(&stored.value) };
            let StoredJob { parameters, server_state, .. } = stored.value;
            if parameters.is_none() && server_state.is_none() {
                continue;
            }
            for blob in parameters.iter().chain(&server_state).filter(|blob| !kept.has(blob)) {
                self.store.blobs.delete(blob).await.map_err(StoreError::from)?;
            }
            let forget = |stored: &mut StoredJob| {
                let taken = (stored.parameters.take(), stored.server_state.take());
                taken != (None, None)
            };
            self.store.jobs.modify(id.as_str(), forget).await?;
        }
        Ok(())
    }

    /// Removes the oldest jobs that are over.
    pub(crate) async fn prune(&self) -> Result<(), ApiError> {
        let filled = self.store.filled().await?;
        for id in self.index.surplus(|ended| kept(ended, filled)) {
            self.remove_job(&id).await?;
        }
        Ok(())
    }

    /// Removes a job with all that it left; one of which a part is gone already, too.
    async fn remove_job(&self, id: &JobId) -> Result<(), StoreError> {
        let Some(stored) = self.store.jobs.get(id.as_str()).await? else { return Ok(()) };
        for blob in Kept::of(&stored.value).blobs() {
            self.store.blobs.delete(blob).await?;
        }
        if stored.value.record.spec.work.kind() == JobKind::Train {
            self.store.rounds.remove_all(&rounds_of(id)).await?;
        }
        self.store.jobs.remove(id.as_str()).await
    }
}

/// How many of the jobs that are over stay: an eighth goes in each sweep while the store is too
/// full.
fn kept(ended: usize, filled: f64) -> usize {
    let kept =
        if filled > FILLED_MAX { (ended - ended.div_ceil(8)).max(KEEP_ALWAYS) } else { ended };
    kept.min(KEEP_ENDED)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::coordinator::state::round_key;
    use crate::testing::{Device, World, ended, joined, train_spec};

    #[test]
    fn fewer_jobs_stay_in_a_store_that_is_too_full() {
        assert_eq!([0, 100, 30_000].map(|ended| kept(ended, 0.5)), [0, 100, KEEP_ENDED]);
        assert_eq!([0, 10, 21, 800].map(|ended| kept(ended, 0.51)), [20, 20, 20, 700]);
    }

    /// Another broker died while it removed the job, or NATS has lost its first rounds.
    #[tokio::test]
    async fn a_job_goes_with_all_its_rounds_whichever_are_there() {
        let world = World::new().await;
        let broker = world.broker().await;
        let _device = Device::start(&world, "d1").await;
        joined(&broker, 1).await;
        let job = broker.submit(train_spec(4, 1), Bytes::new(), None, None).await.unwrap().id;
        assert_eq!(ended(&broker, &job).await.rounds.len(), 4);
        let store = &broker.core.store;
        for round in [1, 2] {
            store.rounds.remove(&round_key(&job, round)).await.unwrap();
        }
        broker.core.remove_job(&job).await.unwrap();
        for round in 1..=4 {
            let found = store.rounds.get(&round_key(&job, round)).await.unwrap();
            assert!(found.is_none(), "round {round}");
        }
        assert!(store.jobs.get(job.as_str()).await.unwrap().is_none());
    }
}
