//! Owns training jobs: one broker at a time for each, by a lease that it renews.
//!
//! The lease is the training's own stored value: every write names the owner, and compare-and-set
//! lets only the owner's writes through. A broker that sees no write for [`LEASE`] on its own
//! clock takes the training over; clocks need not agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jobs::id::JobId;
use tokio::sync::mpsc;

use crate::broker::Core;
use crate::store::{Change, Store, StoreError, Versioned};

mod begin;
mod beside;
mod download;
mod effects;
mod evaluate;
mod exchange;
pub(crate) mod finish;
mod fold;
pub(crate) mod kept;
mod leftovers;
mod listed;
mod making;
mod masking;
mod notes;
mod owner;
mod pace;
mod prepare;
mod reports;
pub mod state;
mod updates;
pub mod waiting;

use state::StoredTraining;

/// Silence of an owner after which its trainings are taken over.
pub const LEASE: Duration = Duration::from_secs(3);
/// How often an owner gives a sign of life.
pub(crate) const RENEW_EVERY: Duration = Duration::from_millis(750);
/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Trainings that may wait to be begun.
const BEGUN_WAITING: usize = 256;

/// Where trainings of this broker begin; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Trainings {
    store: Store,
    name: String,
    begun: mpsc::Sender<(JobId, Versioned<StoredTraining>)>,
}

/// A training as every broker sees it.
#[derive(Debug)]
struct Lease {
    stored: Versioned<StoredTraining>,
    seen: Instant,
}

impl Trainings {
    /// The other end is for [`run`].
    pub(crate) fn new(
        store: Store,
        name: String,
    ) -> (Self, mpsc::Receiver<(JobId, Versioned<StoredTraining>)>) {
        let (begun, receiver) = mpsc::channel(BEGUN_WAITING);
        (Self { store, name, begun }, receiver)
    }

    /// Makes this broker the owner of a training that nobody owns yet; the training goes on by
    /// itself from here, on this broker or another.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn begin(&self, job: &JobId) -> Result<(), StoreError> {
        let value =
            StoredTraining { owner: Some(self.name.clone()), term: 1, ..StoredTraining::default() };
        match self.store.trainings.create(job.as_str(), &value).await {
            Ok(revision) => {
                let begun = (job.clone(), Versioned { value, revision });
                // A closed channel means that this broker ends: another takes over.
                let _ = self.begun.send(begun).await;
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Runs trainings that this broker owns, and takes over those of brokers that went silent.
pub(crate) async fn run(
    core: Arc<Core>,
    mut begun: mpsc::Receiver<(JobId, Versioned<StoredTraining>)>,
) {
    let mut changes = core.store.trainings.follow(core.closing.clone());
    let mut leases: BTreeMap<JobId, Lease> = BTreeMap::new();
    let running = Running::default();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = core.closing.cancelled() => return,
            Some((job, stored)) = begun.recv() => running.start(&core, job, stored),
            Some(change) = changes.recv() => match change {
                Change::Put(key, stored, _) => if let Ok(job) = JobId::parse(&key) {
                    leases.insert(job, Lease { stored, seen: Instant::now() });
                },
                Change::Gone(key, _) => leases.retain(|job, _| job.as_str() != key),
                Change::Anew => leases.clear(),
                Change::Unreadable(..) | Change::Current => {}
            },
            _ = look.tick() => {
                for (job, lease) in &mut leases {
                    if running.has(job) || !lease.lapsed() {
                        continue;
                    }
                    match take_over(&core, job, &lease.stored).await {
                        Ok(Some(stored)) => running.start(&core, job.clone(), stored),
                        // Someone else was faster, or the store will be asked again.
                        Ok(None) => lease.seen = Instant::now(),
                        Err(error) => tracing::warn!(%job, %error, "a training is not taken over"),
                    }
                }
            }
        }
    }
}

impl Lease {
    fn lapsed(&self) -> bool {
        self.stored.value.owner.is_none() || self.seen.elapsed() >= LEASE
    }
}

async fn take_over(
    core: &Core,
    job: &JobId,
    found: &Versioned<StoredTraining>,
) -> Result<Option<Versioned<StoredTraining>>, StoreError> {
    let mut value = found.value.clone();
    value.owner = Some(core.name.clone());
    value.term += 1;
    value.write = 0;
    match core.store.trainings.update(job.as_str(), &value, found.revision).await {
        Ok(revision) => {
            tracing::info!(%job, before = ?found.value.owner, "a training is taken over");
            Ok(Some(Versioned { value, revision }))
        }
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The trainings at work in this broker.
#[derive(Debug, Clone, Default)]
struct Running(Arc<Mutex<BTreeSet<JobId>>>);

impl Running {
    fn has(&self, job: &JobId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(job)
    }

    fn start(&self, core: &Arc<Core>, job: JobId, stored: Versioned<StoredTraining>) {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone()) {
            return;
        }
        let (core, running) = (core.clone(), self.clone());
        core.clone().spawn(async move {
            // Removed on a panic too: then the lease lapses and someone takes over.
            let _done = Done { running, job: job.clone() };
            Box::pin(owner::run(core, job, stored)).await;
        });
    }
}

/// Takes a training off the list when its task ends.
struct Done {
    running: Running,
    job: JobId,
}

impl Drop for Done {
    fn drop(&mut self) {
        let mut running = self.running.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.job);
    }
}

#[cfg(test)]
mod tests;
