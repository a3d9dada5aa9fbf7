//! Values as they lie in buckets: JSON, and gzip of it where it is long, so that what a round of many
//! devices comes to fits into one message.

use std::borrow::Cow;
use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jobs::wire::{self, DecodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// JSON of this length is stored as it is, for people who look into buckets.
const PLAIN_MAX: usize = 64 * 1024;
/// Bytes that a value may unpack to.
const UNPACKED_MAX: u64 = 64 * 1024 * 1024;
/// What gzip begins with, and JSON does not.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Why bytes are no value.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackedError {
    #[error(transparent)]
    Json(#[from] DecodeError),
    #[error("gzip: {0}")]
    Gzip(#[from] std::io::Error),
    #[error("it unpacks to more than {UNPACKED_MAX} bytes")]
    TooLarge,
}

pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    let json = wire::encode(value);
    if json.len() <= PLAIN_MAX {
        return json;
    }
    let mut gzip = GzEncoder::new(Vec::with_capacity(json.len() / 2), Compression::fast());
    match gzip.write_all(&json).and_then(|()| gzip.finish()) {
        Ok(packed) => packed.into(),
        // Memory is all that it writes to.
        Err(_) => json,
    }
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PackedError> {
    Ok(wire::decode(&unpack(bytes)?)?)
}

/// The JSON of a value.
pub(super) fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, PackedError> {
    if !bytes.starts_with(GZIP) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut json = Vec::new();
    let read = GzDecoder::new(bytes).take(UNPACKED_MAX + 1).read_to_end(&mut json)?;
    if read as u64 > UNPACKED_MAX {
        return Err(PackedError::TooLarge);
    }
    Ok(Cow::Owned(json))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Value {
        text: String,
    }

    #[test]
    fn long_values_are_packed_and_short_ones_are_json() {
        for length in [0, 10, PLAIN_MAX / 2, 40 * PLAIN_MAX] {
            let value = Value { text: "device-1 ".repeat(length / 9) };
            let bytes = encode(&value);
            assert_eq!(bytes.starts_with(GZIP), length > PLAIN_MAX, "{length}");
            assert!(bytes.len() <= PLAIN_MAX + 100, "{length}: {}", bytes.len());
            assert_eq!(decode::<Value>(&bytes).unwrap(), value);
        }
    }

    #[test]
    fn what_is_damaged_or_too_large_is_an_error() {
        let bytes = encode(&Value { text: "a".repeat(4 * PLAIN_MAX) });
        for end in [2, 20, bytes.len() - 1] {
            assert!(decode::<Value>(&bytes[..end]).is_err(), "{end}");
        }
        let bomb = encode(&Value { text: "a".repeat(65 * 1024 * 1024) });
        assert!(bomb.len() < 1024 * 1024);
        let error = decode::<Value>(&bomb).unwrap_err().to_string();
        assert!(error.contains("more than"), "{error}");
        assert!(decode::<Value>(b"{").is_err());
    }
}
