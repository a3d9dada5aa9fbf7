//! Which jobs there are, and what happens to those that someone waits for.
//!
//! Follows the bucket `jobs`; keeps of each job only what listing and sweeping need.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jobs::id::{Digest, JobId, Millis};
use jobs::spec::JobKind;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::record::StoredJob;
use crate::store::{Change, Progress, Store};

/// What is known of a job without looking it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) kind: JobKind,
    pub(crate) accepted_at: Millis,
    pub(crate) signal: Signal,
}

/// What someone who works on a job, or waits for it, has to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Someone asked it to stop.
    pub(crate) cancel: bool,
    /// It is over.
    pub(crate) ended: bool,
}

/// The index; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    shared: Arc<Mutex<Shared>>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Shared {
    jobs: BTreeMap<JobId, Brief>,
    /// The same jobs, the oldest first.
    in_time: BTreeSet<(Millis, JobId)>,
    /// What the values of jobs refer to, of those that refer to anything.
    digests: BTreeMap<JobId, Box<[[u8; 32]]>>,
    watched: HashMap<JobId, watch::Sender<Signal>>,
}

impl Index {
    /// Loads the index and follows changes.
    pub(crate) async fn start(store: &Store, token: CancellationToken) -> Self {
        let changes = store.jobs.follow(token.clone());
        let index = Self::default();
        let (current, is_current) = oneshot::channel();
        let follower = index.clone();
        tokio::spawn(
            token.run_until_cancelled_owned(async move { follower.follow(changes, current).await }),
        );
        // An error means that the broker is being stopped.
        let _ = is_current.await;
        index
    }

    async fn follow(
        &self,
        mut changes: mpsc::Receiver<Change<StoredJob>>,
        current: oneshot::Sender<()>,
    ) {
        let mut current = Some(current);
        while let Some(change) = changes.recv().await {
            match change {
                Change::Put(key, stored, digests) => {
                    self.note(&stored.value, &digests);
                    self.progress.note(&key, stored.revision);
                }
                Change::Unreadable(key, revision) => self.progress.note_unreadable(&key, revision),
                Change::Gone(key, revision) => {
                    if let Ok(id) = JobId::parse(&key) {
                        let mut shared = self.lock();
                        if let Some(brief) = shared.jobs.remove(&id) {
                            shared.in_time.remove(&(brief.accepted_at, id.clone()));
                        }
                        shared.digests.remove(&id);
                        shared.watched.remove(&id);
                    }
                    self.progress.note(&key, revision);
                }
                Change::Anew => {
                    let mut shared = self.lock();
                    shared.jobs.clear();
                    shared.in_time.clear();
                    shared.digests.clear();
                    drop(shared);
                    self.progress.begin_anew();
                }
                Change::Current => {
                    if let Some(current) = current.take() {
                        let _ = current.send(());
                    }
                }
            }
        }
    }

    fn note(&self, stored: &StoredJob, digests: &[Digest]) {
        let record = &stored.record;
        let signal = Signal { cancel: stored.cancel, ended: record.state.is_final() };
        let kind = record.spec.work.kind();
        let mut shared = self.lock();
        let brief = Brief { kind, accepted_at: record.accepted_at, signal };
        if let Some(before) = shared.jobs.insert(record.id.clone(), brief) {
            shared.in_time.remove(&(before.accepted_at, record.id.clone()));
        }
        shared.in_time.insert((record.accepted_at, record.id.clone()));
        if digests.is_empty() {
            shared.digests.remove(&record.id);
        } else {
            let digests = digests.iter().map(Digest::to_bytes).collect();
            shared.digests.insert(record.id.clone(), digests);
        }
        if let Some(watched) = shared.watched.get(&record.id) {
            watched.send_replace(signal);
            if signal.ended {
                shared.watched.remove(&record.id);
            }
        }
    }

    /// How far the bucket of jobs is known.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Shows every digest that a job refers to, whether the job is over or not.
    pub(crate) fn each_digest(&self, mut seen: impl FnMut(&[u8; 32])) {
        self.lock().digests.values().flatten().for_each(&mut seen);
    }

    /// What happens to a job from now on; closed when it is over.
    pub(crate) fn watch(&self, id: &JobId) -> watch::Receiver<Signal> {
        let mut shared = self.lock();
        let signal = shared.jobs.get(id).map(|brief| brief.signal).unwrap_or_default();
        if signal.ended {
            return watch::channel(signal).1;
        }
        shared.watched.retain(|_, sender| sender.receiver_count() > 0);
        let sender = shared.watched.entry(id.clone()).or_insert_with(|| watch::channel(signal).0);
        sender.subscribe()
    }

    /// Ids, the newest first, older than `before` if given; none when it is not known when that was.
    pub(crate) fn page(&self, limit: usize, before: Option<&JobId>) -> Option<Vec<JobId>> {
        let shared = self.lock();
        let end = match before {
            None => Bound::Unbounded,
            Some(before) => {
                let known = shared.jobs.get(before).map(|brief| brief.accepted_at);
                Bound::Excluded((known.or_else(|| made_at(before))?, before.clone()))
            }
        };
        let ids = shared.in_time.range((Bound::Unbounded, end)).rev().map(|(_, id)| id);
        Some(ids.take(limit).cloned().collect())
    }

    /// Jobs that are not over.
    pub(crate) fn open(&self) -> Vec<(JobId, Brief)> {
        let shared = self.lock();
        let open = shared.jobs.iter().filter(|(_, brief)| !brief.signal.ended);
        open.map(|(id, brief)| (id.clone(), *brief)).collect()
    }

    /// Trainings that are over, the newest first: so many of them after the first `skip`.
    pub(crate) fn ended_trainings(&self, skip: usize, count: usize) -> Vec<JobId> {
        let shared = self.lock();
        let trained = |brief: &Brief| brief.signal.ended && brief.kind == JobKind::Train;
        let mut ended: Vec<_> = shared.jobs.iter().filter(|(_, brief)| trained(brief)).collect();
        ended.sort_by_key(|(_, brief)| std::cmp::Reverse(brief.accepted_at));
        ended.into_iter().skip(skip).take(count).map(|(id, _)| id.clone()).collect()
    }

    /// The oldest jobs that are over, as many as there are beyond what `keep` says of their number.
    pub(crate) fn surplus(&self, keep: impl FnOnce(usize) -> usize) -> Vec<JobId> {
        let shared = self.lock();
        let mut ended: Vec<_> =
            shared.jobs.iter().filter(|(_, brief)| brief.signal.ended).collect();
        let surplus = ended.len().saturating_sub(keep(ended.len()));
        ended.sort_by_key(|(_, brief)| brief.accepted_at);
        ended.into_iter().take(surplus).map(|(id, _)| id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a job was made whose id a broker chose.
fn made_at(id: &JobId) -> Option<Millis> {
    let id = ulid::Ulid::from_string(&id.as_str().to_ascii_uppercase()).ok()?;
    Some(Millis(id.timestamp_ms()))
}
