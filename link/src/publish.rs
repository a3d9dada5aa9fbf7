//! Publishing that is sure to fit: the size is computed before the server closes the connection.

use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, header};
use bytes::Bytes;
use jobs::wire;

/// How often a publish that got no acknowledgement is repeated; `Nats-Msg-Id` makes one of them.
const ATTEMPTS: u32 = 5;

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Larger than the server takes.
    #[error("message of {size} bytes is larger than the server's max_payload {max}: use a blob")]
    TooLarge {
        /// The payload.
        size: usize,
        /// The server's limit for payload and headers.
        max: usize,
    },
    /// No stream listens on the subject.
    #[error("no stream takes {subject:?}: has a broker been started with this NATS?")]
    NoStream {
        /// Where to.
        subject: String,
    },
    /// The stream is full, or its disk.
    #[error("stream refuses {subject:?}: {reason}")]
    Refused {
        /// Where to.
        subject: String,
        /// What it said.
        reason: String,
    },
    /// NATS does not answer.
    #[error("NATS does not take {subject:?}: {reason}")]
    Unavailable {
        /// Where to.
        subject: String,
        /// What happened.
        reason: String,
    },
}

/// Bytes of a message, at most; what nats-server takes unless it is told, if it has not said.
pub fn max_payload(client: &Client) -> usize {
    match client.max_payload() {
        0 => 1024 * 1024,
        max => max,
    }
}

/// Checks a payload against the server's limit.
///
/// # Errors
/// [`SendError::TooLarge`].
pub fn check_size(client: &Client, payload: usize) -> Result<(), SendError> {
    let max = max_payload(client);
    if wire::fits(payload, max) { Ok(()) } else { Err(SendError::TooLarge { size: payload, max }) }
}

/// Publishes without acknowledgement: for what may be lost.
///
/// # Errors
/// [`SendError::TooLarge`] and [`SendError::Unavailable`].
pub async fn publish(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<(), SendError> {
    check_size(client, payload.len())?;
    let sent = match headers {
        Some(headers) => client.publish_with_headers(subject.clone(), headers, payload).await,
        None => client.publish(subject.clone(), payload).await,
    };
    sent.map_err(|error| SendError::Unavailable { subject, reason: error.to_string() })
}

/// Publishes into a stream under a message id and waits for the acknowledgement; repeats while
/// there is none. Gives the place in the stream.
///
/// # Errors
/// [`SendError`].
pub async fn store(
    context: &Context,
    subject: &str,
    message_id: &str,
    mut headers: HeaderMap,
    payload: Bytes,
) -> Result<u64, SendError> {
    check_size(&context.client(), payload.len())?;
    headers.insert(header::NATS_MESSAGE_ID, message_id);
    let mut attempt = 1;
    loop {
        let sent = async {
            let headers = headers.clone();
            context.publish_with_headers(subject.to_owned(), headers, payload.clone()).await?.await
        };
        match sent.await {
            Ok(ack) => return Ok(ack.sequence),
            Err(error) if attempt < ATTEMPTS && is_transient(&error) => {
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
                attempt += 1;
            }
            Err(error) => return Err(explain(subject, &error)),
        }
    }
}

/// What a write met that was to come after a certain one of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Another write came before.
    Written,
    /// A cluster's leader has agreed to another write and not carried it out: soon that one has come
    /// before, or the same write is taken.
    UnderWay,
}

/// Whether a write was refused because of another one.
pub fn conflict(error: &(dyn std::error::Error + 'static)) -> Option<Conflict> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        match error.downcast_ref::<jetstream::Error>()?.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Some(Conflict::Written),
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Some(Conflict::UnderWay),
            _ => None,
        }
    })
}

/// How long to rest after so many attempts: what a cluster agreed to is not carried out at once.
pub fn rest_after(attempts: u32) -> Duration {
    Duration::from_millis(1 << attempts.min(6))
}

fn is_transient(error: &PublishError) -> bool {
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => true,
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => false,
    }
}

fn explain(subject: &str, error: &PublishError) -> SendError {
    let (subject, reason) = (subject.to_owned(), error.to_string());
    match error.kind() {
        PublishErrorKind::StreamNotFound => SendError::NoStream { subject },
        PublishErrorKind::Other
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence => SendError::Refused { subject, reason },
        PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded => SendError::Unavailable { subject, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, ensure};
    use crate::server::Server;

    #[test]
    fn a_write_that_is_under_way_is_a_conflict() {
        for (code, expected) in
            [(10071, Some(Conflict::Written)), (10164, Some(Conflict::UnderWay)), (10077, None)]
        {
            let said = serde_json::json!({"code": 400, "err_code": code, "description": "no"});
            let said: jetstream::Error = serde_json::from_value(said).unwrap();
            assert_eq!(conflict(&said), expected);
            let error = PublishError::with_source(PublishErrorKind::Other, said);
            assert_eq!(conflict(&error), expected, "{error}");
        }
    }

    #[tokio::test]
    async fn a_repeated_message_is_stored_once() {
        let server = Server::start();
        let context = async_nats::jetstream::new(server.client().await);
        let empty = HeaderMap::new;
        let early = store(&context, "report.j.d", "1", empty(), "x".into()).await.unwrap_err();
        assert!(matches!(early, SendError::NoStream { .. }), "{early}");
        ensure(&context, Layout::default()).await.unwrap();
        let first = store(&context, "report.j.d", "1", empty(), "x".into()).await.unwrap();
        let again = store(&context, "report.j.d", "1", empty(), "x".into()).await.unwrap();
        assert_eq!(first, again);
    }

    #[tokio::test]
    async fn too_large_is_refused_and_the_connection_lives() {
        let server = Server::start();
        let client = server.client().await;
        let large = Bytes::from(vec![0; 1024 * 1024]);
        let error = publish(&client, "a".to_owned(), None, large).await.unwrap_err();
        assert!(matches!(error, SendError::TooLarge { size: 1_048_576, max: 1_048_576 }));
        client.flush().await.unwrap();
    }
}
