//! Identifiers and quantities, parsed once and never bare afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: expected {expected}")]
pub struct IdError {
    /// What was to be parsed, such as `device id`.
    pub kind: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

const NAME_EXPECTED: &str =
    "1 to 64 characters of a-z, 0-9, '-' and '_', beginning with a letter or digit";

fn is_name(text: &str) -> bool {
    let valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    (1..=64).contains(&text.len())
        && text.bytes().all(valid)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// `cmd.all.<verb>` and `cmd.group.<group>.<verb>` must not name a device.
fn is_device(text: &str) -> bool {
    is_name(text) && !matches!(text, "all" | "group")
}

fn is_version(text: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=64).contains(&text.len())
        && text.bytes().all(valid)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// Characters of a digest.
const DIGEST_LENGTH: usize = "sha256:".len() + 64;

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex_of_32_bytes)
}

fn is_hex_of_32_bytes(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_object(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $expected:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses the text; errors say what would have been accepted.
            ///
            /// # Errors
            /// [`IdError`] when the text has another form.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(IdError { kind: $kind, text, expected: $expected })
                }
            }

            /// The text of this identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

text_id!(
    /// Names one device for ever; chosen by its operator or taken from its host name.
    DeviceId, "device id", is_device,
    "1 to 64 characters of a-z, 0-9, '-' and '_', beginning with a letter or digit; \
     not 'all' or 'group', which address many devices"
);
text_id!(
    /// Names one job; the broker makes it, or a client that uses `PUT`.
    JobId, "job id", is_name, NAME_EXPECTED
);
text_id!(
    /// A data set as a device declares it, such as `digits`.
    DatasetName, "data set name", is_name, NAME_EXPECTED
);
text_id!(
    /// A model in the registry, such as `digits-mlp`.
    ModelName, "model name", is_name, NAME_EXPECTED
);
text_id!(
    /// One version of a model, such as `3` or `2026-11-23`.
    ModelVersion, "model version", is_version,
    "1 to 64 characters of letters, digits, '.', '-' and '_', beginning with a letter or digit"
);
text_id!(
    /// A group of devices, used in `cmd.group.<group>` subjects.
    GroupName, "group name", is_name, NAME_EXPECTED
);
text_id!(
    /// The SHA-256 of a blob, `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "digest", is_digest, "'sha256:' and 64 lower-case hexadecimal digits"
);

text_id!(
    /// The BLAKE3 of a blob, 64 lower-case hexadecimal digits: as good as its [`Digest`], and quicker to
    /// compute.
    Blake3, "BLAKE3", is_hex_of_32_bytes, "64 lower-case hexadecimal digits"
);

text_id!(
    /// One upload of a blob: its chunks are under this name.
    ObjectId, "object id", is_object, "1 to 64 letters and digits"
);

impl Digest {
    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> &str {
        self.0.trim_start_matches("sha256:")
    }

    /// The 32 bytes that the digits stand for.
    pub fn to_bytes(&self) -> [u8; 32] {
        let digits = self.hex().as_bytes();
        let value = |digit: u8| if digit < b'a' { digit - b'0' } else { digit - b'a' + 10 };
        std::array::from_fn(|at| value(digits[2 * at]) << 4 | value(digits[2 * at + 1]))
    }

    /// Every digest that a text has in it.
    pub fn all_in(text: &str) -> impl Iterator<Item = Self> {
        let begins = text.match_indices("sha256:");
        begins.filter_map(|(at, _)| Self::parse(text.get(at..at + DIGEST_LENGTH)?).ok())
    }
}

impl DeviceId {
    /// Makes a valid id of any text: a host name, for instance. Lower case, other characters
    /// become `-`; an empty result becomes `device`, a reserved word gets `device-` before it.
    pub fn from_host_name(text: &str) -> Self {
        let first = text.split('.').next().unwrap_or_default();
        let name: String = first
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if matches!(c, 'a'..='z' | '0'..='9' | '-' | '_') { c } else { '-' })
            .collect();
        let name: String = name.trim_matches(['-', '_']).chars().take(64).collect();
        match name.as_str() {
            "" => Self("device".to_owned()),
            "all" | "group" => Self(format!("device-{name}")),
            _ => Self(name),
        }
    }
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

quantity!(
    /// Milliseconds: a time since the Unix epoch, or a duration, as the field says.
    Millis(u64)
);
quantity!(
    /// A number of bytes.
    Bytes(u64)
);
quantity!(
    /// The number of a federated round, from 1.
    RoundNumber(u32)
);
quantity!(
    /// How often a task was placed, from 1.
    Attempt(u32)
);

impl Millis {
    /// This time and a duration after it, saturating.
    #[must_use]
    pub fn plus(self, duration: Millis) -> Millis {
        Millis(self.0.saturating_add(duration.0))
    }

    /// The duration since an earlier time, 0 when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Millis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

/// A blob in the object store: its bytes by digest and length, its place by name.
///
/// Blobs that live as long as anything refers to them (models, graphs) are named by digest, so
/// equal bytes are stored once. Blobs that are deleted with their round (updates, global
/// parameters) have a name of their own: deleting one takes nothing from another job or device
/// that came to equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// The length in bytes.
    pub size: Bytes,
    /// The object's name, of [`BLOB_NAME_MAX`] bytes at most; the digest's hexadecimal digits when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "blob_name")]
    pub name: Option<String>,
    /// Where it was when this was written: there it is looked for before the store is asked for the
    /// name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectId>,
    /// The BLAKE3 of the bytes, for devices that hear them while they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Box<Blake3>>,
}

/// Bytes of a blob's name, at most. Names are in subjects, and a subject that is too long ends the
/// connection of who sends it.
pub const BLOB_NAME_MAX: usize = 512;

fn blob_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    match name.as_ref().map(String::len) {
        Some(length) if length > BLOB_NAME_MAX => Err(serde::de::Error::custom(format!(
            "a blob's name has {length} bytes; it may have {BLOB_NAME_MAX}"
        ))),
        _ => Ok(name),
    }
}

impl BlobRef {
    /// A blob that is named by its digest.
    pub fn by_digest(digest: Digest, size: Bytes) -> Self {
        Self { digest, size, name: None, object: None, blake3: None }
    }

    /// The object's name in the store.
    pub fn object_name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.digest.hex())
    }
}

/// A version of a model: the manifest's digest says exactly which bytes are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelRef {
    /// The model's name.
    pub name: ModelName,
    /// The version's name.
    pub version: ModelVersion,
    /// The digest of the version's manifest.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_nats_tokens_and_path_segments() {
        for good in ["a", "pi-4", "rtx_3080", "0x1"] {
            assert_eq!(DeviceId::parse(good).unwrap().as_str(), good);
        }
        let bad_ids =
            ["", "-a", "A", "a.b", "a b", "a/b", "*", ">", "é", "all", "group", &"a".repeat(65)];
        for bad in bad_ids {
            assert!(DeviceId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_blob_has_no_endless_name() {
        let mut blob =
            BlobRef::by_digest(Digest::parse(&format!("sha256:{:064}", 0)).unwrap(), Bytes(1));
        blob.name = Some("n".repeat(BLOB_NAME_MAX));
        let text = serde_json::to_string(&blob).unwrap();
        assert_eq!(serde_json::from_str::<BlobRef>(&text).unwrap(), blob);
        blob.name = Some("n".repeat(BLOB_NAME_MAX + 1));
        let text = serde_json::to_string(&blob).unwrap();
        let error = serde_json::from_str::<BlobRef>(&text).unwrap_err().to_string();
        assert!(error.contains("a blob's name has 513 bytes; it may have 512"), "{error}");
    }

    #[test]
    fn host_names_become_device_ids() {
        let cases =
            [("Pi4.local", "pi4"), ("RTX 3080", "rtx-3080"), ("...", "device"), ("_x", "x")];
        let reserved = [("ALL", "device-all"), ("group.lan", "device-group")];
        for (host, id) in cases.into_iter().chain(reserved) {
            assert_eq!(DeviceId::from_host_name(host).as_str(), id);
            assert!(DeviceId::parse(id).is_ok());
        }
    }

    #[test]
    fn digests_name_their_algorithm() {
        let hex = "0".repeat(64);
        assert!(Digest::parse(&format!("sha256:{hex}")).is_ok());
        assert!(Digest::parse(&hex).is_err());
        assert!(Digest::parse(&format!("sha256:{}", "A".repeat(64))).is_err());
    }

    #[test]
    fn digests_are_found_in_any_text() {
        let [one, two] = [1, 2].map(|n| format!("sha256:{n:064x}"));
        let text = format!("{{\"a\":\"{one}\",\"b\":[\"sha256:12\",\"x{two}\"],\"c\":\"sha256:é");
        let found: Vec<String> = Digest::all_in(&text).map(String::from).collect();
        assert_eq!(found, [one.clone(), two]);
        assert_eq!(
            Digest::parse(&one).unwrap().to_bytes(),
            std::array::from_fn(|at| u8::from(at == 31))
        );
    }
}
