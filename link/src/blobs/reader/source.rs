//! Where the chunks of a blob come from, and what is said in between.

use async_nats::{Message, StatusCode, header};
use bytes::Bytes;
use jobs::held::{HeldRequest, OFFSET_HEADER, REFUSAL_HEADER};
use jobs::id::Bytes as Size;

use super::super::{CHUNK_BYTES, chunk_subject, direct_get};

/// Chunks asked for at once, at most.
const BATCH_CHUNKS: u64 = 256;

/// Who is asked.
#[derive(Debug)]
pub(super) enum Source {
    /// The object store, for the messages of a subject from this one of the stream on; so many of
    /// those that it was asked for last may still come.
    Store { chunk_subject: String, next_sequence: u64, left: u64 },
    /// The device that holds the blob; what it was asked for last ends here.
    Device { subject: String, name: String, until: u64 },
}

/// What a message is.
pub(super) enum Said {
    /// The next bytes.
    Chunk,
    /// Known bytes, once more.
    Known,
    /// The batch is over, the blob is not.
    Over,
    /// Nobody hears who is asked.
    Away,
    /// Whoever is asked has nothing to give.
    Refused(String),
    /// The blob is not what it should be.
    Damaged(String),
    /// Something else went wrong.
    Unavailable(String),
}

impl Source {
    /// The chunks of an object of this id.
    pub(super) fn in_store(id: &str) -> Self {
        Self::Store { chunk_subject: chunk_subject(id), next_sequence: 1, left: 0 }
    }

    /// A request for the bytes behind the first `received` of `size`: its subject and payload.
    pub(super) fn request(&mut self, received: u64, size: u64, bytes: u64) -> (String, Bytes) {
        match self {
            Self::Store { chunk_subject, next_sequence, left } => {
                // What comes behind the last of them, the word that it was the last, would hold the
                // memory that it was read into until somebody looks.
                *left = (bytes / CHUNK_BYTES as u64).clamp(1, BATCH_CHUNKS);
                let request = serde_json::json!({
                    "seq": next_sequence,
                    "next_by_subj": chunk_subject,
                    "batch": left,
                    "max_bytes": bytes,
                });
                (direct_get(), request.to_string().into())
            }
            Self::Device { subject, name, until } => {
                let bytes = bytes.min(size - received);
                *until = received + bytes;
                let request =
                    HeldRequest { name: name.clone(), from: received, bytes: Size(bytes) };
                let request = serde_json::to_vec(&request).expect("it is plain data");
                (subject.clone(), request.into())
            }
        }
    }

    /// Whether nothing more comes of a batch, which does not say so itself.
    pub(super) fn is_over(&self, received: u64) -> bool {
        match self {
            Self::Store { left, .. } => *left == 0,
            Self::Device { until, .. } => received >= *until,
        }
    }

    /// What a message is that comes behind the first `received` bytes of `size`.
    pub(super) fn hear(&mut self, message: &Message, received: u64, size: Size) -> Said {
        match self {
            Self::Store { next_sequence, left, .. } => {
                let said = of_store(message, next_sequence, received, size);
                if matches!(said, Said::Chunk) {
                    *left = left.saturating_sub(1);
                }
                said
            }
            Self::Device { .. } => of_device(message, received),
        }
    }
}

fn of_store(message: &Message, next_sequence: &mut u64, received: u64, size: Size) -> Said {
    match message.status {
        None => {}
        // End of the batch.
        Some(status) if status.as_u16() == 204 => return Said::Over,
        Some(StatusCode::NOT_FOUND) => {
            return Said::Damaged(format!("{received} of {size} bytes are there"));
        }
        Some(status) => return Said::Unavailable(status_text(message, status)),
    }
    let Some(sequence) = super::header_number(message, header::NATS_SEQUENCE) else {
        return Said::Unavailable("a chunk has no sequence".to_owned());
    };
    if sequence < *next_sequence {
        return Said::Damaged("its chunks come in the wrong order".to_owned());
    }
    *next_sequence = sequence + 1;
    Said::Chunk
}

fn of_device(message: &Message, received: u64) -> Said {
    match message.status {
        None => {}
        Some(StatusCode::NO_RESPONDERS) => return Said::Away,
        Some(status) => return Said::Unavailable(status_text(message, status)),
    }
    let refusal = message.headers.as_ref().and_then(|headers| headers.get(REFUSAL_HEADER));
    if let Some(refusal) = refusal {
        return Said::Refused(refusal.to_string());
    }
    match super::header_number(message, OFFSET_HEADER) {
        Some(offset) if offset == received && !message.payload.is_empty() => Said::Chunk,
        // A message that came twice.
        Some(offset) if offset < received => Said::Known,
        // One before it was lost, so it is asked for again.
        Some(_) => Said::Over,
        None => Said::Unavailable("a part does not say where it begins".to_owned()),
    }
}

fn status_text(message: &Message, status: StatusCode) -> String {
    format!("status {status} {}", message.description.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    #[test]
    fn a_batch_ends_with_the_last_chunk_that_was_asked_for() {
        let mut source = Source::in_store("id");
        let chunk = CHUNK_BYTES as u64;
        let size = Size(10 * chunk);
        for (bytes, chunks) in [(1, 1), (chunk, 1), (2 * chunk - 1, 1), (3 * chunk, 3)] {
            let (_, request) = source.request(0, size.0, bytes);
            let request: serde_json::Value = serde_json::from_slice(&request).unwrap();
            assert_eq!((&request["batch"], &request["max_bytes"]), (&chunks.into(), &bytes.into()));
            let first = request["seq"].as_u64().unwrap();
            for sequence in first..first + chunks {
                assert!(!source.is_over(0), "{bytes} bytes");
                assert!(matches!(source.hear(&numbered(sequence), 0, size), Said::Chunk));
            }
            assert!(source.is_over(0), "{bytes} bytes");
        }
    }

    fn numbered(sequence: u64) -> Message {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SEQUENCE, sequence.to_string());
        Message {
            subject: "chunk".into(),
            reply: None,
            payload: Bytes::from_static(b"bytes"),
            headers: Some(headers),
            status: None,
            description: None,
            length: 5,
        }
    }
}
