//! Values of a blob, read as they are needed.

use std::collections::VecDeque;

use bytes::Bytes;
use jobs::id::BlobRef;
use link::blobs::{BlobReader, Blobs};
use models::params::from_le_bytes;

use super::ReadError;
use crate::coordinator::fold::content::{Content, Expected};

/// Bytes of a chunk that become values at once: what is ready is little more than was asked for then,
/// and the rest of the chunk waits as bytes.
const BITE: usize = 16 * 1024;

/// The values of a blob, in pieces of any length.
pub(super) struct Values {
    reader: BlobReader,
    /// Of a blob with a header; without it is nothing but values.
    content: Option<Content>,
    /// What it has to be, where that is its own.
    expected: Option<Expected>,
    /// What is left of the last chunk.
    chunk: Bytes,
    /// Whether it lies where the connection read it, among bytes that nobody needs.
    is_borrowed: bool,
    /// Of nothing but values, the first bytes of the next one.
    bytes: Vec<u8>,
    ready: VecDeque<f32>,
}

impl Values {
    /// Of parameters or an update, whose header comes first.
    pub(super) async fn of_parameters(blobs: &Blobs, blob: &BlobRef) -> Result<Self, ReadError> {
        Ok(Self { content: Some(Content::default()), ..Self::bare(blobs, blob).await? })
    }

    /// Of a blob that is nothing but values.
    pub(super) async fn bare(blobs: &Blobs, blob: &BlobRef) -> Result<Self, ReadError> {
        let reader = blobs.open(blob).await?;
        Ok(Self {
            reader,
            content: None,
            expected: None,
            chunk: Bytes::new(),
            is_borrowed: false,
            bytes: Vec::new(),
            ready: VecDeque::new(),
        })
    }

    /// Asks for so many bytes at once, at most, where many blobs are read side by side.
    pub(super) fn in_batches_of(mut self, bytes: u64) -> Self {
        self.reader = self.reader.in_batches_of(bytes);
        self
    }

    /// Of an update of an earlier round, which may be a difference from what that began with.
    pub(super) fn expect(&mut self, expected: Expected) {
        self.expected = Some(expected);
    }

    /// Whether they are differences; known once the first of them were read.
    pub(super) fn is_difference(&self) -> bool {
        self.content.as_ref().is_some_and(Content::is_difference)
    }

    /// The next `length` values.
    pub(super) async fn next(
        &mut self,
        length: usize,
        expected: &Expected,
    ) -> Result<Vec<f32>, ReadError> {
        let most = length + BITE / size_of::<f32>();
        self.ready.reserve_exact(most.saturating_sub(self.ready.len()));
        while self.ready.len() < length {
            if self.chunk.is_empty() {
                self.chunk = self.reader.next().await?.ok_or(ReadError::Cut)?;
                self.is_borrowed = true;
            }
            let piece = self.chunk.split_to(self.chunk.len().min(BITE));
            let ready = &mut self.ready;
            let expected = self.expected.as_ref().unwrap_or(expected);
            if let Some(content) = &mut self.content {
                content.take(&piece, expected, |_, values| ready.extend(values))?;
            } else {
                self.bytes.extend_from_slice(&piece);
                let whole = self.bytes.len() - self.bytes.len() % 4;
                ready.extend(from_le_bytes(&self.bytes[..whole]));
                self.bytes.drain(..whole);
            }
        }
        if std::mem::take(&mut self.is_borrowed) {
            self.chunk = Bytes::copy_from_slice(&self.chunk);
        }
        Ok(self.ready.drain(..length).collect())
    }

    /// Checks that this was all of it, and what its digest says.
    pub(super) async fn end(&mut self) -> Result<(), ReadError> {
        let more = !self.chunk.is_empty() || self.reader.next().await?.is_some();
        if more || !self.ready.is_empty() || !self.bytes.is_empty() {
            return Err(ReadError::Cut);
        }
        Ok(())
    }
}
