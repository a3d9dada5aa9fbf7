//! The chunks of an upload that are under way, and what becomes of them when the connection is cut.
//!
//! Each chunk has a message id, so that the stream takes it once however often it is sent. When the
//! connection is made again those without an acknowledgement are sent again, and no others: at most a window of them.
//! What was written after the cut may have come before what was lost in it; such chunks are
//! deleted and sent again in their turn, since the order in the stream is the order of the blob.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::{PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use super::flow::Flow;
use super::unfinished::Pulse;
use super::{BlobError, Blobs, chunk_subject, refused};

/// How long acknowledgements may take that should be there already.
const GRACE: Duration = Duration::from_millis(500);
/// How often chunks are sent again before any of them is acknowledged.
const RESENDS_MAX: u32 = 5;

/// Chunks in the order of the blob, the oldest first.
pub(super) struct Window<'a> {
    blobs: &'a Blobs,
    id: &'a str,
    subject: String,
    under_way: VecDeque<Sent>,
    /// Chunks that were handed over.
    count: u64,
    /// The place of the last acknowledged one in the stream.
    last: u64,
    /// How often chunks were sent again since the last acknowledgement.
    resends: u32,
    flow: Flow,
    pulse: &'a Pulse,
}

struct Sent {
    index: u64,
    /// Counts deletions: what was deleted has to come under another message id.
    generation: u32,
    chunk: Bytes,
    /// How often the connection was made before.
    connections: u64,
    published_at: Instant,
    /// When it was sent for the first time.
    since: (std::time::Instant, SystemTime),
    /// Away while it is awaited.
    acknowledged: Option<PublishAckFuture>,
}

impl<'a> Window<'a> {
    pub(super) fn new(blobs: &'a Blobs, id: &'a str, pulse: &'a Pulse) -> Self {
        let subject = chunk_subject(id);
        let (under_way, flow) = (VecDeque::new(), Flow::new());
        Self { blobs, id, subject, under_way, count: 0, last: 0, resends: 0, flow, pulse }
    }

    /// Sends the next chunk.
    pub(super) async fn send(&mut self, chunk: Bytes) -> Result<(), BlobError> {
        let (index, generation) = (self.count, 0);
        let (connections, published_at, acknowledged) = (0, Instant::now(), None);
        let since = (std::time::Instant::now(), SystemTime::now());
        let mut sent =
            Sent { index, generation, chunk, connections, published_at, since, acknowledged };
        self.count += 1;
        if index == 0 {
            self.pulse.beat(since);
        }
        self.publish(&mut sent).await?;
        self.under_way.push_back(sent);
        Ok(())
    }

    async fn publish(&self, sent: &mut Sent) -> Result<(), BlobError> {
        self.blobs.pace(sent.chunk.len()).await;
        // What waited for a connection would come before what has to be sent again.
        self.blobs.connected().await?;
        self.pulse.check()?;
        (sent.connections, sent.published_at) = (self.blobs.connections(), Instant::now());
        let Sent { index, generation, chunk, .. } = &sent;
        let message = PublishMessage::build()
            .payload(chunk.clone())
            .message_id(format!("{}.{index}.{generation}", self.id));
        let published = self.blobs.context.send_publish(self.subject.clone(), message).await;
        sent.acknowledged = Some(published.map_err(|error| refused(&error))?);
        Ok(())
    }

    /// Waits until a chunk of this length may be under way as well.
    pub(super) async fn make_room(&mut self, chunk: usize) -> Result<(), BlobError> {
        while !self.under_way.is_empty() && self.bytes() + chunk > self.flow.bytes() {
            self.settle_oldest().await?;
        }
        if self.pulse.is_weak() { self.settle().await } else { Ok(()) }
    }

    /// Waits until no chunk is under way.
    pub(super) async fn settle(&mut self) -> Result<(), BlobError> {
        while !self.under_way.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(())
    }

    /// Bytes that are under way.
    fn bytes(&self) -> usize {
        self.under_way.iter().map(|sent| sent.chunk.len()).sum()
    }

    /// Waits for the oldest chunk under way; it may have to be sent again.
    async fn settle_oldest(&mut self) -> Result<(), BlobError> {
        let under_way = self.bytes();
        let Some(oldest) = self.under_way.front_mut() else { return Ok(()) };
        let acknowledged = oldest.acknowledged.take().expect("all that is under way was sent");
        let stored = tokio::select! {
            biased;
            stored = acknowledged.into_future() => stored,
            () = self.blobs.made_again(oldest.connections) => {
                Err(PublishErrorKind::BrokenPipe.into())
            }
        };
        match stored {
            Ok(PublishAck { sequence, .. }) if sequence > self.last => {
                let (length, took) = (oldest.chunk.len(), oldest.published_at.elapsed());
                self.flow.acknowledged(length, under_way, took);
                self.last = sequence;
                self.resends = 0;
                self.pulse.beat(oldest.since);
                self.under_way.pop_front();
            }
            // Behind one that comes after it.
            Ok(PublishAck { sequence, .. }) => {
                self.delete(sequence).await?;
                oldest_mut(&mut self.under_way).generation += 1;
                self.resend().await?;
            }
            Err(error) if may_pass(error.kind()) && self.resends < RESENDS_MAX => {
                self.resend().await?;
            }
            Err(error) => return Err(refused(&error)),
        }
        Ok(())
    }

    /// Sends all chunks again of which nothing is known.
    async fn resend(&mut self) -> Result<(), BlobError> {
        self.resends += 1;
        self.flow.lost();
        for (at, acknowledged) in self.all_acknowledged().await {
            if let Some(sequence) = acknowledged {
                self.delete(sequence).await?;
                self.under_way[at].generation += 1;
            }
        }
        self.blobs.connected().await?;
        let mut under_way = std::mem::take(&mut self.under_way);
        let mut outcome = Ok(());
        for sent in &mut under_way {
            if outcome.is_ok() {
                outcome = self.publish(sent).await;
            }
        }
        self.under_way = under_way;
        outcome
    }

    /// Waits for all chunks; the place of each in the stream that has one.
    async fn all_acknowledged(&mut self) -> Vec<(usize, Option<u64>)> {
        let waiting = self.under_way.iter_mut().enumerate().filter_map(|(at, sent)| {
            let acknowledged = sent.acknowledged.take()?;
            Some(async move {
                let stored = tokio::time::timeout(GRACE, acknowledged.into_future()).await;
                (at, stored.ok().and_then(Result::ok).map(|stored| stored.sequence))
            })
        });
        let waiting: Vec<_> = waiting.collect();
        join_all(waiting).await
    }

    async fn delete(&self, sequence: u64) -> Result<(), BlobError> {
        let stream = self.blobs.stream().await?;
        let deleted = stream.delete_message(sequence).await;
        deleted.map(drop).map_err(|error| BlobError::unavailable("storing a blob", error))
    }

    /// Waits for what is under way, whatever becomes of it.
    pub(super) async fn abandon(mut self) {
        self.all_acknowledged().await;
    }
}

fn oldest_mut(under_way: &mut VecDeque<Sent>) -> &mut Sent {
    under_way.front_mut().expect("it was there before it was awaited")
}

/// Whether the same message may be taken later: the connection was cut, or the stream has no leader.
pub(super) fn may_pass(kind: PublishErrorKind) -> bool {
    match kind {
        PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::StreamNotFound => true,
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => false,
    }
}
