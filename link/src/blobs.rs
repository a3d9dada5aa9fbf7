//! Blobs by digest in the object store `blobs`, fast: large chunks, many under way at once.
//!
//! The layout is that of NATS object stores (ADR-20), so that `nats object get blobs <hex>` works:
//! chunks under a subject of their own for each upload, then one message with the description,
//! which is the commit point. Downloads ask for the chunks by batched direct gets, without a
//! consumer, and check the digest.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::header::{self, HeaderMap};
use async_nats::jetstream::context::{
    ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, Digest};

use crate::digest::{Hasher, hex};
use crate::layout::BUCKET_BLOBS;

mod reader;

pub use reader::BlobReader;

/// Bytes of a chunk, at most; less where the server's `max_payload` is smaller.
const CHUNK_BYTES: usize = 512 * 1024;
/// Bytes of chunks that may be under way without acknowledgement.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How long the server may take to acknowledge a chunk.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a whole transfer is tried.
const ATTEMPTS: u32 = 3;

/// What to do when the store has the blob already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: the same digest means the same bytes.
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
    fn unavailable(doing: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Unavailable { doing, reason: reason.to_string() }
    }
}

/// The object store of blobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    client: Client,
    context: Context,
}

impl Blobs {
    /// The store behind this connection; nothing is asked yet.
    pub fn new(client: Client) -> Self {
        let context = ContextBuilder::new().ack_timeout(ACK_TIMEOUT).build(client.clone());
        Self { client, context }
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`BlobError::Full`] and [`BlobError::Unavailable`].
    pub async fn put(&self, bytes: Bytes, existing: Existing) -> Result<BlobRef, BlobError> {
        if existing == Existing::Keep {
            let blob = BlobRef { digest: crate::digest::of(&bytes), size: Size(len(&bytes)) };
            self.put_as(&blob, bytes, existing).await?;
            return Ok(blob);
        }
        self.upload(bytes, None).await
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
        if existing == Existing::Keep && self.size(&blob.digest).await? == Some(blob.size) {
            return Ok(());
        }
        self.upload(bytes, Some(blob.digest.clone())).await.map(drop)
    }

    /// The blob's length, if it is in the store.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn size(&self, digest: &Digest) -> Result<Option<Size>, BlobError> {
        Ok(self.describe(digest).await?.map(|(info, _)| Size(info.size as u64)))
    }

    /// Opens a blob for reading chunk by chunk.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] and [`BlobError::Unavailable`].
    pub async fn open(&self, digest: &Digest) -> Result<BlobReader, BlobError> {
        match self.describe(digest).await? {
            Some((info, _)) => Ok(BlobReader::new(self.client.clone(), digest.clone(), &info)),
            None => Err(BlobError::NotFound { digest: digest.clone() }),
        }
    }

    /// A whole blob, checked.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn get(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        let mut attempt = 1;
        loop {
            match self.get_once(digest).await {
                // Someone may be replacing it, or a replica may be behind.
                Err(BlobError::Damaged { .. } | BlobError::NotFound { .. })
                    if attempt < ATTEMPTS =>
                {
                    tokio::time::sleep(Duration::from_millis(20 << (2 * attempt))).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes a blob; nothing happens when there is none.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        let doing = "removing a blob";
        let Some((info, _)) = self.describe(digest).await? else { return Ok(()) };
        let stream = self.stream().await?;
        for subject in [meta_subject(digest), chunk_subject(&info.nuid)] {
            let purged = stream.purge().filter(subject).await;
            purged.map_err(|error| BlobError::unavailable(doing, error))?;
        }
        Ok(())
    }

    async fn get_once(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        let mut reader = self.open(digest).await?;
        let size = usize::try_from(reader.size().0).unwrap_or(usize::MAX);
        let mut whole = Vec::new();
        while let Some(chunk) = reader.next().await? {
            if chunk.len() == size {
                // One chunk is the whole blob; the last call checks the digest.
                reader.next().await?;
                return Ok(chunk);
            }
            if whole.capacity() == 0 {
                whole.reserve_exact(size);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    /// Sends the chunks, then the description. `None` computes the digest on the way.
    async fn upload(&self, bytes: Bytes, digest: Option<Digest>) -> Result<BlobRef, BlobError> {
        let id = self.client.new_inbox().rsplit('.').next().unwrap_or_default().to_owned();
        let size = Size(len(&bytes));
        let chunks = bytes.len().div_ceil(self.chunk_bytes());
        let sent = match self.send_chunks(&chunk_subject(&id), bytes, digest.is_none()).await {
            Ok(found) => {
                let digest = digest.unwrap_or(found);
                let commit = self.commit(&digest, &id, size, chunks).await;
                commit.map(|()| BlobRef { digest, size })
            }
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.purge(&id).await;
        }
        sent
    }

    async fn send_chunks(
        &self,
        subject: &str,
        mut bytes: Bytes,
        hash: bool,
    ) -> Result<Digest, BlobError> {
        let chunk_bytes = self.chunk_bytes();
        let window = (WINDOW_BYTES / chunk_bytes).max(1);
        let mut under_way = VecDeque::with_capacity(window);
        let mut hasher = Hasher::new();
        while !bytes.is_empty() {
            let chunk = bytes.split_to(chunk_bytes.min(bytes.len()));
            let sent = async {
                if under_way.len() == window
                    && let Some(oldest) = under_way.pop_front()
                {
                    oldest.await?;
                }
                self.context.publish(subject.to_owned(), chunk.clone()).await
            };
            match sent.await {
                Ok(sent) => under_way.push_back(sent),
                Err(error) => {
                    // Nothing may arrive after the caller tidies up.
                    let _ = acknowledge_all(&mut under_way).await;
                    return Err(refused(&error));
                }
            }
            if hash {
                hasher.update(&chunk);
            }
        }
        acknowledge_all(&mut under_way).await?;
        Ok(hasher.finish())
    }

    /// Publishes the description under the condition that nobody else did since it was looked
    /// at; whoever comes second with the same bytes has nothing left to do but to tidy up.
    async fn commit(
        &self,
        digest: &Digest,
        id: &str,
        size: Size,
        chunks: usize,
    ) -> Result<(), BlobError> {
        let before = self.describe(digest).await?;
        let info = description(digest, id, size, chunks, self.chunk_bytes());
        let payload = serde_json::to_vec(&info).expect("a description is plain data");
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_ROLLUP, "sub");
        let sequence = before.as_ref().map_or(0, |(_, sequence)| *sequence);
        let message = PublishMessage::build()
            .headers(headers)
            .payload(payload.into())
            .expected_last_subject_sequence(sequence);
        let sent = self.context.send_publish(meta_subject(digest), message).await;
        match sent.map_err(|error| refused(&error))?.await {
            Ok(_) => {
                if let Some((before, _)) = before {
                    self.purge(&before.nuid).await;
                }
                Ok(())
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                self.purge(id).await;
                Ok(())
            }
            Err(error) => Err(refused(&error)),
        }
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

    /// The description of a blob and its place in the stream.
    async fn describe(&self, digest: &Digest) -> Result<Option<(ObjectInfo, u64)>, BlobError> {
        let doing = "looking up a blob";
        let subject = format!("{}.{}", direct_get(), meta_subject(digest));
        let reply = self.client.request(subject, Bytes::new()).await;
        let reply = reply.map_err(|error| BlobError::unavailable(doing, error))?;
        if reply.status == Some(StatusCode::NOT_FOUND) {
            return Ok(None);
        }
        if let Some(status) = reply.status {
            return Err(BlobError::unavailable(doing, format!("status {status}")));
        }
        let sequence = reader::header_number(&reply, header::NATS_SEQUENCE)
            .ok_or_else(|| BlobError::unavailable(doing, "the answer has no sequence"))?;
        let info: ObjectInfo =
            serde_json::from_slice(&reply.payload).map_err(|error| BlobError::Damaged {
                digest: digest.clone(),
                problem: format!("its description cannot be read: {error}"),
            })?;
        Ok((!info.deleted).then_some((info, sequence)))
    }

    fn chunk_bytes(&self) -> usize {
        match self.client.max_payload() {
            0 => CHUNK_BYTES,
            max => CHUNK_BYTES.min(max.saturating_sub(jobs::wire::HEADER_ALLOWANCE)).max(1024),
        }
    }
}

fn description(
    digest: &Digest,
    id: &str,
    size: Size,
    chunks: usize,
    chunk_bytes: usize,
) -> ObjectInfo {
    ObjectInfo {
        name: hex(digest).to_owned(),
        description: None,
        metadata: std::collections::HashMap::default(),
        headers: None,
        options: Some(ObjectOptions { link: None, max_chunk_size: Some(chunk_bytes) }),
        bucket: BUCKET_BLOBS.to_owned(),
        nuid: id.to_owned(),
        size: usize::try_from(size.0).expect("a size in memory fits"),
        chunks,
        modified: None,
        digest: Some(object_digest(digest)),
        deleted: false,
    }
}

/// `SHA-256=<base64url>`, as NATS object stores write it.
fn object_digest(digest: &Digest) -> String {
    let nibble = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default();
    let raw: Vec<u8> = hex(digest)
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| u8::try_from(nibble(pair[0]) * 16 + nibble(pair[1])).ok())
        .collect();
    format!("SHA-256={}", URL_SAFE.encode(raw))
}

fn meta_subject(digest: &Digest) -> String {
    format!("$O.{BUCKET_BLOBS}.M.{}", URL_SAFE.encode(hex(digest)))
}

fn chunk_subject(id: &str) -> String {
    format!("$O.{BUCKET_BLOBS}.C.{id}")
}

fn direct_get() -> String {
    format!("$JS.API.DIRECT.GET.OBJ_{BUCKET_BLOBS}")
}

fn len(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

/// Waits for all acknowledgements; the first error, if there is one.
async fn acknowledge_all(under_way: &mut VecDeque<PublishAckFuture>) -> Result<(), BlobError> {
    let mut outcome = Ok(());
    for sent in under_way.drain(..) {
        let sent = sent.await.map(drop).map_err(|error| refused(&error));
        outcome = outcome.and(sent);
    }
    outcome
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
