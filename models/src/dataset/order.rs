//! Seeded random orders: the same seed gives the same order on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// The order in which one epoch visits the examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order(Vec<usize>);

impl Order {
    /// A permutation of `0..len` drawn from the seed; every epoch has another one.
    pub fn new(len: usize, seed: u64, epoch: u64) -> Self {
        let mut indices: Vec<usize> = (0..len).collect();
        shuffle(&mut indices, &mut generator(seed, epoch));
        Self(indices)
    }

    /// All indices in order.
    pub fn indices(&self) -> &[usize] {
        &self.0
    }

    /// The indices in batches of `size`; the last one may be smaller.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn batches(&self, size: usize) -> impl ExactSizeIterator<Item = &[usize]> {
        self.0.chunks(size)
    }
}

/// Random numbers of one use of a seed.
pub(super) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

/// Every permutation equally likely.
/// Source: Durstenfeld 1964, algorithm 235 (Fisher and Yates).
pub(super) fn shuffle<T>(items: &mut [T], generator: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(generator, last + 1));
    }
}

/// A number below `bound`, each equally likely.
/// Source: Lemire 2019, "Fast random integer generation in an interval", without its fast path.
pub(super) fn below(generator: &mut ChaCha8Rng, bound: usize) -> usize {
    let bound = bound as u64;
    let rest = bound.wrapping_neg() % bound;
    loop {
        let wide = u128::from(generator.next_u64()) * u128::from(bound);
        if wide & u128::from(u64::MAX) >= u128::from(rest) {
            return usize::try_from(wide >> 64).expect("below `bound`, which was a usize");
        }
    }
}
