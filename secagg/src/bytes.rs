//! Bytes in messages as hexadecimal text.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Two digits a byte, lower case.
pub(crate) fn serialize<S: Serializer>(
    bytes: impl AsRef<[u8]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    let digits = bytes.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    serializer.serialize_str(&digits.collect::<String>())
}

/// Exactly `N` bytes.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format_args!("expected {N} bytes in hexadecimal")))
}

fn parse<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_number_of_digits_is_taken() {
        assert_eq!(parse("00ff1a"), Some([0, 255, 26]));
        for bad in ["", "00ff1", "00ff1a00", "00FF1A", "00fg1a", "é0ff1"] {
            assert_eq!(parse::<3>(bad), None, "{bad}");
        }
    }
}
