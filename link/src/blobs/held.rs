//! The other side of a blob that a device holds: it gives the parts that it is asked for.

use async_nats::Subject;
use async_nats::header::HeaderMap;
use bytes::Bytes;
use jobs::held::{OFFSET_HEADER, REFUSAL_HEADER};

use super::{BlobError, Blobs};

/// Bytes of a message, at most: with its head it fits into the 64 KiB that NATS' client reads into, where
/// a larger one is copied twice to grow. Of a round of ten devices with 25 MB this is a sixth of what
/// broker and nats-server compute.
const PART_BYTES: usize = 60 * 1024;

impl Blobs {
    /// Gives whoever listens to `reply` the part of a blob that begins at `from`.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn give(&self, reply: &Subject, from: u64, mut part: Bytes) -> Result<(), BlobError> {
        let mut offset = from;
        let most = self.chunk_bytes().min(PART_BYTES);
        while !part.is_empty() {
            let chunk = part.split_to(most.min(part.len()));
            let length = chunk.len() as u64;
            self.pace(chunk.len()).await;
            self.say(reply, (OFFSET_HEADER, &offset.to_string()), chunk).await?;
            offset += length;
        }
        Ok(())
    }

    /// Tells whoever listens to `reply` why there is nothing.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn refuse(&self, reply: &Subject, reason: &str) -> Result<(), BlobError> {
        self.say(reply, (REFUSAL_HEADER, reason), Bytes::new()).await
    }

    async fn say(
        &self,
        reply: &Subject,
        (name, value): (&str, &str),
        payload: Bytes,
    ) -> Result<(), BlobError> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        let sent = self.client.publish_with_headers(reply.clone(), headers, payload).await;
        sent.map_err(|error| BlobError::unavailable("giving a part of a blob", error))
    }
}
