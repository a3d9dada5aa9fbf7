//! What the store says of a blob: read, and written by compare-and-set.
//!
//! Of several servers any one answers, which may be behind; their leader knows what was written.

use async_nats::StatusCode;
use async_nats::header::{self, HeaderMap};
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use jobs::id::{Bytes as Size, Digest, Millis, ObjectId};

use super::reader::header_number;
use super::unreferenced::millis;
use super::window::may_pass;
use super::{ATTEMPTS, BlobError, Blobs, direct_get, meta_subject, refused};
use crate::publish::{self, rest_after};

/// How often a description is written again while others write it.
const RENEWALS_TRIED: u32 = 5;

/// How old a description may be that is as good as a new one where there is no room for that: half of
/// the time after which what nothing refers to is removed.
const YOUNG: Millis = Millis(1_800_000);

const DOING: &str = "looking up a blob";

/// What the store says of a blob.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// The place of the description in the stream, 0 when there is none.
    pub(super) sequence: u64,
    /// The description, unless there is none that can be read or the blob was deleted.
    pub(super) info: Option<ObjectInfo>,
    /// The upload that its chunks came with, those of a deleted one too, which may be there yet.
    pub(super) upload: Option<ObjectId>,
    /// When it was written, by the server's clock, as far as its leader was asked.
    written_at: Option<Millis>,
}

impl Described {
    fn read(name: &str, sequence: u64, payload: &[u8]) -> Self {
        match serde_json::from_slice::<ObjectInfo>(payload) {
            Ok(info) => {
                let upload = ObjectId::parse(&info.nuid).ok();
                let info = (!info.deleted).then_some(info);
                Self { sequence, info, upload, written_at: None }
            }
            Err(error) => {
                // To wait would not mend it; to store the blob again does.
                tracing::warn!(name, %error, "a blob's description cannot be read");
                Self { sequence, info: None, upload: None, written_at: None }
            }
        }
    }

    pub(super) fn size(&self) -> Option<Size> {
        self.info.as_ref().map(|info| Size(info.size as u64))
    }
}

impl Blobs {
    /// Makes a blob as young as one that is stored now, if it is there; whether it is. In a store without
    /// room it stays as it is where it is less than half an hour old.
    ///
    /// # Errors
    /// [`BlobError::Full`] and [`BlobError::Unavailable`].
    pub async fn renew(&self, digest: &Digest) -> Result<bool, BlobError> {
        let found = self.describe_at_leader(digest.hex()).await?;
        Ok(self.renew_found(digest.hex(), None, found).await?.is_none())
    }

    /// Whether a blob is in the store, as the leader knows it.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn is_stored(&self, digest: &Digest) -> Result<bool, BlobError> {
        Ok(self.describe_at_leader(digest.hex()).await?.info.is_some())
    }

    /// Writes the description of a blob again; gives what the store says instead where it has none
    /// of this length.
    pub(super) async fn renew_found(
        &self,
        name: &str,
        size: Option<Size>,
        mut found: Described,
    ) -> Result<Option<Described>, BlobError> {
        let (mut attempt, mut asked_leader) = (1, None);
        loop {
            let info = found.info.as_ref();
            let Some(info) = info.filter(|_| size.is_none() || found.size() == size) else {
                return Ok(Some(found));
            };
            if asked_leader.is_some_and(|before| found.sequence > before) {
                // Someone else has written it after this was called.
                return Ok(None);
            }
            match self.write(name, info, found.sequence).await {
                Ok(_) => return Ok(None),
                Err(error) if attempt < RENEWALS_TRIED && may_succeed(&error) => {}
                Err(error) => return self.without_room(name, size, refused(&error), YOUNG).await,
            }
            tokio::time::sleep(rest_after(attempt)).await;
            let now = self.describe_at_leader(name).await?;
            // What was found at first may be what a server knew that is behind.
            asked_leader = (attempt > 1).then_some(found.sequence);
            (attempt, found) = (attempt + 1, now);
        }
    }

    /// What [`Blobs::renew_found`] gives where the description cannot be written again: nobody removes
    /// what is so young, whether there is room or not.
    pub(super) async fn without_room(
        &self,
        name: &str,
        size: Option<Size>,
        error: BlobError,
        young: Millis,
    ) -> Result<Option<Described>, BlobError> {
        if !matches!(error, BlobError::Full { .. }) {
            return Err(error);
        }
        let found = self.describe_at_leader(name).await?;
        if found.info.is_none() || size.is_some() && found.size() != size {
            return Ok(Some(found));
        }
        let written_at = found.written_at.unwrap_or_default();
        if self.server_time().await?.since(written_at) <= young { Ok(None) } else { Err(error) }
    }

    /// Writes a description in the place of the one that is at `expected`; its own place.
    pub(super) async fn write(
        &self,
        name: &str,
        info: &ObjectInfo,
        expected: u64,
    ) -> Result<u64, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_ROLLUP, "sub");
        let message = PublishMessage::build()
            .headers(headers)
            .payload(serde_json::to_vec(info).expect("it is plain data").into())
            .expected_last_subject_sequence(expected);
        let sent = self.context.send_publish(meta_subject(name), message).await?;
        Ok(sent.await?.sequence)
    }

    /// What the store says of a blob; asks again when the connection was cut meanwhile.
    pub(super) async fn describe(&self, name: &str) -> Result<Described, BlobError> {
        self.patiently(|| self.ask_any(name)).await
    }

    /// The same as the leader knows it.
    pub(super) async fn describe_at_leader(&self, name: &str) -> Result<Described, BlobError> {
        self.patiently(|| self.ask_leader(name)).await
    }

    async fn patiently<F>(&self, ask: impl Fn() -> F) -> Result<Described, BlobError>
    where
        F: Future<Output = Result<Described, BlobError>>,
    {
        for _ in 1..ATTEMPTS {
            match ask().await {
                Err(BlobError::Unavailable { .. }) => self.connected().await?,
                described => return described,
            }
        }
        ask().await
    }

    async fn ask_any(&self, name: &str) -> Result<Described, BlobError> {
        let subject = format!("{}.{}", direct_get(), meta_subject(name));
        let connections = self.connections();
        let reply = tokio::select! {
            reply = self.client.request(subject, Bytes::new()) => reply,
            () = self.made_again(connections) => {
                return Err(BlobError::unavailable(DOING, "the connection was cut"));
            }
        };
        let reply = reply.map_err(|error| BlobError::unavailable(DOING, error))?;
        if reply.status == Some(StatusCode::NOT_FOUND) {
            return Ok(Described::default());
        }
        if let Some(status) = reply.status {
            return Err(BlobError::unavailable(DOING, format!("status {status}")));
        }
        let sequence = header_number(&reply, header::NATS_SEQUENCE)
            .ok_or_else(|| BlobError::unavailable(DOING, "the answer has no sequence"))?;
        Ok(Described::read(name, sequence, &reply.payload))
    }

    async fn ask_leader(&self, name: &str) -> Result<Described, BlobError> {
        let stream = self.stream().await?;
        match stream.get_last_raw_message_by_subject(&meta_subject(name)).await {
            Ok(message) => {
                let written_at = Some(millis(message.time));
                let read = Described::read(name, message.sequence, &message.payload);
                Ok(Described { written_at, ..read })
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(Described::default())
            }
            Err(error) => Err(BlobError::unavailable(DOING, error)),
        }
    }
}

/// Whether what was not written may be written by another attempt.
pub(super) fn may_succeed(error: &PublishError) -> bool {
    publish::conflict(error).is_some() || may_pass(error.kind())
}
