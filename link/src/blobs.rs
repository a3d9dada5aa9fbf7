//! Blobs in the object store `blobs`, fast: large chunks, many under way at once.
//!
//! The layout is that of NATS object stores (ADR-20), so that `nats object get blobs <hex>` works:
//! chunks under a subject of their own for each upload, then one message with the description,
//! which is the commit point. Downloads ask for the chunks by batched direct gets, without a
//! consumer, and check the digest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::{ContextBuilder, PublishError};
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::{Context, ErrorCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, DeviceId, Digest, ObjectId};
use jobs::report::FailureCode;
use jobs::spec::LISTENED_MAX;

use crate::digest::{Blake3Hasher, Hasher};
use crate::layout::BUCKET_BLOBS;
use crate::limit::Limit;

mod description;
mod flow;
mod held;
mod listening;
mod reader;
mod unfinished;
mod unreferenced;
mod upload;
mod whole;
mod window;

pub use listening::{Heard, Listening};
pub use reader::BlobReader;
pub use unreferenced::{Listed, Page};
pub use upload::Pieces;
use upload::Upload;

/// Bytes of a chunk, at most; less where the server's `max_payload` is smaller. Chosen by
/// measurement: larger ones leave the caches of server and client.
const CHUNK_BYTES: usize = 128 * 1024;
/// How long the server may take to acknowledge a chunk.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transfer waits for a connection that was cut.
const OUTAGE_MAX: Duration = Duration::from_mins(5);
/// How often a transfer looks whether it is back.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a whole transfer is tried.
const ATTEMPTS: u32 = 3;

/// What to do when the store has the blob already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Its bytes stay, since the same digest means the same bytes; it is as young as a new one.
    Keep,
    /// Send the bytes again and replace them: to measure a transfer, or to mend a damaged blob.
    Replace,
}

/// Why a blob could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Not in the store.
    #[error("blob {digest} is not in the object store")]
    NotFound {
        /// Which.
        digest: Digest,
    },
    /// The store's bytes are not those that the digest names.
    #[error("blob {digest} is damaged in the object store: {problem}; upload it again")]
    Damaged {
        /// Which.
        digest: Digest,
        /// In which way.
        problem: String,
    },
    /// Who holds it does not give it.
    #[error("blob {digest} is not to be had from the device that holds it: {reason}")]
    Absent {
        /// Which.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// No room.
    #[error(
        "object store is full ({reason}): remove models or raise the limit of stream OBJ_blobs"
    )]
    Full {
        /// What the server said.
        reason: String,
    },
    /// NATS does not answer as it should.
    #[error("object store does not answer while {doing}: {reason}")]
    Unavailable {
        /// What was going on.
        doing: &'static str,
        /// What happened.
        reason: String,
    },
}

impl BlobError {
    /// What it means for a task or a round.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Full { .. } => FailureCode::DiskFull,
            Self::NotFound { .. }
            | Self::Damaged { .. }
            | Self::Absent { .. }
            | Self::Unavailable { .. } => FailureCode::BlobUnavailable,
        }
    }

    fn unavailable(doing: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Unavailable { doing, reason: reason.to_string() }
    }
}

/// The object store of blobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    client: Client,
    context: Context,
    limit: Option<Limit>,
}

impl Blobs {
    /// The store behind this connection; nothing is asked yet.
    pub fn new(client: Client) -> Self {
        let context = ContextBuilder::new().ack_timeout(ACK_TIMEOUT).build(client.clone());
        Self { client, context, limit: None }
    }

    /// The same with a limit that all transfers share, up and down together.
    #[must_use]
    pub fn limited_to(self, bytes_per_second: u64) -> Self {
        Self { limit: Some(Limit::new(bytes_per_second)), ..self }
    }

    /// Waits until so many bytes may travel.
    async fn pace(&self, bytes: usize) {
        if let Some(limit) = &self.limit {
            limit.pace(bytes as u64).await;
        }
    }

    /// How often the connection was made.
    fn connections(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Bytes that came over the connection, of whatever kind.
    fn bytes_received(&self) -> u64 {
        self.client.statistics().in_bytes.load(Ordering::Relaxed)
    }

    /// Waits until the connection is made once more than so often: what was under way is lost.
    async fn made_again(&self, connections: u64) {
        while self.connections() == connections {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits while the connection is cut.
    async fn connected(&self) -> Result<(), BlobError> {
        let until = tokio::time::Instant::now() + OUTAGE_MAX;
        while self.client.connection_state() != State::Connected {
            if tokio::time::Instant::now() >= until {
                let reason = format!("no connection for {OUTAGE_MAX:?}");
                return Err(BlobError::unavailable("moving a blob", reason));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Stores bytes under their digest, unless they are there.
    ///
    /// # Errors
    /// [`BlobError::Full`] and [`BlobError::Unavailable`].
    pub async fn put(&self, bytes: Bytes) -> Result<BlobRef, BlobError> {
        let blob = BlobRef::by_digest(crate::digest::of(&bytes), Size(bytes.len() as u64));
        self.put_as(&blob, bytes, Existing::Keep).await?;
        Ok(blob)
    }

    /// Stores bytes under a name of their own, in place of what was there; see [`BlobRef`].
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_named(&self, name: String, bytes: Bytes) -> Result<BlobRef, BlobError> {
        let size = Size(bytes.len() as u64);
        let upload = Upload::new(self, size);
        let mut hasher = Hasher::new();
        let sending = upload.send_chunks(bytes, |chunk| hasher.update(chunk));
        let (before, sent) = futures::join!(self.describe(&name), sending);
        let digest = hasher.finish();
        let object = upload.commit(&name, &digest, sent.and(before)).await?;
        Ok(BlobRef { digest, size, name: Some(name), object, blake3: None })
    }

    /// Stores `size` bytes under a name of their own while they are made.
    ///
    /// # Errors
    /// As [`Blobs::put`], and those of the pieces, after which nothing is stored.
    pub async fn put_pieces<P: Pieces>(
        &self,
        name: String,
        size: Size,
        pieces: P,
    ) -> Result<BlobRef, P::Error> {
        Box::pin(self.put_pieces_at(&self.new_object(), name, size, pieces)).await
    }

    /// An upload that was not begun; whoever knows it can [`Blobs::listen`] to it.
    #[expect(clippy::missing_panics_doc, reason = "an inbox ends with letters and digits")]
    pub fn new_object(&self) -> ObjectId {
        let inbox = self.client.new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or_default();
        ObjectId::parse(id).expect("an inbox ends with letters and digits")
    }

    /// As [`Blobs::put_pieces`], in an upload that was not begun before; with the BLAKE3 of what is short
    /// enough to be listened to.
    ///
    /// # Errors
    /// The same.
    pub async fn put_pieces_at<P: Pieces>(
        &self,
        object: &ObjectId,
        name: String,
        size: Size,
        pieces: P,
    ) -> Result<BlobRef, P::Error> {
        let upload = Upload::at(self, object, size);
        let mut hasher = Hasher::new();
        let mut heard = (size <= LISTENED_MAX).then(Blake3Hasher::new);
        let sending = upload.send_pieces(pieces, |piece| {
            hasher.update(piece);
            if let Some(heard) = &mut heard {
                heard.update(piece);
            }
        });
        let (before, sent) = futures::join!(self.describe(&name), sending);
        if let Err(error) = sent {
            upload.abandon().await;
            return Err(error);
        }
        let digest = hasher.finish();
        let object = upload.commit(&name, &digest, before).await?;
        let blake3 = heard.map(|hasher| Box::new(hasher.finish()));
        Ok(BlobRef { digest, size, name: Some(name), object, blake3 })
    }

    /// Stores bytes whose digest is known; the caller vouches for it.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_as(
        &self,
        blob: &BlobRef,
        bytes: Bytes,
        existing: Existing,
    ) -> Result<(), BlobError> {
        let name = blob.object_name();
        let upload = Upload::new(self, blob.size);
        let before = match existing {
            Existing::Keep => {
                let before = self.describe(name).await?;
                let Some(before) = self.renew_found(name, Some(blob.size), before).await? else {
                    return Ok(());
                };
                upload.send_chunks(bytes, |_| ()).await.map(|()| before)
            }
            Existing::Replace => {
                let (before, sent) =
                    futures::join!(self.describe(name), upload.send_chunks(bytes, |_| ()));
                sent.and(before)
            }
        };
        upload.commit(name, &blob.digest, before).await.map(|_| ())
    }

    /// The blob's length, if it is in the store.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn size(&self, blob: &BlobRef) -> Result<Option<Size>, BlobError> {
        Ok(self.describe(blob.object_name()).await?.size())
    }

    /// Opens a blob for reading chunk by chunk.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] and [`BlobError::Unavailable`].
    pub async fn open(&self, blob: &BlobRef) -> Result<BlobReader, BlobError> {
        if let Some(object) = &blob.object {
            return Ok(BlobReader::of_known_object(self.clone(), blob, object));
        }
        self.open_named(blob.object_name(), &blob.digest, Some(blob.size)).await
    }

    /// Opens a blob that a device holds; it is asked when the first chunk is. Where `crc32` is known,
    /// that is compared in place of the digest.
    pub fn open_held(&self, device: &DeviceId, blob: &BlobRef, crc32: Option<u32>) -> BlobReader {
        BlobReader::of_held(self.clone(), jobs::subject::held(device), blob, crc32)
    }

    async fn open_named(
        &self,
        name: &str,
        digest: &Digest,
        size: Option<Size>,
    ) -> Result<BlobReader, BlobError> {
        let info = self.find(name, digest, size).await?;
        Ok(BlobReader::of_object(self.clone(), digest.clone(), &info))
    }

    /// The description of a blob that is there, and of this size if it is known.
    async fn find(
        &self,
        name: &str,
        digest: &Digest,
        size: Option<Size>,
    ) -> Result<ObjectInfo, BlobError> {
        let Some(info) = self.describe(name).await?.info else {
            return Err(BlobError::NotFound { digest: digest.clone() });
        };
        let found = Size(info.size as u64);
        if size.is_some_and(|size| size != found) {
            let problem = format!("it has {found} bytes");
            return Err(BlobError::Damaged { digest: digest.clone(), problem });
        }
        Ok(info)
    }

    /// Removes a blob; nothing happens when there is none.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn delete(&self, blob: &BlobRef) -> Result<(), BlobError> {
        let doing = "removing a blob";
        let name = blob.object_name();
        let described = self.describe(name).await?;
        if described.sequence == 0 {
            return Ok(());
        }
        let stream = self.stream().await?;
        let chunks = described.upload.map(|upload| chunk_subject(upload.as_str()));
        for subject in std::iter::once(meta_subject(name)).chain(chunks) {
            let purged = stream.purge().filter(subject).await;
            purged.map_err(|error| BlobError::unavailable(doing, error))?;
        }
        Ok(())
    }

    /// Forgets the chunks of an upload; what remains after a failure only costs room.
    async fn purge(&self, id: &str) {
        let Ok(stream) = self.stream().await else { return };
        if let Err(error) = stream.purge().filter(chunk_subject(id)).await {
            tracing::debug!(%error, "chunks of an unfinished upload stay in the object store");
        }
    }

    async fn stream(&self) -> Result<async_nats::jetstream::stream::Stream<()>, BlobError> {
        let stream = self.context.get_stream_no_info(format!("OBJ_{BUCKET_BLOBS}")).await;
        stream.map_err(|error| BlobError::unavailable("looking for the bucket", error))
    }

    fn chunk_bytes(&self) -> usize {
        match self.client.max_payload() {
            0 => CHUNK_BYTES,
            max => {
                let room = max.saturating_sub(jobs::wire::HEADER_ALLOWANCE);
                // No chunk cuts a number.
                CHUNK_BYTES.min(room - room % 8).max(1024)
            }
        }
    }
}

/// `SHA-256=<base64url>`, as NATS object stores write it.
fn object_digest(digest: &Digest) -> String {
    format!("SHA-256={}", URL_SAFE.encode(digest.to_bytes()))
}

fn meta_subject(name: &str) -> String {
    format!("$O.{BUCKET_BLOBS}.M.{}", URL_SAFE.encode(name))
}

fn chunk_subject(id: &str) -> String {
    format!("$O.{BUCKET_BLOBS}.C.{id}")
}

fn direct_get() -> String {
    format!("$JS.API.DIRECT.GET.OBJ_{BUCKET_BLOBS}")
}

fn refused(error: &PublishError) -> BlobError {
    let said = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    let full = [
        ErrorCode::STREAM_STORE_FAILED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ];
    match said {
        Some(said) if full.contains(&said.error_code()) => {
            BlobError::Full { reason: said.to_string() }
        }
        Some(_) | None => BlobError::unavailable("storing a blob", error),
    }
}

#[cfg(test)]
mod tests;
