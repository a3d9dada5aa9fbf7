//! Blobs as they lie in the store by age, and the removal of those that are named by their digest.
//!
//! They belong to nobody: whoever finds one that has the bytes it wants to store leaves it at that.
//! So a blob is removed as it was listed, or not at all. Its description is replaced by one that
//! says it is deleted, under the condition that nobody wrote it since it was listed; only then do
//! its chunks go, and the description that says so at last. Who finds a blob and is to rely on it
//! writes its description again ([`Blobs::put`] and [`Blobs::renew`] do), also under the condition
//! that it is the one that was found. Of the two one comes first, and the other learns of it:
//! either the blob stays, or it is stored anew, with chunks of its own. In a store without room for
//! another description one is found as it is that is too young to be removed yet.
//!
//! What is left when the remover dies in between is a description that says that the blob is
//! deleted. It is listed again, and what is left of the blob is removed then.

use std::time::Duration;

use async_nats::datetime::parse_rfc3339;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::{Message, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures::StreamExt as _;
use jobs::id::{Bytes as Size, Digest, Millis, ObjectId};
use serde::Deserialize;

use super::{BlobError, Blobs, chunk_subject, direct_get, meta_subject, refused};
use crate::layout::BUCKET_BLOBS;
use crate::publish::conflict;

/// How long the next description of a list may take.
const NEXT_WITHIN: Duration = Duration::from_secs(5);

const LISTING: &str = "listing blobs";
const REMOVING: &str = "removing a blob";

/// A blob that is named by its digest, as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Which.
    pub digest: Digest,
    /// The place of its description in the stream.
    pub sequence: u64,
    /// When the description was written, by the server's clock.
    pub written_at: Millis,
    /// The blob's length.
    pub size: Size,
    /// The upload that its chunks came with.
    pub upload: ObjectId,
    /// Whether it was removed, and what is left of it was not.
    pub deleted: bool,
}

/// A part of the list of blobs.
#[derive(Debug, Default)]
pub struct Page {
    /// Blobs that are named by their digest, those first whose description is the oldest.
    pub blobs: Vec<Listed>,
    /// Names of the others that are stored, and when their descriptions were written.
    pub named: Vec<(String, Millis)>,
    /// The uploads of all blobs, of those with another name too, and of deleted ones.
    pub(super) uploads: Vec<String>,
    /// The place of the last description of the page, that of a blob with another name too, and when
    /// it was written; none when there are no more.
    pub last: Option<(u64, Millis)>,
}

impl Blobs {
    /// Blobs whose descriptions are behind this place in the stream, from so many descriptions.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn list(&self, after: u64, descriptions: u32) -> Result<Page, BlobError> {
        let request = serde_json::json!({
            "seq": after + 1,
            "next_by_subj": format!("$O.{BUCKET_BLOBS}.M.>"),
            "batch": descriptions,
        });
        let unavailable = |reason: String| BlobError::unavailable(LISTING, reason);
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await;
        let mut answers = answers.map_err(|error| unavailable(error.to_string()))?;
        let asked = self.client.publish_with_reply(direct_get(), inbox, request.to_string().into());
        asked.await.map_err(|error| unavailable(error.to_string()))?;
        let mut page = Page::default();
        loop {
            let answer = tokio::time::timeout(NEXT_WITHIN, answers.next()).await;
            let Ok(Some(answer)) = answer else {
                return Err(unavailable(format!("nothing came for {NEXT_WITHIN:?}")));
            };
            match answer.status {
                None => page.take(answer)?,
                // The end of the batch, or there was nothing to begin with.
                Some(status) if status.as_u16() == 204 => return Ok(page),
                Some(StatusCode::NOT_FOUND) => return Ok(page),
                Some(status) => return Err(unavailable(format!("status {status}"))),
            }
        }
    }

    /// What the clock of the server says that leads the store.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`].
    pub async fn server_time(&self) -> Result<Millis, BlobError> {
        #[derive(Deserialize)]
        struct Info {
            ts: String,
        }
        let doing = "asking for the time";
        let subject = format!("STREAM.INFO.OBJ_{BUCKET_BLOBS}");
        let info: Result<Info, _> = self.context.request(subject, &()).await;
        let info = info.map_err(|error| BlobError::unavailable(doing, error))?;
        let time = parse_rfc3339(&info.ts);
        Ok(millis(time.map_err(|error| BlobError::unavailable(doing, error))?))
    }

    /// Removes a blob that nobody wrote since it was listed; whether it is gone. What is left of
    /// one that was removed goes whatever happened since.
    ///
    /// # Errors
    /// [`BlobError::Unavailable`], after which the blob may be listed once more, as it was or as
    /// deleted.
    pub async fn remove_listed(&self, listed: &Listed) -> Result<bool, BlobError> {
        let name = listed.digest.hex();
        let deleted_at = if listed.deleted {
            listed.sequence
        } else {
            match self.write(name, &deletion(listed), listed.sequence).await {
                Ok(sequence) => sequence,
                Err(error) if conflict(&error).is_some() => return Ok(false),
                Err(error) => {
                    let error = refused(&error);
                    if matches!(error, BlobError::Full { .. }) {
                        return self.remove_without_room(listed).await;
                    }
                    return Err(error);
                }
            }
        };
        self.purge_chunks(listed.upload.as_str()).await?;
        self.purge_description(name, deleted_at).await?;
        Ok(true)
    }

    /// The same in a store that has no room for another description. If the remover dies in
    /// between, the chunks are those of an upload without a description.
    pub(super) async fn remove_without_room(&self, listed: &Listed) -> Result<bool, BlobError> {
        let name = listed.digest.hex();
        if self.purge_description(name, listed.sequence).await? == 0 {
            return Ok(false);
        }
        // The leader may have agreed to a renewal before it carried this out. Such a one comes
        // before what is carried out next, and is seen then.
        self.purge_description(name, listed.sequence).await?;
        let now = self.describe_at_leader(name).await?;
        if now.info.is_some_and(|info| info.nuid == listed.upload.as_str()) {
            return Ok(false);
        }
        self.purge_chunks(listed.upload.as_str()).await?;
        Ok(true)
    }

    /// Removes a blob's description, unless there is a newer one; how many there were.
    async fn purge_description(&self, name: &str, sequence: u64) -> Result<u64, BlobError> {
        let stream = self.stream().await?;
        let purged = stream.purge().filter(meta_subject(name)).sequence(sequence + 1).await;
        purged.map(|done| done.purged).map_err(|error| BlobError::unavailable(REMOVING, error))
    }

    pub(super) async fn purge_chunks(&self, upload: &str) -> Result<(), BlobError> {
        let stream = self.stream().await?;
        let purged = stream.purge().filter(chunk_subject(upload)).await;
        purged.map(drop).map_err(|error| BlobError::unavailable(REMOVING, error))
    }
}

impl Page {
    fn take(&mut self, answer: Message) -> Result<(), BlobError> {
        let message = StreamMessage::try_from(answer);
        let message = message.map_err(|error| BlobError::unavailable(LISTING, error))?;
        self.last = Some((message.sequence, millis(message.time)));
        if let Ok(info) = serde_json::from_slice::<ObjectInfo>(&message.payload) {
            match listed(&message, &info) {
                Some(listed) => self.blobs.push(listed),
                None if info.deleted => {}
                None => self.named.extend(name_in(&message).zip(Some(millis(message.time)))),
            }
            self.uploads.push(info.nuid);
        }
        Ok(())
    }
}

fn name_in(message: &StreamMessage) -> Option<String> {
    let name = message.subject.rsplit('.').next()?;
    String::from_utf8(URL_SAFE.decode(name).ok()?).ok()
}

/// A blob, if it is named by its digest.
fn listed(message: &StreamMessage, info: &ObjectInfo) -> Option<Listed> {
    let digest = Digest::parse(&format!("sha256:{}", name_in(message)?)).ok()?;
    Some(Listed {
        digest,
        sequence: message.sequence,
        written_at: millis(message.time),
        size: Size(info.size as u64),
        upload: ObjectId::parse(&info.nuid).ok()?,
        deleted: info.deleted,
    })
}

/// The description of a blob that is deleted, as NATS object stores write it.
pub(super) fn deletion(listed: &Listed) -> ObjectInfo {
    ObjectInfo {
        name: listed.digest.hex().to_owned(),
        description: None,
        metadata: std::collections::HashMap::default(),
        headers: None,
        options: None,
        bucket: BUCKET_BLOBS.to_owned(),
        nuid: listed.upload.to_string(),
        size: 0,
        chunks: 0,
        modified: None,
        digest: None,
        deleted: true,
    }
}

pub(super) fn millis(time: async_nats::datetime::DateTime) -> Millis {
    Millis(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or_default())
}
