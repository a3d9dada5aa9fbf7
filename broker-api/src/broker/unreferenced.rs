//! Removes blobs that are named by their digest and that nothing refers to any more, and what devices
//! left of trainings that are over.
//!
//! Models refer to such blobs, by their records and their manifests, and so do jobs that are kept,
//! over or not, and trainings that are not over. A value refers to every digest that is in its
//! text. What nothing refers to is kept for an hour since it was stored, or found stored, last.
//!
//! Nothing that is referred to is removed, whoever stores it and whatever dies in between:
//!
//! 1. Whoever is to refer to a blob stores or [renews](link::blobs::Blobs::renew) it before: that
//!    writes its description, whether the blob was there or not. Where there is no room for that, a
//!    description of less than half an hour does.
//! 2. Whoever removes blobs lists them first. Suspect are those whose description is an hour old by
//!    then. After that come references: all that were stored before the list was made are found.
//!    One that is stored later comes less than an hour after the blob's description was written. So
//!    when the list was made that description was young, or not written yet.
//! 3. A suspect is [removed](link::blobs::Blobs::remove_listed) only if its description is still the
//!    one that was listed.
//!
//! So what has to be bounded is the time from storing a blob to storing a reference to it: by half an
//! hour, since what it finds may be as old. In between are some requests, each with a deadline, and
//! nothing that waits: what takes long comes before, and whoever cannot store the reference begins
//! again with the blob. A broker that is suspended just there for half an hour could refer to what is
//! gone; by then its jobs are another's. Ages are those of the server's clock alone.
//!
//! What devices and brokers stored for a training under a name of its own goes when the training is
//! over, and it is an hour old, unless the job keeps it: an agent that was killed before it reported an
//! update has forgotten it, and so has a broker that was killed before it stored a training's state.
//!
//! What [uploads leave](link::blobs::Blobs::remove_unfinished) that die before their description is
//! written goes in the same turn.
//!
//! Every broker sweeps, each at its own time; of several at once one finds that others were faster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jobs::id::{BlobRef, Bytes, Digest, JobId, Millis};
use jobs::spec::JobKind;

use self::suspects::Suspects;
use super::Core;
use super::registry::manifest_digests;
use crate::coordinator::kept::Kept;
use crate::coordinator::state::job_of;
use crate::store::StoreError;

mod suspects;

/// How long a blob that nothing refers to is kept.
const KEPT: Millis = Millis(3_600_000);
/// How often blobs are looked through.
const SWEEP_EVERY: Duration = Duration::from_mins(10);
/// Descriptions that are looked at together.
const PAGE: u32 = 256;
/// The pause after each of these pages.
const PAUSE: Duration = Duration::from_millis(100);
/// How long it may take until what is stored has been told.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// What the manifests of models refer to, as far as they are stored.
type Manifests = BTreeMap<Digest, Vec<Digest>>;

/// What went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Removed {
    blobs: u64,
    bytes: u64,
}

/// Sweeps for ever.
pub(super) async fn run(core: Arc<Core>) {
    let sweeping = async {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let mut removed = Removed::default();
            if let Err(error) = sweep(&core, KEPT, &mut removed).await {
                tracing::warn!(%error, "blobs were not looked through to the end");
            }
            if removed.blobs > 0 {
                let Removed { blobs, bytes } = removed;
                tracing::info!(blobs, bytes, "blobs that nothing refers to were removed");
            }
            match core.store.blobs.remove_unfinished().await {
                Ok(0) => {}
                Ok(uploads) => tracing::info!(uploads, "chunks of dead uploads were removed"),
                Err(error) => tracing::warn!(%error, "dead uploads were not looked for"),
            }
        }
    };
    core.closing.run_until_cancelled(sweeping).await;
}

/// Looks through all blobs, the oldest first, and removes those that nothing refers to and whose
/// description is so old.
async fn sweep(core: &Core, kept: Millis, removed: &mut Removed) -> Result<(), StoreError> {
    let blobs = &core.store.blobs;
    let now = blobs.server_time().await?;
    let (mut after, mut manifests, mut over) = (0, Manifests::new(), BTreeMap::new());
    loop {
        let page = blobs.list(after, PAGE).await?;
        let Some((last, written_at)) = page.last else { return Ok(()) };
        let mut suspects = Suspects::of(page.blobs, now, kept);
        spare_referenced(core, &mut manifests, &mut suspects).await?;
        for blob in suspects.unreferenced() {
            if blobs.remove_listed(&blob).await? && !blob.deleted {
                removed.blobs += 1;
                removed.bytes += blob.size.0;
            }
        }
        let old = page.named.into_iter().filter(|(_, written_at)| now.since(*written_at) >= kept);
        for (name, _) in old {
            removed.blobs += u64::from(remove_left_over(core, &mut over, name).await?);
        }
        if now.since(written_at) < kept {
            return Ok(());
        }
        after = last;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes what was stored for a training that is over and not kept; whether it was such. `over` has
/// what those keep that are, and nothing for the others.
async fn remove_left_over(
    core: &Core,
    over: &mut BTreeMap<JobId, Option<Kept>>,
    name: String,
) -> Result<bool, StoreError> {
    let Some(job) = job_of(&name) else { return Ok(false) };
    if !over.contains_key(&job) {
        let kept = kept_if_over(core, &job).await?;
        over.insert(job.clone(), kept);
    }
    let Some(Some(kept)) = over.get(&job) else { return Ok(false) };
    let nothing = BlobRef::by_digest(link::digest::of(b""), Bytes(0));
    let blob = BlobRef { name: Some(name), ..nothing };
    if kept.has(&blob) {
        return Ok(false);
    }
    core.store.blobs.delete(&blob).await?;
    Ok(true)
}

/// What a job keeps whose training is over. It is stored before the training is removed.
async fn kept_if_over(core: &Core, job: &JobId) -> Result<Option<Kept>, StoreError> {
    if core.store.trainings.get(job.as_str()).await?.is_some() {
        return Ok(None);
    }
    let stored = core.store.jobs.get(job.as_str()).await?;
    Ok(Some(stored.map(|stored| Kept::of(&stored.value)).unwrap_or_default()))
}

/// Finds what was stored before now and refers to suspects.
async fn spare_referenced(
    core: &Core,
    manifests: &mut Manifests,
    suspects: &mut Suspects,
) -> Result<(), StoreError> {
    if suspects.are_judged() {
        return Ok(());
    }
    let Core { store, index, registry, .. } = core;
    store.jobs.told_all(index.progress(), TOLD_WITHIN).await?;
    store.models.told_all(registry.progress(), TOLD_WITHIN).await?;
    index.each_digest(|digest| suspects.spare(digest));
    for record in registry.records() {
        suspects.spare_all(record.digests());
        let manifest = &record.reference.digest;
        if !manifests.contains_key(manifest)
            && let Some(named) = manifest_digests(&store.blobs, manifest).await?
        {
            manifests.insert(manifest.clone(), named);
        }
        suspects.spare_all(manifests.get(manifest).into_iter().flatten());
    }
    for (job, brief) in index.open() {
        if suspects.are_judged() {
            break;
        }
        if brief.kind == JobKind::Train {
            suspects.spare_all(&store.trainings.digests(job.as_str()).await?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
