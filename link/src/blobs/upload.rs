//! One upload: chunks under a subject of their own, then the description as the commit point.

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use bytes::Bytes;
use jobs::id::{Bytes as Size, Digest, ObjectId};

use super::description::{Described, may_succeed};
use super::unfinished::Pulse;
use super::window::Window;
use super::{ATTEMPTS, BUCKET_BLOBS, BlobError, Blobs, object_digest, refused};
use crate::publish::rest_after;

/// Bytes of a blob, made while they are sent.
pub trait Pieces: Send {
    /// Why a piece cannot be made.
    type Error: From<BlobError>;

    /// The next `max` bytes, fewer only at the blob's end, and none after it.
    fn next(&mut self, max: usize) -> impl Future<Output = Result<Bytes, Self::Error>> + Send;
}

/// Bytes that are there.
struct Whole(Bytes);

impl Pieces for Whole {
    type Error = BlobError;

    async fn next(&mut self, max: usize) -> Result<Bytes, BlobError> {
        Ok(self.0.split_to(max.min(self.0.len())))
    }
}

pub(super) struct Upload<'a> {
    blobs: &'a Blobs,
    id: String,
    size: Size,
    chunk_bytes: usize,
    pulse: Pulse,
}

impl<'a> Upload<'a> {
    pub(super) fn new(blobs: &'a Blobs, size: Size) -> Self {
        Self::at(blobs, &blobs.new_object(), size)
    }

    pub(super) fn at(blobs: &'a Blobs, object: &ObjectId, size: Size) -> Self {
        let (id, chunk_bytes) = (object.to_string(), blobs.chunk_bytes());
        Self { blobs, id, size, chunk_bytes, pulse: Pulse::default() }
    }

    /// Sends all chunks and waits until they are stored; shows each chunk to `seen` meanwhile.
    pub(super) async fn send_chunks(
        &self,
        bytes: Bytes,
        seen: impl FnMut(&[u8]),
    ) -> Result<(), BlobError> {
        self.send_pieces(Whole(bytes), seen).await
    }

    /// The same while the chunks are made.
    pub(super) async fn send_pieces<P: Pieces>(
        &self,
        mut pieces: P,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<(), P::Error> {
        let mut window = Window::new(self.blobs, &self.id, &self.pulse);
        let sent = self.send_until_end(&mut pieces, &mut seen, &mut window).await;
        // Also after an error: nothing may arrive after the caller tidies up.
        if sent.is_err() {
            window.abandon().await;
        }
        sent
    }

    async fn send_until_end<P: Pieces>(
        &self,
        pieces: &mut P,
        seen: &mut impl FnMut(&[u8]),
        window: &mut Window<'_>,
    ) -> Result<(), P::Error> {
        loop {
            let chunk = pieces.next(self.chunk_bytes).await?;
            if chunk.is_empty() {
                return Ok(window.settle().await?);
            }
            window.make_room(chunk.len()).await?;
            seen(&chunk);
            window.send(chunk).await?;
        }
    }

    #[cfg(test)]
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Ends an upload that will not be committed.
    pub(super) async fn abandon(self) {
        self.blobs.purge(&self.id).await;
    }

    /// Publishes the description under the condition that nobody else did since `before`;
    /// whoever comes second with the same bytes has nothing left to do but to tidy up. An error
    /// in `before` ends the upload. Gives where the bytes are, if that is where they were sent.
    pub(super) async fn commit(
        self,
        name: &str,
        digest: &Digest,
        before: Result<Described, BlobError>,
    ) -> Result<Option<ObjectId>, BlobError> {
        let committed = match before {
            Ok(before) => self.try_commit(name, digest, before).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok(Some(obsolete)) => {
                self.blobs.purge(&obsolete).await;
                Ok(ObjectId::parse(&self.id).ok().filter(|_| obsolete != self.id))
            }
            Ok(None) => Ok(ObjectId::parse(&self.id).ok()),
            Err(error) => {
                self.blobs.purge(&self.id).await;
                Err(error)
            }
        }
    }

    /// The upload whose chunks nobody needs any more: the one before, or this one.
    async fn try_commit(
        &self,
        name: &str,
        digest: &Digest,
        mut before: Described,
    ) -> Result<Option<String>, BlobError> {
        let description = self.description(name, digest);
        let mut attempt = 1;
        loop {
            self.pulse.check()?;
            let written = self.blobs.write(name, &description, before.sequence).await;
            let obsolete = before.upload.map(String::from);
            let conflict = match written {
                Ok(_) => return Ok(obsolete),
                Err(error) if may_succeed(&error) => error,
                Err(error) => return Err(refused(&error)),
            };
            tokio::time::sleep(rest_after(attempt)).await;
            before = self.blobs.describe_at_leader(name).await?;
            if before.upload.as_ref().is_some_and(|upload| upload.as_str() == self.id) {
                // It was stored, and the acknowledgement was lost; it may have been removed since.
                return before.info.map(|_| obsolete).ok_or_else(|| refused(&conflict));
            }
            if before.info.as_ref().is_some_and(|info| info.digest == description.digest) {
                match self.blobs.renew_found(name, Some(self.size), before).await? {
                    None => return Ok(Some(self.id.clone())),
                    Some(instead) => before = instead,
                }
            }
            if attempt == ATTEMPTS {
                return Err(refused(&conflict));
            }
            attempt += 1;
        }
    }

    fn description(&self, name: &str, digest: &Digest) -> ObjectInfo {
        let size = usize::try_from(self.size.0).expect("a size in memory fits");
        ObjectInfo {
            name: name.to_owned(),
            description: None,
            metadata: std::collections::HashMap::default(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(self.chunk_bytes) }),
            bucket: BUCKET_BLOBS.to_owned(),
            nuid: self.id.clone(),
            size,
            chunks: size.div_ceil(self.chunk_bytes),
            modified: None,
            digest: Some(object_digest(digest)),
            deleted: false,
        }
    }
}
