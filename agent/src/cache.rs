//! Blobs by digest: from memory, from disk, or from the object store; every one is checked.
//!
//! Memory holds what a round needs again within moments: the parameters it is judged by are those
//! that the next one begins with, decoded where they came encoded. Disk holds graphs and models over
//! restarts, bounded, the least recently used go first. One download serves all who wait for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, Digest, ObjectId};
use jobs::report::{Failure, FailureCode};
use jobs::spec::LISTENED_MAX;
use link::blobs::{BlobError, Blobs, Heard, Listening};
use models::federated::encoding::decode_parameters;

pub(crate) use gates::Gates;

use self::disk::{Disk, DiskError};

mod disk;
mod gates;

/// Bytes of blobs in memory, at most; one larger blob alone is kept too.
const MEMORY_BYTES: usize = 1024 * 1024;

/// A download is quick when it takes no longer than this, and the time of its bytes at this rate; the
/// rate is that of a device in a wired network while others load too.
const QUICK_ANSWER: Duration = Duration::from_millis(50);
const QUICK_BYTES_PER_SECOND: u64 = 25_000_000;

/// Where a blob is kept after it was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// For the next tasks of this round: parameters.
    Memory,
    /// Over restarts: graphs.
    Disk,
    /// The same where the disk has room: models, which answer from memory.
    DiskIfRoom,
}

/// The blobs of this device.
#[derive(Debug)]
pub(crate) struct Cache {
    blobs: Blobs,
    disk: Disk,
    memory: Mutex<Vec<InMemory>>,
    gates: Gates,
    /// Whether the last download was quick.
    quick: AtomicBool,
    next: Mutex<Next>,
}

/// What is likely to be asked for next, while it is uploaded.
#[derive(Debug, Default)]
struct Next {
    listening: Option<Listening>,
    /// Of what was replaced.
    memory: Vec<u8>,
}

/// What of a blob is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    AsStored,
    /// The parameters that it stands for.
    Decoded,
}

#[derive(Debug)]
struct InMemory {
    digest: Digest,
    form: Form,
    bytes: Bytes,
    used: Instant,
}

impl Cache {
    /// A cache in a directory, of which `disk_bytes` may be used.
    pub(crate) fn new(blobs: Blobs, dir: PathBuf, disk_bytes: u64) -> Self {
        let disk = Disk::open(dir, disk_bytes);
        let (memory, gates) = (Mutex::default(), Gates::default());
        let (quick, next) = (AtomicBool::default(), Mutex::default());
        Self { blobs, disk, memory, gates, quick, next }
    }

    /// A blob whose bytes match its digest.
    pub(crate) async fn get(&self, blob: &BlobRef, keep: Keep) -> Result<Bytes, Failure> {
        let fetch = async {
            // The old ones go before the new one takes memory, not after; it takes theirs.
            let memory = taken_from(self.make_room(blob.size.0), blob.size.0);
            if let Some(bytes) = self.heard(blob).await {
                self.next().memory = memory;
                return Ok(bytes);
            }
            self.download(blob, memory).await
        };
        self.fetched(&blob.digest, keep, fetch).await
    }

    /// Parameters, from what is sent in place of them if anything is. That is decoded once, and only
    /// what comes of it is kept.
    pub(crate) async fn parameters(
        &self,
        parameters: &BlobRef,
        encoded: Option<&BlobRef>,
    ) -> Result<Bytes, Failure> {
        let Some(encoded) = encoded else { return self.get(parameters, Keep::Memory).await };
        let decoded = async {
            drop(self.make_room(parameters.size.0.saturating_add(encoded.size.0)));
            let bytes =
                self.download(encoded, Vec::new()).await.map_err(|error| explain(&error))?;
            let decoded = tokio::task::spawn_blocking(move || decode_parameters(&bytes)).await;
            let unread = |why: String| {
                Failure::new(FailureCode::BlobUnavailable, format!("the round's parameters: {why}"))
            };
            match decoded {
                Ok(decoded) => decoded.map(Bytes::from).map_err(|error| unread(error.to_string())),
                Err(_) => Err(unread("decoding them met a fault of the program".to_owned())),
            }
        };
        self.obtain(&encoded.digest, Form::Decoded, Box::pin(decoded)).await
    }

    async fn download(&self, blob: &BlobRef, memory: Vec<u8>) -> Result<Bytes, BlobError> {
        let began = Instant::now();
        let bytes = self.blobs.get_into(blob, memory).await?;
        self.quick.store(is_quick(blob.size.0, began.elapsed()), Ordering::Relaxed);
        Ok(bytes)
    }

    /// Listens to an upload of this size: what it holds is asked for soon.
    pub(crate) async fn listen(&self, object: &ObjectId, size: Size) {
        if size > LISTENED_MAX {
            return;
        }
        let memory = std::mem::take(&mut self.next().memory);
        match self.blobs.listen(object, size, memory).await {
            Ok(listening) => self.next().listening = Some(listening),
            Err(error) => tracing::debug!("it will be fetched: {error}"),
        }
    }

    /// A blob that was listened to, if it was heard as a whole and matches its digest.
    async fn heard(&self, blob: &BlobRef) -> Option<Bytes> {
        let listening = self.next().listening.take_if(|it| it.is_of(blob))?;
        let Heard { bytes, took, .. } = listening.blob(blob).await?;
        self.quick.store(is_quick(blob.size.0, took), Ordering::Relaxed);
        Some(bytes)
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the way to the broker was quick when something came by it last.
    pub(crate) fn is_way_quick(&self) -> bool {
        self.quick.load(Ordering::Relaxed)
    }

    /// A blob that is named by its digest, checked.
    pub(crate) async fn get_by_digest(
        &self,
        digest: &Digest,
        keep: Keep,
    ) -> Result<Bytes, Failure> {
        self.fetched(digest, keep, self.blobs.get_by_digest(digest)).await
    }

    async fn fetched(
        &self,
        digest: &Digest,
        keep: Keep,
        fetch: impl Future<Output = Result<Bytes, BlobError>>,
    ) -> Result<Bytes, Failure> {
        let fetched = async {
            match keep {
                Keep::Memory => fetch.await.map_err(|error| explain(&error)),
                Keep::Disk | Keep::DiskIfRoom => self.through_disk(digest, keep, fetch).await,
            }
        };
        self.obtain(digest, Form::AsStored, Box::pin(fetched)).await
    }

    /// What is in memory, or is made and kept there.
    async fn obtain(
        &self,
        digest: &Digest,
        form: Form,
        make: impl Future<Output = Result<Bytes, Failure>>,
    ) -> Result<Bytes, Failure> {
        if let Some(bytes) = self.remembered(digest, form) {
            return Ok(bytes);
        }
        let _only_one = self.gates.enter(digest).await;
        if let Some(bytes) = self.remembered(digest, form) {
            return Ok(bytes);
        }
        let bytes = make.await?;
        let mut memory = self.memory();
        let (digest, used) = (digest.clone(), Instant::now());
        memory.push(InMemory { digest, form, bytes: bytes.clone(), used });
        let_go(&mut memory, MEMORY_BYTES, 1);
        Ok(bytes)
    }

    /// Lets go of what has no place beside so many bytes more.
    fn make_room(&self, bytes: u64) -> Vec<InMemory> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let_go(&mut self.memory(), MEMORY_BYTES.saturating_sub(bytes), 0)
    }

    /// Lets go of what nobody used for so long; the disk keeps its part.
    pub(crate) fn forget_unused(&self, after: Duration) {
        let mut memory = self.memory();
        memory.retain(|kept| kept.used.elapsed() < after);
        memory.shrink_to_fit();
        if memory.is_empty() {
            self.next().memory = Vec::new();
        }
    }

    async fn through_disk(
        &self,
        digest: &Digest,
        keep: Keep,
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
            Ok(Err(DiskError::Full { dir })) if keep == Keep::DiskIfRoom => {
                tracing::warn!("{}", disk_full(&dir).message);
                Ok(bytes)
            }
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
    fn remembered(&self, digest: &Digest, form: Form) -> Option<Bytes> {
        let mut memory = self.memory();
        let index = memory.iter().position(|kept| kept.digest == *digest && kept.form == form)?;
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

/// Takes the first out until the rest has so many bytes or is so few.
fn let_go(memory: &mut Vec<InMemory>, bytes: usize, spared: usize) -> Vec<InMemory> {
    let mut total: usize = memory.iter().map(|kept| kept.bytes.len()).sum();
    let mut count = 0;
    while total > bytes && memory.len() - count > spared {
        total -= memory[count].bytes.len();
        count += 1;
    }
    memory.drain(..count).collect()
}

/// The memory of one of these if nobody else uses it and it is just enough for so many bytes: the
/// parameters of the next round are as many. What is given back and taken again is slow to get, and
/// the allocator may not give it back in time.
fn taken_from(gone: Vec<InMemory>, bytes: u64) -> Vec<u8> {
    let fits = |kept: &InMemory| kept.bytes.len() as u64 == bytes && kept.bytes.is_unique();
    gone.into_iter().find(fits).map(|kept| kept.bytes.into()).unwrap_or_default()
}

/// Whether others lose no time when so many bytes are read from this device while they wait.
fn is_quick(bytes: u64, took: Duration) -> bool {
    let transfer = Duration::from_micros(bytes.saturating_mul(1_000_000) / QUICK_BYTES_PER_SECOND);
    took <= QUICK_ANSWER + transfer
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

#[cfg(test)]
mod tests {
    use models::federated::encoding::{Coder, Encoder, Format, Header, layout_digest};
    use models::params::{Layout, Parameter, Parameters};

    use super::*;
    use crate::server::Server;

    #[test]
    fn memory_is_taken_over_from_what_nobody_uses() {
        let (digest, form, used) = (link::digest::of(b""), Form::AsStored, Instant::now());
        let gone = |bytes: Bytes| vec![InMemory { digest: digest.clone(), form, bytes, used }];
        let bytes = Bytes::from(vec![1; 1000]);
        let memory = bytes.as_ptr();
        assert_eq!(taken_from(gone(bytes.clone()), 1000).capacity(), 0, "someone reads it");
        assert_eq!(taken_from(gone(vec![1; 1000].into()), 999).capacity(), 0, "it does not fit");
        let taken = taken_from(gone(bytes), 1000);
        assert_eq!(taken.as_ptr(), memory);
    }

    #[test]
    fn a_wired_network_is_quick_and_a_phone_is_not() {
        let ms = Duration::from_millis;
        for (bytes, took, quick) in [
            (90_000, ms(4), true),
            (90_000, ms(90), false),
            (25_000_000, ms(900), true),
            (25_000_000, ms(5000), false),
            (u64::MAX, ms(1), true),
        ] {
            assert_eq!(is_quick(bytes, took), quick, "{bytes} bytes in {took:?}");
        }
    }

    #[tokio::test]
    async fn parameters_are_decoded_once_and_kept_alone() {
        let server = Server::start();
        let client = server.client().await;
        let context = async_nats::jetstream::new(client.clone());
        link::layout::ensure(&context, link::layout::Layout::default()).await.unwrap();
        let (blobs, dir) = (Blobs::new(client), tempfile::tempdir().unwrap());
        let cache = Cache::new(blobs.clone(), dir.path().to_owned(), 1 << 20);
        let values = vec![0.5; 1000];
        let item = Parameter { name: "w".to_owned(), shape: vec![1000], values: values.clone() };
        let exact = Parameters::new(vec![item]).unwrap();
        let layout = Layout::of(&exact);
        let header = Header {
            format: Format::Int8 { block: 256 },
            coder: Coder::Rans,
            sparse: false,
            values: values.len(),
            layout: layout_digest(&layout),
            base: None,
        };
        let mut file = layout.header();
        let mut writer = Encoder::dense(header, 0, &mut file);
        writer.push(&values, &mut file).unwrap();
        writer.finish(&mut file).unwrap();
        let sent = blobs.put(file.into()).await.unwrap();
        let exact = blobs.put(exact.to_safetensors().into()).await.unwrap();

        // A task that judges and one that trains, side by side and one after another.
        let (first, second) = futures::join!(
            cache.parameters(&exact, Some(&sent)),
            cache.parameters(&exact, Some(&sent)),
        );
        let (first, second) = (first.unwrap(), second.unwrap());
        let third = cache.parameters(&exact, Some(&sent)).await.unwrap();
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert_eq!(first.as_ptr(), third.as_ptr());
        let kept: usize = cache.memory().iter().map(|kept| kept.bytes.len()).sum();
        assert_eq!(kept, first.len(), "what it was decoded from is not kept");
        // The blob itself is another thing.
        assert_ne!(cache.get(&sent, Keep::Memory).await.unwrap(), first);
    }
}
