//! Keys that nobody else knows, and what is derived from them.

use std::fmt::{self, Write as _};

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

/// A key of 32 bytes. It is stored as 64 hexadecimal digits, and never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Secret([u8; 32]);

/// No key could be had, or text is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// Text that is no key; it is not shown.
    #[error("not a key: expected 64 lower-case hexadecimal digits")]
    Format,
}

impl Secret {
    /// A key from the system's random numbers.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn random() -> Result<Self, SecretError> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SecretError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// What belongs to a context: the same for the same context, and without the key no more to be
    /// guessed than the key (HMAC-SHA-256, RFC 2104). Contexts must not run into each other.
    pub fn derive(&self, context: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, context);
        let mut derived = [0; 32];
        derived.copy_from_slice(tag.as_ref());
        derived
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl TryFrom<String> for Secret {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        let digit = |byte: &u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(SecretError::Format),
        };
        let digits: Vec<u8> = text.as_bytes().iter().map(digit).collect::<Result<_, _>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let whole = digits.len().is_multiple_of(2);
        let bytes = bytes.try_into().ok().filter(|_| whole);
        bytes.map(Self).ok_or(SecretError::Format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stored_and_not_shown() {
        let secret = Secret::random().unwrap();
        assert_ne!(secret, Secret::random().unwrap());
        let text = serde_json::to_string(&secret).unwrap();
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<Secret>(&text).unwrap(), secret);
        assert_eq!(format!("{secret:?}"), "Secret");
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(63), &"0".repeat(66)] {
            let error = Secret::try_from(bad.to_owned()).unwrap_err();
            assert_eq!(error, SecretError::Format);
        }
    }

    /// RFC 4231, test case 1, whose key is shorter and filled with zeros.
    #[test]
    fn what_is_derived_is_hmac() {
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let derived = Secret(key).derive(b"Hi There");
        let text = String::from(Secret(derived));
        assert_eq!(text, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }
}
