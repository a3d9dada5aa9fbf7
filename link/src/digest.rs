//! SHA-256 digests of blobs, their BLAKE3, and checksums, at the speed of the processor's own
//! instructions.

use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA256};
use jobs::id::{Blake3, Digest};

/// Computes a digest piece by piece.
#[derive(Clone)]
pub struct Hasher(Context);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything added.
    #[expect(clippy::missing_panics_doc, reason = "hexadecimal digits of a SHA-256 are a digest")]
    pub fn finish(self) -> Digest {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in self.0.finish().as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        Digest::parse(&text).expect("64 lower-case hexadecimal digits are a digest")
    }
}

/// Computes a BLAKE3 piece by piece: a third of the time of SHA-256 where a processor has vectors.
#[derive(Debug, Clone, Default)]
pub struct Blake3Hasher(blake3::Hasher);

impl Blake3Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The BLAKE3 of everything added.
    #[expect(clippy::missing_panics_doc, reason = "its digits are those of 32 bytes")]
    pub fn finish(&self) -> Blake3 {
        Blake3::parse(&self.0.finalize().to_hex()).expect("hexadecimal digits of 32 bytes")
    }
}

/// The CRC-32 of bytes (IEEE 802.3, section 3.2.9): finds what an accident changed, nothing that
/// somebody wants to hide.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The digest of bytes.
pub fn of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #[test]
    fn fips_180_4_example() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::of(b"abc").hex(), hex);
    }

    /// The BLAKE3 paper's test vectors: bytes 0, 1, ..., 250, 0, 1, ... of some lengths.
    #[test]
    fn blake3_test_vectors() {
        for (length, expected) in [
            (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
        ] {
            let mut hasher = super::Blake3Hasher::new();
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            for piece in bytes.chunks(100) {
                hasher.update(piece);
            }
            assert_eq!(hasher.finish().as_str(), expected, "{length}");
        }
    }

    /// The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
    #[test]
    fn crc_catalogue_check_value() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
