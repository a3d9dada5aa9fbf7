//! Shamir's secret sharing over GF(2^8), byte by byte (Shamir 1979).
//!
//! The field is that of AES, modulo `x^8 + x^4 + x^3 + x + 1`. No branch and no address depends
//! on a secret.

use crate::key::Secret;
use crate::mask;

/// Shares of one secret, at most: points other than 0.
pub const SHARES_MAX: usize = 255;

/// A share: the polynomials' values at one point.
#[derive(Clone, PartialEq, Eq)]
pub struct Share {
    /// Where; never 0, which is the secret's place.
    pub point: u8,
    /// One value for each byte of the secret.
    pub values: [u8; 32],
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({}, ..)", self.point)
    }
}

/// Why shares give no secret, or a secret no shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// A threshold out of range.
    #[error("{threshold} of {shares} shares: expected 1 <= threshold <= shares <= {SHARES_MAX}")]
    Threshold {
        /// Shares that give the secret.
        threshold: usize,
        /// Shares in all.
        shares: usize,
    },
    /// Not enough shares.
    #[error("{found} shares, {threshold} are needed")]
    TooFew {
        /// Shares given.
        found: usize,
        /// Shares that give the secret.
        threshold: usize,
    },
    /// Two shares at one point, or one at 0.
    #[error("a share at point {0} which is 0 or there twice")]
    Point(u8),
}

/// Splits a secret into shares at the points `1..=shares`, of which any `threshold` give it and
/// fewer say nothing of it. `seed` draws the polynomials and must be used for nothing else.
///
/// # Errors
/// [`ShareError::Threshold`].
pub fn split(
    secret: &Secret,
    threshold: usize,
    shares: usize,
    seed: &Secret,
) -> Result<Vec<Share>, ShareError> {
    if threshold == 0 || threshold > shares || shares > SHARES_MAX {
        return Err(ShareError::Threshold { threshold, shares });
    }
    // One block of the stream for each power of the point.
    let coefficients: Vec<[u8; 32]> = (1..threshold)
        .map(|power| {
            let block = mask::stream(seed, power);
            let bytes = |index: usize| block[index / 4].to_le_bytes()[index % 4];
            std::array::from_fn(bytes)
        })
        .collect();
    let share = |point: u8| {
        let mut values = [0; 32];
        for coefficient in coefficients.iter().rev().chain([secret.bytes()]) {
            for (value, coefficient) in values.iter_mut().zip(coefficient) {
                *value = multiply(*value, point) ^ coefficient;
            }
        }
        Share { point, values }
    };
    Ok((1..=u8::MAX).take(shares).map(share).collect())
}

/// The secret whose shares these are: Lagrange interpolation at 0 of the first `threshold`.
///
/// Shares that are not of one secret give another one: who needs to know compares.
///
/// # Errors
/// [`ShareError::TooFew`], [`ShareError::Point`].
pub fn recover(shares: &[&Share], threshold: usize) -> Result<Secret, ShareError> {
    let found = shares.len();
    let shares = shares.get(..threshold).ok_or(ShareError::TooFew { found, threshold })?;
    let mut secret = [0; 32];
    for (index, share) in shares.iter().enumerate() {
        let (mut above, mut below) = (1, 1);
        for (other_index, other) in shares.iter().enumerate() {
            if other_index != index {
                above = multiply(above, other.point);
                below = multiply(below, other.point ^ share.point);
            }
        }
        if share.point == 0 || below == 0 {
            return Err(ShareError::Point(share.point));
        }
        let factor = multiply(above, inverse(below));
        for (byte, value) in secret.iter_mut().zip(share.values) {
            *byte ^= multiply(value, factor);
        }
    }
    Ok(Secret::new(secret))
}

/// The product in GF(2^8); the same steps for any factors.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0);
    for bit in 0..8 {
        product ^= a & (b >> bit & 1).wrapping_neg();
        a = a << 1 ^ 0x1b & (a >> 7).wrapping_neg();
    }
    product
}

/// `a^254`, which is `1 / a` for any `a` but 0.
fn inverse(a: u8) -> u8 {
    let mut result = 1;
    let mut power = a;
    for _ in 0..7 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, section 4.2.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for a in 1..=u8::MAX {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (one, seed) = (Secret::new([1; 32]), Secret::new([2; 32]));
        for (threshold, shares) in [(0, 3), (4, 3), (2, 256)] {
            let error = ShareError::Threshold { threshold, shares };
            assert_eq!(split(&one, threshold, shares, &seed), Err(error));
        }
        let shares = split(&one, 2, 2, &seed).unwrap();
        let twice = [&shares[1], &shares[1]];
        assert_eq!(recover(&twice, 2), Err(ShareError::Point(2)));
        let zero = Share { point: 0, ..shares[0].clone() };
        assert_eq!(recover(&[&shares[1], &zero], 2), Err(ShareError::Point(0)));
    }

    proptest! {
        #[test]
        fn any_shares_that_are_enough_give_the_secret(
            bytes: [u8; 32],
            seed: [u8; 32],
            (threshold, chosen) in (1..40_usize).prop_flat_map(|threshold| {
                let points: Vec<usize> = (0..60).collect();
                (Just(threshold), prop::sample::subsequence(points, threshold).prop_shuffle())
            }),
        ) {
            let secret = Secret::new(bytes);
            let shares = split(&secret, threshold, 60, &Secret::new(seed)).unwrap();
            let chosen: Vec<&Share> = chosen.iter().map(|index| &shares[*index]).collect();
            prop_assert_eq!(recover(&chosen, threshold), Ok(secret));
        }

        /// With one share fewer than needed every other secret explains what is known: there is
        /// a share that leads to it.
        #[test]
        fn fewer_shares_say_nothing(bytes: [u8; 32], other: [u8; 32], seed: [u8; 32]) {
            let shares = split(&Secret::new(bytes), 3, 4, &Secret::new(seed)).unwrap();
            let zero = Secret::new([0; 32]);
            let unit = split(&zero, 1, 1, &zero).unwrap();
            prop_assert_eq!(unit[0].values, [0; 32]);
            // The third share that, with the first two, gives the other secret.
            let mut third = Share { point: 3, values: [0; 32] };
            let base = recover(&[&shares[0], &shares[1], &third], 3).unwrap();
            third.values = [1; 32];
            let step = recover(&[&shares[0], &shares[1], &third], 3).unwrap();
            let known = base.bytes().iter().zip(step.bytes()).zip(&other);
            for (value, ((base, step), other)) in third.values.iter_mut().zip(known) {
                *value = multiply(other ^ base, inverse(step ^ base));
            }
            let found = recover(&[&shares[0], &shares[1], &third], 3).unwrap();
            prop_assert_eq!(found, Secret::new(other));
        }
    }
}
