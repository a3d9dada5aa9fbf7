//! What makes the bytes of a plane fewer.

use serde::{Deserialize, Serialize};

use super::rans;

/// How a plane that is not as it was begins, by what coded it.
const RANS: u8 = 1;
const ZSTD: u8 = 2;
/// Zstandard's level: its own default. Planes are so short that higher ones find nothing more.
const LEVEL: i32 = 3;

/// Coded bytes that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// What codes the planes of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coder {
    /// By how often each byte occurs: an [entropy coder](rans) alone.
    #[default]
    Rans,
    /// Zstandard (RFC 8878), which sees repetitions too.
    Zstd,
}

impl Coder {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How a plane begins that it coded.
    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Rans => RANS,
            Self::Zstd => ZSTD,
        }
    }

    /// The one of a plane that begins so.
    pub(super) fn of(kind: u8) -> Option<Self> {
        match kind {
            RANS => Some(Self::Rans),
            ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Appends the coded bytes; `false`, with nothing appended, where they would not be shorter by a
    /// fortieth at least.
    pub(super) fn encode(self, bytes: &[u8], coded: &mut Vec<u8>) -> bool {
        let most = bytes.len() - (bytes.len() / 40).max(1).min(bytes.len());
        match self {
            Self::Rans => rans::encode(bytes, most, coded),
            Self::Zstd => {
                let begin = coded.len();
                coded.resize(begin + most, 0);
                let length = zstd_safe::compress(&mut coded[begin..], bytes, LEVEL);
                // The only error is that there is no room.
                coded.truncate(begin + length.unwrap_or_default());
                coded.len() > begin
            }
        }
    }

    /// Appends the `length` bytes that were coded, of which nothing is trusted.
    pub(super) fn decode(
        self,
        coded: &[u8],
        length: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Damaged> {
        match self {
            Self::Rans => rans::decode(coded, length, bytes),
            Self::Zstd => {
                let begin = bytes.len();
                bytes.resize(begin + length, 0);
                let found = zstd_safe::decompress(&mut bytes[begin..], coded);
                if found == Ok(length) { Ok(()) } else { Err(Damaged) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![9 => Just(0), 2 => 100..104_u8, 1 => any::<u8>()];
        prop_oneof![
            prop::collection::vec(byte, 0..3000),
            prop::collection::vec(any::<u8>(), 0..3000),
        ]
    }

    proptest! {
        #[test]
        fn bytes_come_back_where_it_pays(bytes in planes()) {
            for by in [Coder::Rans, Coder::Zstd] {
                let mut coded = vec![7];
                if !by.encode(&bytes, &mut coded) {
                    prop_assert_eq!(coded, [7]);
                    continue;
                }
                prop_assert!(coded.len() - 1 < bytes.len());
                let mut decoded = vec![9];
                by.decode(&coded[1..], bytes.len(), &mut decoded).unwrap();
                prop_assert_eq!(&decoded[1..], &bytes[..]);
                for length in [bytes.len() - 1, bytes.len() + 1] {
                    prop_assert_eq!(by.decode(&coded[1..], length, &mut decoded), Err(Damaged));
                }
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
            bytes in planes(), at: prop::sample::Index, byte: u8, noise: Vec<u8>, length in 0..5000_usize,
        ) {
            for by in [Coder::Rans, Coder::Zstd] {
                let mut out = Vec::new();
                let _ = by.decode(&noise, length, &mut out);
                let mut coded = Vec::new();
                if by.encode(&bytes, &mut coded) {
                    let at = at.index(coded.len());
                    coded[at] = byte;
                    let _ = by.decode(&coded, length, &mut out);
                    let _ = by.decode(&coded[..at], bytes.len(), &mut out);
                }
            }
        }
    }

    /// Runs that an entropy coder cannot see.
    #[test]
    fn zstandard_sees_repetitions() {
        let bytes: Vec<u8> = (0..=255).cycle().take(16_384).collect();
        let mut coded = Vec::new();
        assert!(!Coder::Rans.encode(&bytes, &mut coded));
        assert!(Coder::Zstd.encode(&bytes, &mut coded) && coded.len() < 500, "{}", coded.len());
        assert_eq!(coded[..4], [0x28, 0xb5, 0x2f, 0xfd], "RFC 8878, 3.1.1");
    }

    #[test]
    fn a_kind_is_its_coder() {
        for by in [Coder::Rans, Coder::Zstd] {
            assert_eq!(Coder::of(by.kind()), Some(by));
        }
        assert_eq!((Coder::of(0), Coder::of(3)), (None, None));
    }
}
