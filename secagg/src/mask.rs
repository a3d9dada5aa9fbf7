//! Masks: streams of pseudo-random `u32` that are added to a vector and taken off its sum.

#![expect(unsafe_code, reason = "the key stream is computed by a C function")]

use rayon::prelude::*;

use crate::key::Secret;

/// Values of one piece: a vector and a mask of it stay in a core's nearest memory while all masks
/// are applied. A multiple of a block of the key stream.
pub const PIECE: usize = 4096;
/// Values of one block of the key stream.
const BLOCK: usize = 16;

/// Masks of a vector, each to be added or taken off, modulo 2^32.
#[derive(Debug, Clone, Default)]
pub struct Masks {
    added: Vec<Secret>,
    subtracted: Vec<Secret>,
}

impl Masks {
    pub(crate) fn add(&mut self, seed: Secret) {
        self.added.push(seed);
    }

    pub(crate) fn subtract(&mut self, seed: Secret) {
        self.subtracted.push(seed);
    }

    pub(crate) fn extend(&mut self, other: Masks) {
        self.added.extend(other.added);
        self.subtracted.extend(other.subtracted);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.added.len() + self.subtracted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies all of them to `values`, part of a vector that begins at `offset`, on the threads
    /// of the pool; the vector may be given in parts that begin at multiples of [`PIECE`].
    ///
    /// # Panics
    /// When the part begins elsewhere, or behind 2^36 values.
    pub fn apply(&self, offset: usize, values: &mut [u32]) {
        assert_eq!(offset % PIECE, 0, "parts begin at multiples of a piece");
        values.par_chunks_mut(PIECE).enumerate().for_each_init(Stream::new, |stream, it| {
            let (index, piece) = it;
            let block = (offset + index * PIECE) / BLOCK;
            for seed in &self.added {
                add(piece, stream.fill(seed, block, piece.len()));
            }
            for seed in &self.subtracted {
                let masks = stream.fill(seed, block, piece.len());
                piece.iter_mut().zip(masks).for_each(|(it, mask)| *it = it.wrapping_sub(*mask));
            }
        });
    }
}

/// Adds a vector, or a part of one, to a sum, modulo 2^32.
///
/// # Panics
/// When they have different lengths.
pub fn add(sum: &mut [u32], values: &[u32]) {
    assert_eq!(sum.len(), values.len(), "vectors of one length");
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
}

/// A piece of a key stream.
struct Stream(Vec<u32>);

impl Stream {
    fn new() -> Self {
        Self(vec![0; PIECE])
    }

    /// The values of the seed's stream from a block on: ChaCha20 (RFC 8439), nonce 0,
    /// little-endian.
    fn fill(&mut self, seed: &Secret, block: usize, length: usize) -> &[u32] {
        let values = &mut self.0[..length];
        values.fill(0);
        let counter = u32::try_from(block).expect("a vector has less than 2^36 values");
        let (address, length) = (values.as_mut_ptr().cast::<u8>(), 4 * values.len());
        // SAFETY: the function reads `length` bytes at its second argument, xors the key stream
        // into them and writes them to its first, which may be the same; key and nonce have 32
        // and 12 bytes. `u32` may hold any bits.
        unsafe {
            aws_lc_sys::CRYPTO_chacha_20(
                address,
                address,
                length,
                seed.bytes().as_ptr(),
                [0; 12].as_ptr(),
                counter,
            );
        }
        for value in values.iter_mut() {
            *value = u32::from_le(*value);
        }
        values
    }
}

/// The first values of a seed's stream.
pub(crate) fn stream(seed: &Secret, block: usize) -> [u32; BLOCK] {
    let mut values = [0; BLOCK];
    values.copy_from_slice(Stream(vec![0; BLOCK]).fill(seed, block, BLOCK));
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn the_stream_is_that_of_rfc_8439() {
        // Appendix A.1, vectors 1 and 2.
        let first = stream(&Secret::new([0; 32]), 0);
        assert_eq!(first[..4], [0xade0_b876, 0x903d_f1a0, 0xe56a_5d40, 0x28bd_8653]);
        let second = stream(&Secret::new([0; 32]), 1);
        assert_eq!(second[..4], [0xbee7_079f, 0x7a38_5155, 0x7c97_ba98, 0x0d08_2d73]);
    }

    proptest! {
        /// Beside another program's ChaCha20, one value after the other.
        #[test]
        fn masks_are_applied_as_a_loop_would(
            seeds in prop::collection::vec((any::<[u8; 32]>(), any::<bool>()), 0..5),
            length in 0..3 * PIECE,
            first in 0_usize..3,
        ) {
            let values: Vec<u32> = (0..u32::try_from(length).unwrap()).collect();
            let (mut expected, mut masks) = (values.clone(), Masks::default());
            for (seed, added) in seeds {
                let mut stream = ChaCha20Rng::from_seed(seed);
                for value in &mut expected {
                    let mask = stream.next_u32();
                    *value = if added { value.wrapping_add(mask) } else { value.wrapping_sub(mask) };
                }
                let seed = Secret::new(seed);
                if added { masks.add(seed) } else { masks.subtract(seed) }
            }
            let mut found = values;
            let middle = (first * PIECE).min(length);
            masks.apply(0, &mut found[..middle]);
            masks.apply(first * PIECE, &mut found[middle..]);
            prop_assert_eq!(found, expected);
        }
    }
}
