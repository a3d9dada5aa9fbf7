//! Reads a blob chunk by chunk and checks it.

use std::time::Duration;

use async_nats::header::HeaderName;
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::{Message, StatusCode, Subscriber, header};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{Bytes as Size, Digest};
use tokio::time::Instant;

use super::flow::Batch;
use super::{BlobError, Blobs, chunk_subject, direct_get};
use crate::digest::Hasher;

/// Bytes asked for at once, at most: what may wait in memory while the reader is busy.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// Chunks asked for at once; the bytes decide.
const BATCH_CHUNKS: u32 = 256;
/// How long the next chunk may take, or where it comes slowly, so many bytes of it.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
const BYTES_MIN: u64 = 4096;
/// Silences after which reading is given up.
const SILENCES_MAX: u32 = 3;

/// A blob being read; [`BlobReader::next`] gives its chunks in order.
#[derive(Debug)]
pub struct BlobReader {
    blobs: Blobs,
    digest: Digest,
    chunk_subject: String,
    size: Size,
    /// Bytes asked for at once, at most.
    batch_most: u64,
    /// And as many as come in a short time.
    batch_bytes: Batch,
    /// When the batch was asked for, and the bytes of the connection and of the blob by then.
    asked: (Instant, u64, u64),
    received: u64,
    /// Where the next chunk is looked for in the stream.
    next_sequence: u64,
    batch: Option<Subscriber>,
    /// How often the connection was made before the batch was asked for.
    connections: u64,
    silences: u32,
    hasher: Option<Hasher>,
}

impl BlobReader {
    pub(super) fn new(blobs: Blobs, digest: Digest, info: &ObjectInfo) -> Self {
        let batch_most = blobs.limit.as_ref().map_or(BATCH_BYTES, |limit| {
            // No more is under way than a second lets through.
            limit.bytes_per_second().clamp(1, BATCH_BYTES)
        });
        Self {
            blobs,
            digest,
            chunk_subject: chunk_subject(&info.nuid),
            size: Size(info.size as u64),
            batch_most,
            batch_bytes: Batch::new(),
            asked: (Instant::now(), 0, 0),
            received: 0,
            next_sequence: 1,
            batch: None,
            connections: 0,
            silences: 0,
            hasher: Some(Hasher::new()),
        }
    }

    /// Does not compare the bytes with the digest, only their number: for what is judged anyhow
    /// and was checked by those who stored it. Saves a third of the time of reading.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.hasher = None;
        self
    }

    /// Asks for so many bytes at once, at most, and for a chunk at least: what may wait in memory
    /// where many blobs are read side by side.
    #[must_use]
    pub fn in_batches_of(mut self, bytes: u64) -> Self {
        self.batch_most = bytes.clamp(1, self.batch_most);
        self
    }

    /// The blob's length.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The next chunk; `None` at the end, when the whole blob has been found to match its digest.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when the bytes are others than the digest says, in which case
    /// nothing of what was read may be used; [`BlobError::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        if self.received >= self.size.0 {
            return self.finish().map(|()| None);
        }
        loop {
            let mut batch = match self.batch.take() {
                Some(batch) => batch,
                None => self.ask().await?,
            };
            let message = tokio::select! {
                biased;
                message = self.arrival(&mut batch) => message,
                () = self.blobs.made_again(self.connections) => None,
            };
            if let Some(message) = message {
                self.silences = 0;
                if let Some(chunk) = self.take(&message)? {
                    self.batch = Some(batch);
                    self.blobs.pace(chunk.len()).await;
                    return Ok(Some(chunk));
                }
                // The batch ended before the blob did: ask for the rest.
                let (at, _, before) = self.asked;
                let came = self.received - before;
                self.batch_bytes = self.batch_bytes.after(came, at.elapsed()).most(self.batch_most);
                continue;
            }
            self.blobs.connected().await?;
            self.batch_bytes = self.batch_bytes.after_silence();
            self.silences += 1;
            if self.silences >= SILENCES_MAX {
                let reason = format!("no chunk came for {CHUNK_TIMEOUT:?}");
                return Err(BlobError::unavailable("reading a blob", reason));
            }
        }
    }

    /// The next message of a batch; `None` when none comes, and nothing of it either.
    async fn arrival(&self, batch: &mut Subscriber) -> Option<Message> {
        let (_, asked, _) = self.asked;
        let mut before = self.blobs.bytes_received();
        loop {
            if let Ok(message) = tokio::time::timeout(CHUNK_TIMEOUT, batch.next()).await {
                return message;
            }
            let now = self.blobs.bytes_received();
            // Other transfers may go on where this one stands still.
            let is_ours = now - asked <= 2 * self.batch_bytes.bytes();
            if now - before < BYTES_MIN || !is_ours {
                return None;
            }
            before = now;
        }
    }

    /// Asks for the next batch of chunks.
    async fn ask(&mut self) -> Result<Subscriber, BlobError> {
        let doing = "asking for a blob";
        self.connections = self.blobs.connections();
        self.asked = (Instant::now(), self.blobs.bytes_received(), self.received);
        let inbox = self.blobs.client.new_inbox();
        let batch = self.blobs.client.subscribe(inbox.clone()).await;
        let batch = batch.map_err(|error| BlobError::unavailable(doing, error))?;
        let request = serde_json::json!({
            "seq": self.next_sequence,
            "next_by_subj": self.chunk_subject,
            "batch": BATCH_CHUNKS,
            "max_bytes": self.batch_bytes.bytes().min(self.batch_most),
        });
        let sent = self
            .blobs
            .client
            .publish_with_reply(direct_get(), inbox, request.to_string().into())
            .await;
        sent.map_err(|error| BlobError::unavailable(doing, error))?;
        Ok(batch)
    }

    /// The chunk of a message; `None` at the end of the batch.
    fn take(&mut self, message: &Message) -> Result<Option<Bytes>, BlobError> {
        match message.status {
            None => {}
            // End of the batch.
            Some(status) if status.as_u16() == 204 => return Ok(None),
            Some(StatusCode::NOT_FOUND) => {
                let problem = format!("{} of {} bytes are there", self.received, self.size);
                return Err(self.damaged(problem));
            }
            Some(status) => {
                let reason = format!(
                    "status {status} {}",
                    message.description.as_deref().unwrap_or_default()
                );
                return Err(BlobError::unavailable("reading a blob", reason));
            }
        }
        let sequence = header_number(message, header::NATS_SEQUENCE)
            .ok_or_else(|| BlobError::unavailable("reading a blob", "a chunk has no sequence"))?;
        if sequence < self.next_sequence {
            return Err(self.damaged("its chunks come in the wrong order".to_owned()));
        }
        self.next_sequence = sequence + 1;
        self.received += message.payload.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&message.payload);
        }
        if self.received > self.size.0 {
            let problem = format!("it has more than the {} bytes of its description", self.size);
            return Err(self.damaged(problem));
        }
        Ok(Some(message.payload.clone()))
    }

    fn finish(&mut self) -> Result<(), BlobError> {
        self.batch = None;
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finish();
        if found == self.digest {
            Ok(())
        } else {
            Err(self.damaged(format!("its bytes have the digest {found}")))
        }
    }

    fn damaged(&self, problem: String) -> BlobError {
        BlobError::Damaged { digest: self.digest.clone(), problem }
    }
}

/// A header that holds a number.
pub(super) fn header_number(message: &Message, name: HeaderName) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}
