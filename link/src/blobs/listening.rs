//! Listens to an upload while it is made, in place of fetching the blob afterwards.

use std::time::Duration;

use async_nats::{Subscriber, header};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::{Blake3, BlobRef, Bytes as Size, ObjectId};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{BlobError, Blobs, chunk_subject};
use crate::digest::{self, Blake3Hasher};

/// How long the last bytes of an upload may take when it is asked for: they were sent before whatever
/// asks for it.
const HEARD_WITHIN: Duration = Duration::from_millis(200);

/// An upload that is listened to until it is whole, or this is dropped.
#[derive(Debug)]
pub struct Listening {
    object: ObjectId,
    hearing: JoinHandle<Option<Heard>>,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard {
    /// All of it.
    pub bytes: Bytes,
    blake3: Blake3,
    /// From the first chunk to the last one.
    pub took: Duration,
}

impl Heard {
    /// Whether it is this blob.
    pub(super) fn is(&self, blob: &BlobRef) -> bool {
        match &blob.blake3 {
            Some(blake3) => self.blake3 == **blake3,
            None => digest::of(&self.bytes) == blob.digest,
        }
    }
}

impl Blobs {
    /// Listens to an upload of so many bytes that was not begun, in memory that was taken before where
    /// that is enough. NATS sends chunks to all who listen, however slow they are, so this is for small
    /// blobs. Nobody can tell whether all is heard: the blob has to be fetched otherwise.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn listen(
        &self,
        object: &ObjectId,
        size: Size,
        memory: Vec<u8>,
    ) -> Result<Listening, BlobError> {
        let chunks = self.client.subscribe(chunk_subject(object.as_str())).await;
        let chunks =
            chunks.map_err(|error| BlobError::unavailable("listening to an upload", error))?;
        let hearing = tokio::spawn(hear(chunks, size, memory));
        Ok(Listening { object: object.clone(), hearing })
    }
}

impl Listening {
    /// Whether it is the upload of this blob that is listened to.
    pub fn is_of(&self, blob: &BlobRef) -> bool {
        blob.object.as_ref() == Some(&self.object)
    }

    /// This blob, if it is the one and was heard as a whole.
    pub async fn blob(self, blob: &BlobRef) -> Option<Heard> {
        if !self.is_of(blob) {
            return None;
        }
        self.whole(HEARD_WITHIN).await.filter(|heard| heard.is(blob))
    }

    /// All bytes, if they are there within this time.
    pub(super) async fn whole(mut self, within: Duration) -> Option<Heard> {
        tokio::time::timeout(within, &mut self.hearing).await.ok()?.ok()?
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

/// Puts chunks together until they are so many bytes; none when one is missing, or is no chunk.
async fn hear(mut chunks: Subscriber, size: Size, mut bytes: Vec<u8>) -> Option<Heard> {
    let size = usize::try_from(size.0).ok()?;
    bytes.clear();
    let (mut hasher, mut began, mut next) = (Blake3Hasher::new(), None, 0);
    while bytes.len() < size {
        let message = chunks.next().await?;
        let began = began.get_or_insert_with(Instant::now);
        let id = message.headers.as_ref()?.get(header::NATS_MESSAGE_ID)?.as_str();
        let (_, place) = id.split_once('.')?;
        let (index, _) = place.split_once('.')?;
        let index: u64 = index.parse().ok()?;
        if index < next {
            // It was sent again.
            continue;
        }
        if index > next || bytes.len() + message.payload.len() > size {
            return None;
        }
        bytes.try_reserve_exact(size - bytes.len()).ok()?;
        bytes.extend_from_slice(&message.payload);
        hasher.update(&message.payload);
        next += 1;
        if bytes.len() == size {
            let took = began.elapsed();
            return Some(Heard { bytes: bytes.into(), blake3: hasher.finish(), took });
        }
    }
    None
}
