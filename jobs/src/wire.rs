//! Messages as bytes: JSON, versioned, with an optional binary part behind it.
//!
//! The JSON object carries `"v": 1` beside the message's own members; unknown members are
//! ignored. A binary part follows the JSON directly; then the NATS header
//! [`JSON_LENGTH_HEADER`] gives the length of the JSON.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
///
/// # Panics
/// When the message is not a JSON object: messages are structs and internally tagged enums.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    Bytes::from(json(message, 0))
}

/// Encodes a message and its binary part.
///
/// # Panics
/// As [`encode`].
pub fn encode_with_binary<T: Serialize>(message: &T, binary: &[u8]) -> Encoded {
    let mut payload = json(message, binary.len());
    let json_length = payload.len();
    payload.extend_from_slice(binary);
    Encoded { payload: Bytes::from(payload), json_length: Some(json_length) }
}

/// Decodes a message without a binary part; one without `"v"`, written by hand, is of this
/// version.
///
/// # Errors
/// [`DecodeError`] when the bytes are another thing or from a newer protocol.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    // After `{"v":1` a digit would make it another version.
    let members = payload.strip_prefix(PREFIX).unwrap_or_default();
    if let [b',' | b'}', ..] = members {
        let mut object = Vec::with_capacity(members.len() + 1);
        object.push(b'{');
        object.extend_from_slice(members.strip_prefix(b",").unwrap_or(members));
        return Ok(serde_json::from_slice(&object)?);
    }
    let mut members: Map<String, Value> = serde_json::from_slice(payload)?;
    if let Some(version) = members.remove("v") {
        let found = u32::deserialize(version)?;
        if found > VERSION {
            return Err(DecodeError::Version { found });
        }
    }
    Ok(serde_json::from_value(Value::Object(members))?)
}

/// Decodes a message and its binary part (empty when `json_length` is `None`).
///
/// # Errors
/// [`DecodeError`], as [`decode`].
pub fn decode_with_binary<T: DeserializeOwned>(
    payload: &Bytes,
    json_length: Option<usize>,
) -> Result<(T, Bytes), DecodeError> {
    let available = payload.len();
    let length = json_length.unwrap_or(available);
    if length > available {
        return Err(DecodeError::Length { length, available });
    }
    Ok((decode(&payload[..length])?, payload.slice(length..)))
}

/// How every message begins.
const PREFIX: &[u8] = br#"{"v":1"#;

/// The JSON of a message, with room for a binary part behind it.
fn json<T: Serialize>(message: &T, room: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(512 + room);
    buffer.extend_from_slice(PREFIX);
    serde_json::to_writer(&mut buffer, message)
        .expect("messages have string keys and a Vec takes every byte");
    assert_eq!(buffer[PREFIX.len()], b'{', "a message is a JSON object");
    if buffer[PREFIX.len() + 1] == b'}' {
        buffer.remove(PREFIX.len());
    } else {
        buffer[PREFIX.len()] = b',';
    }
    buffer
}

/// Whether a payload with headers fits a server's `max_payload`.
pub fn fits(payload: usize, max_payload: usize) -> bool {
    payload.saturating_add(HEADER_ALLOWANCE) <= max_payload
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        text: String,
        number: u64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Empty {}

    #[test]
    fn the_version_stands_beside_the_members() {
        let message = Strict { text: "a".to_owned(), number: 2 };
        assert_eq!(encode(&message), r#"{"v":1,"text":"a","number":2}"#);
        assert_eq!(encode(&Empty {}), r#"{"v":1}"#);
        assert_eq!(decode::<Empty>(br#"{"v":1}"#).unwrap(), Empty {});
        for foreign in [
            r#"{"text":"a","number":2}"#,
            r#"{"text":"a","v":1,"number":2}"#,
            r#" {"v":1,"text":"a","number":2}"#,
            r#"{"v":0,"text":"a","number":2}"#,
        ] {
            assert_eq!(decode::<Strict>(foreign.as_bytes()).unwrap(), message, "{foreign}");
        }
        assert_eq!(decode::<Empty>(br#"{"v":1,"later":[1]}"#).unwrap(), Empty {});
    }

    #[test]
    fn newer_protocols_are_refused_by_number() {
        for (text, version) in [(r#"{"v":2,"new":1}"#, 2), (r#"{"v":12}"#, 12), (r#"{"v":10,}"#, 0)]
        {
            match decode::<Strict>(text.as_bytes()) {
                Err(DecodeError::Version { found }) => assert_eq!(found, version),
                Err(DecodeError::Json(_)) => assert_eq!(version, 0),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in ["", "x", "[]", "{", r#"{"v":1"#, r#"{"v":1,"#, r#"{"v":"1"}"#, r#"{"v":1x}"#] {
            let error = decode::<Empty>(text.as_bytes()).unwrap_err();
            assert!(matches!(error, DecodeError::Json(_)), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_length_outside_the_message_is_refused() {
        let payload = Bytes::from_static(br#"{"v":1}xyz"#);
        let (_, binary) = decode_with_binary::<Empty>(&payload, Some(7)).unwrap();
        assert_eq!(binary, "xyz");
        let error = decode_with_binary::<Empty>(&payload, Some(11)).unwrap_err();
        assert_eq!(error.to_string(), "Dunlin-Json-Length says 11, the message has 10 bytes");
    }

    proptest! {
        #[test]
        fn messages_come_back(
            text: String, number: u64, binary in prop::collection::vec(any::<u8>(), 0..99),
        ) {
            let message = Strict { text, number };
            let encoded = encode_with_binary(&message, &binary);
            let (decoded, rest) =
                decode_with_binary::<Strict>(&encoded.payload, encoded.json_length).unwrap();
            prop_assert_eq!(&decoded, &message);
            prop_assert_eq!(&rest[..], &binary[..]);
            prop_assert_eq!(decode::<Strict>(&encode(&message)).unwrap(), message);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            let mut prefixed = PREFIX.to_vec();
            prefixed.extend_from_slice(&bytes);
            let _ = decode::<Strict>(&bytes);
            prop_assert!(decode::<Strict>(&prefixed).is_err());
        }
    }
}
