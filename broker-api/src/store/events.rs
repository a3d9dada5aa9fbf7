//! Events of a job, read back from the stream `EVENTS`.

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jobs::id::JobId;
use jobs::{subject, wire};

use super::{Store, StoreError, unavailable};
use crate::record::{EventBody, JobEvent};

/// What the stream has of the event that ends a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It stands in this place.
    ToldAt(u64),
    /// Only other events of the job are there.
    Untold,
    /// No event of the job is there any more; this place, or one before it, was the last one's.
    ForgottenBehind(u64),
}

impl Store {
    /// What the stream has of the event that ends a job.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn end_of(&self, job: &JobId) -> Result<End, StoreError> {
        if let Some(place) = self.last_event(subject::event(job, "ended")).await? {
            return Ok(End::ToldAt(place));
        }
        if self.last_event(subject::events_of(job)).await?.is_some() {
            return Ok(End::Untold);
        }
        let stream = self.context().get_stream(subject::STREAM_EVENTS).await;
        let stream = stream.map_err(|error| unavailable("looking at events", &error))?;
        let first = stream.cached_info().state.first_sequence;
        Ok(End::ForgottenBehind(first.saturating_sub(1).max(1)))
    }

    /// The place of the last event with this subject, which may be a pattern.
    async fn last_event(&self, subject: String) -> Result<Option<u64>, StoreError> {
        let stream = self.stream(subject::STREAM_EVENTS).await?;
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(message.sequence)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable("looking at events", &error)),
        }
    }

    /// Events of a job after a place in the stream, and those to come; ends with the job.
    /// The number tells how many are stored already.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn events(
        &self,
        job: &JobId,
        after: u64,
    ) -> Result<(u64, BoxStream<'static, JobEvent>), StoreError> {
        let doing = "reading events";
        let stream = self.stream(subject::STREAM_EVENTS).await?;
        let config = push::OrderedConfig {
            deliver_subject: self.client().new_inbox(),
            filter_subject: subject::events_of(job),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: after.saturating_add(1),
            },
            ..push::OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| unavailable(doing, &error))?;
        let stored = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| unavailable(doing, &error))?;
        let events = messages.take_while(|message| std::future::ready(message.is_ok())).filter_map(
            |message| {
                let event = message.ok().and_then(|message| {
                    let mut event: JobEvent = wire::decode(&message.payload).ok()?;
                    event.sequence = message.info().ok()?.stream_sequence;
                    Some(event)
                });
                std::future::ready(event)
            },
        );
        Ok((stored, until_ended(events.boxed())))
    }
}

/// Cuts the stream behind the event that ends the job.
fn until_ended(events: BoxStream<'static, JobEvent>) -> BoxStream<'static, JobEvent> {
    futures::stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        let event = events.next().await?;
        let ended = matches!(event.body, EventBody::Ended { .. });
        Some((event, (!ended).then_some(events)))
    })
    .boxed()
}
