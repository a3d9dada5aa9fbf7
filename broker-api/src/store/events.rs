//! Events of a job, read back from the stream `EVENTS`.

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jobs::id::JobId;
use jobs::{subject, wire};

use super::{Store, StoreError, unavailable};
use crate::record::{EventBody, JobEvent};

impl Store {
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
