//! Chunks of uploads that died before their description was written, and their removal.
//!
//! Nobody tells that an upload died. But one that is alive stores a chunk or its description within
//! [`REST_MAX`] of the last chunk, or gives up. So chunks of which the last is [`KEPT`] old, and that
//! no description names once that was seen, are named by none ever after: a description is written
//! in the place of one that names the same chunks, or at the end of their upload.
//!
//! Most chunks are named. Whichever server answers says by what; it may be behind, so what is left
//! is looked for among the descriptions that the leader knows.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use futures::TryStreamExt as _;
use jobs::id::Millis;

use super::unreferenced::millis;
use super::{BlobError, Blobs, chunk_subject};
use crate::layout::BUCKET_BLOBS;

/// How long an upload may rest.
const REST_MAX: Duration = Duration::from_mins(30);
/// How long the chunks of one that has no description are kept.
const KEPT: Millis = Millis(3_600_000);
/// Descriptions that are asked for together.
const PAGE: u32 = 256;

const LOOKING: &str = "looking for chunks without a description";

impl Blobs {
    /// Removes chunks of uploads that died before they were described; of how many uploads.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`], also where a description cannot be read.
    pub async fn remove_unfinished(&self) -> Result<usize, BlobError> {
        self.remove_rested(KEPT).await
    }

    /// The same of uploads that have rested for so long.
    pub(super) async fn remove_rested(&self, kept: Millis) -> Result<usize, BlobError> {
        let mut unnamed = self.uploads().await?;
        let mut after = 0;
        while !unnamed.is_empty() {
            let page = self.list(after, PAGE).await?;
            let Some((last, _)) = page.last else { break };
            for upload in &page.uploads {
                unnamed.remove(upload);
            }
            after = last;
        }
        self.retain_rested(&mut unnamed, kept).await?;
        self.retain_unnamed(&mut unnamed).await?;
        for upload in &unnamed {
            self.purge_chunks(upload).await?;
        }
        Ok(unnamed.len())
    }

    /// Every upload that has chunks.
    async fn uploads(&self) -> Result<BTreeSet<String>, BlobError> {
        let unavailable = |error| BlobError::unavailable(LOOKING, error);
        let stream = self.stream().await?;
        let subjects = stream.info_with_subjects(chunk_subject(">")).await.map_err(unavailable)?;
        let prefix = chunk_subject("");
        let id = |(subject, _): (String, usize)| subject.strip_prefix(&prefix).map(str::to_owned);
        subjects.try_filter_map(async |it| Ok(id(it))).try_collect().await.map_err(unavailable)
    }

    /// Keeps those whose last chunk is so old.
    async fn retain_rested(
        &self,
        uploads: &mut BTreeSet<String>,
        kept: Millis,
    ) -> Result<(), BlobError> {
        let stream = self.stream().await?;
        let now = self.server_time().await?;
        for upload in std::mem::take(uploads) {
            match stream.get_last_raw_message_by_subject(&chunk_subject(&upload)).await {
                Ok(chunk) if now.since(millis(chunk.time)) >= kept => {
                    uploads.insert(upload);
                }
                Ok(_) => {}
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(BlobError::unavailable(LOOKING, error)),
            }
        }
        Ok(())
    }

    /// Keeps those that no description names.
    async fn retain_unnamed(&self, uploads: &mut BTreeSet<String>) -> Result<(), BlobError> {
        let (stream, described) = (self.stream().await?, format!("$O.{BUCKET_BLOBS}.M.>"));
        let mut next = 1;
        while !uploads.is_empty() {
            let description = match stream.get_first_raw_message_by_subject(&described, next).await
            {
                Ok(description) => description,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
                Err(error) => return Err(BlobError::unavailable(LOOKING, error)),
            };
            let info: ObjectInfo = serde_json::from_slice(&description.payload)
                .map_err(|error| BlobError::unavailable(LOOKING, error))?;
            uploads.remove(&info.nuid);
            next = description.sequence + 1;
        }
        Ok(())
    }
}

/// When an upload was alive: it had just sent a chunk that is stored. On two clocks, since one stands
/// while a machine sleeps, and the other may be set.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<(Instant, SystemTime)>>);

impl Pulse {
    /// A chunk that was sent then is known to be stored, or is the first one.
    pub(super) fn beat(&self, at: (Instant, SystemTime)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// How long that is ago; nothing before the first chunk.
    pub(super) fn rest(&self) -> Duration {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rest =
            |(at, on): (Instant, SystemTime)| at.elapsed().max(on.elapsed().unwrap_or_default());
        last.map_or(Duration::ZERO, rest)
    }

    /// Whether what is under way should be known to be stored before more is sent.
    pub(super) fn is_weak(&self) -> bool {
        self.rest() > REST_MAX / 2
    }

    /// # Errors
    /// [`BlobError::Unavailable`] when what was sent may have been removed.
    pub(super) fn check(&self) -> Result<(), BlobError> {
        let rest = self.rest();
        if rest <= REST_MAX {
            return Ok(());
        }
        let reason = format!("the upload rested for {rest:?}, {REST_MAX:?} are allowed");
        Err(BlobError::unavailable("storing a blob", reason))
    }
}
