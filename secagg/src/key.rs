//! Secrets of 32 bytes, what is derived from them, and X25519 key agreement.

use std::fmt;

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// 32 secret bytes: a seed, a private key, or a key of a cipher. Overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// An X25519 public key (RFC 7748).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublicKey(#[serde(with = "crate::bytes")] pub [u8; 32]);

/// A public key with which no secret can be agreed: a point of low order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("public key {0:?} agrees on nothing: expected one that a device made")]
pub struct AgreementError(pub PublicKey);

impl PublicKey {
    /// Whether a secret can be agreed on with its owner.
    pub(crate) fn check(&self) -> Result<(), AgreementError> {
        // Private keys are multiples of 8, and the order of such a point divides that: any of them
        // shows it (RFC 7748, section 6.1).
        Secret([1; 32]).agree(self, &[b"check"]).map(drop)
    }
}

/// Keeps what is derived here apart from what other programs derive from the same secrets.
const SALT: &[u8] = b"dunlin secagg 1";

impl Secret {
    /// Takes 32 bytes that nobody else knows.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another secret, for the purpose that `info` names. HKDF-SHA-256 (RFC 5869).
    pub(crate) fn derive(&self, info: &[&[u8]]) -> Self {
        let mut bytes = [0; 32];
        derive(SALT, &self.0, info, &mut bytes);
        Self(bytes)
    }

    /// Another secret for a purpose of the caller's own.
    #[must_use]
    pub fn derived(&self, purpose: &str) -> Self {
        self.derive(&[b"caller ", purpose.as_bytes()])
    }

    /// Its public key, as a private key.
    pub(crate) fn public_key(&self) -> PublicKey {
        let public = self.private_key().compute_public_key().expect("X25519 has one for any");
        let bytes = public.as_ref().try_into().expect("X25519 keys have 32 bytes");
        PublicKey(bytes)
    }

    /// The secret that the owner of `other` agrees on as well (RFC 7748, section 6.1), as a
    /// secret for the purpose that `info` names.
    pub(crate) fn agree(&self, other: &PublicKey, info: &[&[u8]]) -> Result<Self, AgreementError> {
        let error = AgreementError(*other);
        let other = UnparsedPublicKey::new(&X25519, other.0);
        agreement::agree(&self.private_key(), other, error, |shared| {
            let mut bytes = [0; 32];
            derive(SALT, shared, info, &mut bytes);
            Ok(Self(bytes))
        })
    }

    fn private_key(&self) -> PrivateKey {
        PrivateKey::from_private_key(&X25519, &self.0).expect("any 32 bytes are a private key")
    }
}

fn derive(salt: &[u8], secret: &[u8], info: &[&[u8]], out: &mut [u8]) {
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let filled = key.expand(info, Length(out.len())).and_then(|okm| okm.fill(out));
    filled.expect("SHA-256 fills up to 8160 bytes");
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        let byte = |index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap();
        std::array::from_fn(byte)
    }

    #[test]
    fn keys_agree_as_in_rfc_7748() {
        let bob = bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let bob = Secret::new(bob);
        let public = bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        assert_eq!(bob.public_key(), PublicKey(public));
        let alice = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let shared = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        let expected = Secret::new(shared).derive(&[b"test"]);
        assert_eq!(bob.agree(&PublicKey(alice), &[b"test"]), Ok(expected));
    }

    #[test]
    fn secrets_are_derived_as_in_rfc_5869() {
        let salt: [u8; 13] = bytes("000102030405060708090a0b0c");
        let info: [u8; 10] = bytes("f0f1f2f3f4f5f6f7f8f9");
        let mut found = [0; 42];
        derive(&salt, &[11; 22], &[&info[..3], &info[3..]], &mut found);
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf\
                        34007208d5b887185865";
        assert_eq!(found, bytes(expected));
    }

    #[test]
    fn two_keys_agree_and_points_of_low_order_are_refused() {
        let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let agreed = one.agree(&other.public_key(), &[b"a"]).unwrap();
        assert_eq!(other.agree(&one.public_key(), &[b"a"]), Ok(agreed.clone()));
        assert_ne!(other.agree(&one.public_key(), &[b"b"]), Ok(agreed));
        let mut low = [0; 32];
        assert!(one.agree(&PublicKey(low), &[]).is_err());
        low[0] = 1;
        assert_eq!(one.agree(&PublicKey(low), &[]), Err(AgreementError(PublicKey(low))));
    }

    #[test]
    fn every_point_of_low_order_shows() {
        // All of them, also in the spellings that are larger than the prime.
        // https://cr.yp.to/ecdh.html#validate
        let eight = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
        let other = "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157";
        let prime = |first: u8| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (first, 0x7f);
            bytes
        };
        let mut one = [0; 32];
        one[0] = 1;
        let low = [[0; 32], one, bytes(eight), bytes(other), prime(0xec), prime(0xed), prime(0xee)];
        for low in low {
            assert_eq!(PublicKey(low).check(), Err(AgreementError(PublicKey(low))));
        }
        assert_eq!(Secret::new([3; 32]).public_key().check(), Ok(()));
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", Secret::new([7; 32])), "Secret(..)");
    }
}
