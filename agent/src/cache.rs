//! Blobs by digest: from memory, from disk, or from the object store; every one is checked.
//!
//! Memory holds what a round needs again within moments: the parameters it is judged by are those
//! that the next one begins with. Disk holds graphs and models over
//! restarts, bounded, the least recently used go first. One download serves all who wait for it.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jobs::id::{BlobRef, Digest};
use jobs::report::{Failure, FailureCode};
use link::blobs::{BlobError, Blobs};
use models::federated::encoding::decode_parameters;

pub(crate) use gates::Gates;

use self::disk::{Disk, DiskError};

mod disk;
mod gates;

/// Bytes of blobs in memory, at most; one larger blob alone is kept too.
const MEMORY_BYTES: usize = 1024 * 1024;

/// Where a blob is kept after it was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// For the next tasks of this round: parameters.
    Memory,
    /// Over restarts: graphs and models.
    Disk,
}

/// The blobs of this device.
#[derive(Debug)]
pub(crate) struct Cache {
    blobs: Blobs,
    disk: Disk,
    memory: Mutex<Vec<InMemory>>,
    gates: Gates,
}

#[derive(Debug)]
struct InMemory {
    digest: Digest,
    bytes: Bytes,
    used: Instant,
}

impl Cache {
    /// A cache in a directory, of which `disk_bytes` may be used.
    pub(crate) fn new(blobs: Blobs, dir: PathBuf, disk_bytes: u64) -> Self {
        let disk = Disk::open(dir, disk_bytes);
        Self { blobs, disk, memory: Mutex::default(), gates: Gates::default() }
    }

    /// A blob whose bytes match its digest.
    pub(crate) async fn get(&self, blob: &BlobRef, keep: Keep) -> Result<Bytes, Failure> {
        let fetch = async {
            // The old ones go before the new one takes memory, not after.
            self.make_room(usize::try_from(blob.size.0).unwrap_or(usize::MAX));
            self.blobs.get(blob).await
        };
        self.obtain(&blob.digest, keep, fetch).await
    }

    /// Parameters, from what is sent in place of them if anything is.
    pub(crate) async fn parameters(
        &self,
        parameters: &BlobRef,
        encoded: Option<&BlobRef>,
    ) -> Result<Bytes, Failure> {
        let Some(encoded) = encoded else { return self.get(parameters, Keep::Memory).await };
        let bytes = self.get(encoded, Keep::Memory).await?;
        let decoded = tokio::task::spawn_blocking(move || decode_parameters(&bytes)).await;
        let unread = |why: String| {
            Failure::new(FailureCode::BlobUnavailable, format!("the round's parameters: {why}"))
        };
        match decoded {
            Ok(decoded) => decoded.map(Bytes::from).map_err(|error| unread(error.to_string())),
            Err(_) => Err(unread("decoding them met a fault of the program".to_owned())),
        }
    }

    /// A blob that is named by its digest, checked.
    pub(crate) async fn get_by_digest(
        &self,
        digest: &Digest,
        keep: Keep,
    ) -> Result<Bytes, Failure> {
        self.obtain(digest, keep, self.blobs.get_by_digest(digest)).await
    }

    async fn obtain(
        &self,
        digest: &Digest,
        keep: Keep,
        fetch: impl Future<Output = Result<Bytes, BlobError>>,
    ) -> Result<Bytes, Failure> {
        if let Some(bytes) = self.remembered(digest) {
            return Ok(bytes);
        }
        let _only_one = self.gates.enter(digest).await;
        if let Some(bytes) = self.remembered(digest) {
            return Ok(bytes);
        }
        let bytes = match keep {
            Keep::Memory => fetch.await.map_err(|error| explain(&error))?,
            Keep::Disk => self.through_disk(digest, fetch).await?,
        };
        self.remember(digest, &bytes);
        Ok(bytes)
    }

    /// Keeps bytes that are at hand anyway, for the next task.
    pub(crate) fn remember(&self, digest: &Digest, bytes: &Bytes) {
        let mut memory = self.memory();
        memory.retain(|kept| kept.digest != *digest);
        let entry = InMemory { digest: digest.clone(), bytes: bytes.clone(), used: Instant::now() };
        memory.push(entry);
        drop_first(&mut memory, MEMORY_BYTES, 1);
    }

    /// Lets go of what has no place beside so many bytes more.
    fn make_room(&self, bytes: usize) {
        drop_first(&mut self.memory(), MEMORY_BYTES.saturating_sub(bytes), 0);
    }

    /// Lets go of what nobody used for so long; the disk keeps its part.
    pub(crate) fn forget_unused(&self, after: Duration) {
        let mut memory = self.memory();
        memory.retain(|kept| kept.used.elapsed() < after);
        memory.shrink_to_fit();
    }

    async fn through_disk(
        &self,
        digest: &Digest,
        fetch: impl Future<Output = Result<Bytes, BlobError>>,
    ) -> Result<Bytes, Failure> {
        let (disk, wanted) = (self.disk.clone(), digest.clone());
        let found = tokio::task::spawn_blocking(move || disk.read(&wanted)).await;
        if let Ok(Some(bytes)) = found {
            return Ok(bytes);
        }
        let bytes = fetch.await.map_err(|error| explain(&error))?;
        let (disk, wanted, copy) = (self.disk.clone(), digest.clone(), bytes.clone());
        let written = tokio::task::spawn_blocking(move || disk.write(&wanted, &copy)).await;
        match written {
            Ok(Err(DiskError::Full { dir })) => Err(disk_full(&dir)),
            Ok(Err(DiskError::Failed { path, source })) => {
                // The blob is here all the same; the disk is asked again next time.
                tracing::warn!("cache file {}: {source}", path.display());
                Ok(bytes)
            }
            Ok(Ok(())) | Err(_) => Ok(bytes),
        }
    }

    /// A blob in memory, which becomes the last to be dropped.
    fn remembered(&self, digest: &Digest) -> Option<Bytes> {
        let mut memory = self.memory();
        let index = memory.iter().position(|kept| kept.digest == *digest)?;
        let mut kept = memory.remove(index);
        kept.used = Instant::now();
        let bytes = kept.bytes.clone();
        memory.push(kept);
        Some(bytes)
    }

    fn memory(&self) -> MutexGuard<'_, Vec<InMemory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the first until the rest has so many bytes or is so few.
fn drop_first(memory: &mut Vec<InMemory>, bytes: usize, spared: usize) {
    let mut total: usize = memory.iter().map(|kept| kept.bytes.len()).sum();
    while total > bytes && memory.len() > spared {
        total -= memory.remove(0).bytes.len();
    }
}

fn disk_full(dir: &std::path::Path) -> Failure {
    let message = format!(
        "no space left in {}: free some, lower --cache-bytes, or choose another --state-dir",
        dir.display()
    );
    Failure::new(FailureCode::DiskFull, message)
}

/// What a failed transfer means for a task.
pub(crate) fn explain(error: &BlobError) -> Failure {
    Failure::new(error.code(), error.to_string())
}
