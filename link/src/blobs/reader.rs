//! Reads a blob chunk by chunk and checks it.

use std::time::Duration;

use async_nats::header::IntoHeaderName;
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::{Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{BlobRef, Bytes as Size, Digest, ObjectId};
use tokio::time::Instant;

use self::source::{Said, Source};
use super::flow::Batch;
use super::{BlobError, Blobs};
use crate::digest::Hasher;

mod source;

/// Bytes asked for at once, at most: what may wait in memory while the reader is busy.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// How long the next chunk may take, or where it comes slowly, so many bytes of it.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
const BYTES_MIN: u64 = 4096;
/// Silences after which reading is given up.
const SILENCES_MAX: u32 = 3;
/// How long a device that holds a blob may be away, and the rest before it is asked again.
const AWAY_MAX: Duration = Duration::from_secs(5);
const AWAY_REST: Duration = Duration::from_millis(100);
/// How long it may take to give a blob, and a second more for so many bytes of it.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
const GIVEN_BYTES_PER_SECOND: u64 = 1_000_000;

/// A blob being read; [`BlobReader::next`] gives its chunks in order.
#[derive(Debug)]
pub struct BlobReader {
    blobs: Blobs,
    digest: Digest,
    source: Source,
    /// Under which name it is looked for if nothing is there.
    name: Option<String>,
    size: Size,
    /// Bytes asked for at once, at most.
    batch_most: u64,
    /// And as many as come in a short time.
    batch_bytes: Batch,
    asked: Asked,
    received: u64,
    batch: Option<Subscriber>,
    /// How often the connection was made before the batch was asked for.
    connections: u64,
    silences: u32,
    /// Until when whoever holds the blob may be away.
    away_until: Option<Instant>,
    /// Until when they have to have given it.
    until: Option<Instant>,
    /// When the last chunk came: what its reader does since then is not their time.
    came_at: Option<Instant>,
    check: Check,
}

/// How it was when a batch was asked for.
#[derive(Debug)]
struct Asked {
    /// Where the answer comes to.
    inbox: Subject,
    at: Instant,
    /// Bytes that had come over the connection, and of the blob.
    connection: u64,
    received: u64,
    /// Bytes that were asked for.
    bytes: u64,
}

impl Asked {
    fn nothing() -> Self {
        let inbox = Subject::from_static("_INBOX");
        Self { inbox, at: Instant::now(), connection: 0, received: 0, bytes: 0 }
    }
}

/// What the bytes are compared with.
#[derive(Debug)]
enum Check {
    Digest(Hasher),
    Crc32(crc32fast::Hasher, u32),
    Length,
}

impl Check {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Digest(hasher) => hasher.update(bytes),
            Self::Crc32(hasher, _) => hasher.update(bytes),
            Self::Length => {}
        }
    }
}

impl BlobReader {
    pub(super) fn of_object(blobs: Blobs, digest: Digest, info: &ObjectInfo) -> Self {
        Self::new(blobs, digest, Size(info.size as u64), Source::in_store(&info.nuid))
    }

    /// The same where it was last. If it is not there any more, its name says where it is.
    pub(super) fn of_known_object(blobs: Blobs, blob: &BlobRef, object: &ObjectId) -> Self {
        let source = Source::in_store(object.as_str());
        let name = Some(blob.object_name().to_owned());
        Self { name, ..Self::new(blobs, blob.digest.clone(), blob.size, source) }
    }

    /// Of a blob that whoever listens to `subject` holds.
    pub(super) fn of_held(
        blobs: Blobs,
        subject: String,
        blob: &BlobRef,
        crc32: Option<u32>,
    ) -> Self {
        let source = Source::Device { subject, name: blob.object_name().to_owned(), until: 0 };
        let takes = Duration::from_secs(blob.size.0 / GIVEN_BYTES_PER_SECOND);
        let until = Some(Instant::now() + GIVEN_WITHIN + takes);
        let mut reader = Self::new(blobs, blob.digest.clone(), blob.size, source);
        if let Some(expected) = crc32 {
            reader.check = Check::Crc32(crc32fast::Hasher::new(), expected);
        }
        Self { until, ..reader }
    }

    fn new(blobs: Blobs, digest: Digest, size: Size, source: Source) -> Self {
        let batch_most = blobs.limit.as_ref().map_or(BATCH_BYTES, |limit| {
            // No more is under way than a second lets through.
            limit.bytes_per_second().clamp(1, BATCH_BYTES)
        });
        Self {
            blobs,
            digest,
            source,
            name: None,
            size,
            batch_most,
            batch_bytes: Batch::new(),
            asked: Asked::nothing(),
            received: 0,
            batch: None,
            connections: 0,
            silences: 0,
            away_until: None,
            until: None,
            came_at: None,
            check: Check::Digest(Hasher::new()),
        }
    }

    /// Does not compare the bytes with the digest, only their number: for what is judged anyhow
    /// and was checked by those who stored it. Saves a third of the time of reading.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.check = Check::Length;
        self
    }

    /// Asks for so many bytes at once, at most, and for a chunk at least: what may wait in memory
    /// where many blobs are read side by side.
    #[must_use]
    pub fn in_batches_of(mut self, bytes: u64) -> Self {
        self.batch_most = bytes.clamp(1, self.batch_most);
        self
    }

    #[cfg(test)]
    pub(super) fn given_within(mut self, time: Duration) -> Self {
        self.until = Some(Instant::now() + time);
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
        if let (Some(until), Some(since)) = (&mut self.until, self.came_at.take()) {
            *until += since.elapsed();
        }
        loop {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                let reason = format!("it gave {} of {} bytes in time", self.received, self.size);
                return Err(BlobError::Absent { digest: self.digest.clone(), reason });
            }
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
                let said = self.source.hear(&message, self.received, self.size);
                if matches!(said, Said::Over | Said::Damaged(_))
                    && self.received == 0
                    && let Some(name) = self.name.take()
                {
                    let info = self.blobs.find(&name, &self.digest, Some(self.size)).await?;
                    self.source = Source::in_store(&info.nuid);
                    continue;
                }
                match said {
                    Said::Chunk => {
                        self.take(&message.payload)?;
                        if self.source.is_over(self.received) {
                            self.batch_ended();
                        } else {
                            self.batch = Some(batch);
                        }
                        self.came_at = Some(Instant::now());
                        self.blobs.pace(message.payload.len()).await;
                        return Ok(Some(message.payload));
                    }
                    Said::Known => self.batch = Some(batch),
                    Said::Over => self.batch_ended(),
                    Said::Away => self.wait_for_holder().await?,
                    Said::Refused(reason) => {
                        return Err(BlobError::Absent { digest: self.digest.clone(), reason });
                    }
                    Said::Damaged(problem) => return Err(self.damaged(problem)),
                    Said::Unavailable(reason) => {
                        return Err(BlobError::unavailable("reading a blob", reason));
                    }
                }
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

    /// The next message of a batch; `None` when none comes, and none is on its way.
    ///
    /// Over a slow connection a message may take longer than silence does, and what else comes
    /// over it looks the same. So the server is sent a word for ourselves: it stands behind
    /// everything that is under way to us, and when it comes first, the answer was lost.
    async fn arrival(&self, batch: &mut Subscriber) -> Option<Message> {
        let mut before = self.blobs.bytes_received();
        let mut is_echo_under_way = false;
        loop {
            match tokio::time::timeout(self.patience(), batch.next()).await {
                Ok(Some(message)) => match echo_of(&message) {
                    None => return Some(message),
                    Some(received) if received == self.received => return None,
                    // Sent before what came meanwhile.
                    Some(_) => continue,
                },
                Ok(None) => return None,
                Err(_) => {}
            }
            let now = self.blobs.bytes_received();
            // Who may not speak to themselves hears no echo.
            let is_ours = now - self.asked.connection <= 2 * self.asked.bytes;
            if now - before < BYTES_MIN || !is_ours || self.patience().is_zero() {
                return None;
            }
            before = now;
            if !is_echo_under_way {
                let (inbox, echo) = (self.asked.inbox.clone(), self.received.to_string());
                // A connection that is closed shows itself by its silence.
                let _ = self.blobs.client.publish(inbox, echo.into()).await;
                is_echo_under_way = true;
            }
        }
    }

    /// How long nothing may come.
    fn patience(&self) -> Duration {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(CHUNK_TIMEOUT, |left| left.min(CHUNK_TIMEOUT))
    }

    /// Asks for the next batch of chunks.
    async fn ask(&mut self) -> Result<Subscriber, BlobError> {
        let doing = "asking for a blob";
        self.connections = self.blobs.connections();
        let bytes = self.batch_bytes.bytes().min(self.batch_most);
        let inbox = self.blobs.client.new_inbox();
        self.asked = Asked {
            inbox: inbox.clone().into(),
            at: Instant::now(),
            connection: self.blobs.bytes_received(),
            received: self.received,
            bytes: bytes.min(self.size.0 - self.received),
        };
        let batch = self.blobs.client.subscribe(inbox.clone()).await;
        let batch = batch.map_err(|error| BlobError::unavailable(doing, error))?;
        let (subject, request) = self.source.request(self.received, self.size.0, bytes);
        let sent = self.blobs.client.publish_with_reply(subject, inbox, request).await;
        sent.map_err(|error| BlobError::unavailable(doing, error))?;
        Ok(batch)
    }

    /// The batch ended, and perhaps the blob did not.
    fn batch_ended(&mut self) {
        let came = self.received - self.asked.received;
        let took = self.asked.at.elapsed();
        self.batch_bytes = self.batch_bytes.after(came, took).most(self.batch_most);
    }

    /// Rests before whoever holds the blob is asked again: a connection may be made again.
    async fn wait_for_holder(&mut self) -> Result<(), BlobError> {
        let until = *self.away_until.get_or_insert_with(|| Instant::now() + AWAY_MAX);
        if Instant::now() >= until {
            let reason = format!("it is away for {AWAY_MAX:?}");
            return Err(BlobError::Absent { digest: self.digest.clone(), reason });
        }
        tokio::time::sleep(AWAY_REST).await;
        Ok(())
    }

    fn take(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.away_until = None;
        self.received += chunk.len() as u64;
        self.check.update(chunk);
        if self.received > self.size.0 {
            let problem = format!("it has more than the {} bytes of its description", self.size);
            return Err(self.damaged(problem));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), BlobError> {
        self.batch = None;
        match std::mem::replace(&mut self.check, Check::Length) {
            Check::Digest(hasher) => {
                let found = hasher.finish();
                if found == self.digest {
                    return Ok(());
                }
                Err(self.damaged(format!("its bytes have the digest {found}")))
            }
            Check::Crc32(hasher, expected) => {
                let found = hasher.finalize();
                if found == expected {
                    return Ok(());
                }
                Err(self.damaged(format!("its CRC-32 is {found:08x}, not {expected:08x}")))
            }
            Check::Length => Ok(()),
        }
    }

    fn damaged(&self, problem: String) -> BlobError {
        BlobError::Damaged { digest: self.digest.clone(), problem }
    }
}

/// How many bytes had come when we sent ourselves this word. All other words have headers.
fn echo_of(message: &Message) -> Option<u64> {
    let is_echo = message.headers.is_none() && message.status.is_none();
    is_echo.then(|| std::str::from_utf8(&message.payload).ok()?.parse().ok()).flatten()
}

/// A header that holds a number.
pub(super) fn header_number(message: &Message, name: impl IntoHeaderName) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}
