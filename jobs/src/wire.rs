//! Messages as bytes: JSON, versioned, with an optional binary part behind it.
//!
//! The JSON object carries `"v": 1` beside the message's own members; unknown members are
//! ignored. A binary part follows the JSON directly; then the NATS header
//! [`JSON_LENGTH_HEADER`] gives the length of the JSON.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The protocol version that this program writes.
pub const VERSION: u32 = 1;
/// NATS header with the length of the JSON when a binary part follows.
pub const JSON_LENGTH_HEADER: &str = "Dunlin-Json-Length";
/// Bytes of the NATS header block that every size computation allows for.
pub const HEADER_ALLOWANCE: usize = 1024;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not this message.
    #[error("message is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// From a newer protocol.
    #[error(
        "message has protocol version {found}, this program understands up to {VERSION}: update it"
    )]
    Version {
        /// The version in the message.
        found: u32,
    },
    /// The header's length lies outside the message.
    #[error("{JSON_LENGTH_HEADER} says {length}, the message has {available} bytes")]
    Length {
        /// The header's value.
        length: usize,
        /// The message's length.
        available: usize,
    },
}

/// A message with its binary part, as it goes into a NATS payload.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// JSON, then the binary part.
    pub payload: Bytes,
    /// The value for [`JSON_LENGTH_HEADER`], when there is a binary part.
    pub json_length: Option<usize>,
}

/// Encodes a message without a binary part.
pub fn encode<T: Serialize>(_message: &T) -> Bytes {
    unimplemented!()
}

/// Encodes a message and its binary part.
pub fn encode_with_binary<T: Serialize>(_message: &T, _binary: &[u8]) -> Encoded {
    unimplemented!()
}

/// Decodes a message without a binary part.
///
/// # Errors
/// [`DecodeError`] when the bytes are another thing or from a newer protocol.
pub fn decode<T: DeserializeOwned>(_payload: &[u8]) -> Result<T, DecodeError> {
    unimplemented!()
}

/// Decodes a message and its binary part (empty when `json_length` is `None`).
///
/// # Errors
/// [`DecodeError`], as [`decode`].
pub fn decode_with_binary<T: DeserializeOwned>(
    _payload: &Bytes,
    _json_length: Option<usize>,
) -> Result<(T, Bytes), DecodeError> {
    unimplemented!()
}

/// Whether a payload with headers fits a server's `max_payload`.
pub fn fits(payload: usize, max_payload: usize) -> bool {
    payload.saturating_add(HEADER_ALLOWANCE) <= max_payload
}
