//! Whole blobs, in memory.

use std::time::Duration;

use bytes::Bytes;
use jobs::id::{BlobRef, Digest};

use super::{ATTEMPTS, BlobError, BlobReader, Blobs};

impl Blobs {
    /// A whole blob, checked.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn get(&self, blob: &BlobRef) -> Result<Bytes, BlobError> {
        self.get_into(blob, Vec::new()).await
    }

    /// The same in memory that was taken before, where that is enough.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn get_into(&self, blob: &BlobRef, memory: Vec<u8>) -> Result<Bytes, BlobError> {
        self.get_wanted(Wanted::Blob(blob), memory).await
    }

    /// A whole blob that is named by its digest, when its length is not known.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn get_by_digest(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        self.get_wanted(Wanted::ByDigest(digest), Vec::new()).await
    }

    async fn get_wanted(
        &self,
        wanted: Wanted<'_>,
        mut memory: Vec<u8>,
    ) -> Result<Bytes, BlobError> {
        let mut attempt = 1;
        loop {
            match self.get_once(wanted, std::mem::take(&mut memory)).await {
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

    async fn get_once(&self, wanted: Wanted<'_>, whole: Vec<u8>) -> Result<Bytes, BlobError> {
        let (reader, digest) = match wanted {
            Wanted::Blob(blob) => (self.open(blob).await?, &blob.digest),
            Wanted::ByDigest(digest) => {
                (self.open_named(digest.hex(), digest, None).await?, digest)
            }
        };
        read_whole(reader, digest, whole).await
    }
}

/// A blob of a known or an unknown length.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Blob(&'a BlobRef),
    ByDigest(&'a Digest),
}

async fn read_whole(
    mut reader: BlobReader,
    digest: &Digest,
    mut whole: Vec<u8>,
) -> Result<Bytes, BlobError> {
    let size = usize::try_from(reader.size().0).unwrap_or(usize::MAX);
    whole.clear();
    while let Some(chunk) = reader.next().await? {
        if chunk.len() == size {
            // One chunk is the whole blob; the last call checks the digest.
            reader.next().await?;
            return Ok(chunk);
        }
        if whole.capacity() < size {
            // Whoever can store a description can write any length into it.
            whole.try_reserve_exact(size).map_err(|_| {
                let problem = format!("{size} bytes are more than there is memory for");
                BlobError::Damaged { digest: digest.clone(), problem }
            })?;
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}
