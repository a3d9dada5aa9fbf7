//! Shares on their way from one device to another: the server passes them on and cannot read
//! or change them.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::key::Secret;

/// Bytes of two shares.
pub(crate) const PLAIN: usize = 64;

/// Two shares of 32 bytes, encrypted and authenticated (ChaCha20-Poly1305, RFC 8439).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed(#[serde(with = "crate::bytes")] pub [u8; PLAIN + 16]);

/// Seals shares. A key seals one text in its life, so that the nonce need not change.
pub(crate) fn seal(key: &Secret, shares: &[u8; PLAIN], context: &[u8]) -> Sealed {
    let mut sealed = [0; PLAIN + 16];
    let (text, tag) = sealed.split_at_mut(PLAIN);
    text.copy_from_slice(shares);
    let made = cipher(key).seal_in_place_separate_tag(nonce(), Aad::from(context), text);
    tag.copy_from_slice(made.expect("a short text is sealed").as_ref());
    Sealed(sealed)
}

/// What was sealed with this key in this context; `None` when anything is not as it was.
pub(crate) fn open(key: &Secret, sealed: &Sealed, context: &[u8]) -> Option<[u8; PLAIN]> {
    let mut text = sealed.0;
    let opened = cipher(key).open_in_place(nonce(), Aad::from(context), &mut text).ok()?;
    (&*opened).try_into().ok()
}

fn cipher(key: &Secret) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.bytes());
    LessSafeKey::new(key.expect("the cipher takes 32 bytes"))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_opens() {
        let key = Secret::new([1; 32]);
        let shares = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let sealed = seal(&key, &shares, b"to 7");
        assert_eq!(open(&key, &sealed, b"to 7"), Some(shares));
        assert_eq!(open(&key, &sealed, b"to 8"), None);
        assert_eq!(open(&Secret::new([2; 32]), &sealed, b"to 7"), None);
        for index in [0, PLAIN - 1, PLAIN, PLAIN + 15] {
            let mut tampered = sealed;
            tampered.0[index] ^= 1;
            assert_eq!(open(&key, &tampered, b"to 7"), None, "{index}");
        }
    }
}
