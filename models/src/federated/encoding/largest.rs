//! Sending the largest values and keeping the rest for the next time.

use super::{Decoder, Encoder, EncodingError, Header};

/// The values of largest magnitude, as they are met in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Bits of the least magnitude that is taken; they are ordered as the magnitudes are.
    least: u32,
    /// Values of just this magnitude that are still taken.
    ties: usize,
}

impl Largest {
    /// A share of the values, at least one; of equal magnitudes the first. Zeros are never taken.
    ///
    /// Memory: two counts for each half of a magnitude's bits, however many values.
    pub fn of(values: &[&mut [f32]], share: f64) -> Self {
        let length: usize = values.iter().map(|part| part.len()).sum();
        if length == 0 {
            return Self { least: u32::MAX, ties: 0 };
        }
        let count = count(length, share);
        let magnitudes = || values.iter().flat_map(|part| part.iter().copied().map(magnitude));
        let (high, above) = reaching(magnitudes().map(|it| it >> 16), count);
        let within = magnitudes().filter(|it| it >> 16 == high).map(|it| it & 0xffff);
        let (low, above_within) = reaching(within, count - above);
        Self { least: high << 16 | low, ties: count - above - above_within }
    }

    /// Whether the next value is one of them.
    pub(super) fn takes(&mut self, value: f32) -> bool {
        let magnitude = magnitude(value);
        let tie = magnitude == self.least && self.ties > 0;
        self.ties -= usize::from(tie);
        magnitude != 0 && (magnitude > self.least || tie)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a number of values, rounded up"
)]
fn count(values: usize, share: f64) -> usize {
    ((values as f64 * share).ceil() as usize).clamp(1, values.max(1))
}

/// The largest of these 16-bit numbers which so many of them are not below, and how many are above it.
fn reaching(numbers: impl Iterator<Item = u32>, count: usize) -> (u32, usize) {
    let mut counts = vec![0_usize; 1 << 16];
    numbers.for_each(|number| counts[number as usize] += 1);
    let mut above = 0;
    for (number, found) in (0..1 << 16).zip(&counts).rev() {
        if above + found >= count {
            return (number, above);
        }
        above += found;
    }
    (0, above)
}

fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

/// A file of the largest of `values`, a share of them; they may lie in parts, one after another.
/// What the file does not hold is left in `values`, the error of what it holds included: to be added
/// to the next values (error feedback, Stich et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019,
/// arXiv 1901.09847).
///
/// # Errors
/// [`EncodingError`]; `values` are then of no use.
pub fn encode_largest(
    header: &Header,
    seed: u64,
    share: f64,
    values: &mut [&mut [f32]],
) -> Result<Vec<u8>, EncodingError> {
    let mut file = Vec::new();
    let largest = Largest::of(values, share);
    let mut encoder = Encoder::sparse(header.clone(), seed, largest, &mut file);
    values.iter().try_for_each(|part| encoder.push(part, &mut file))?;
    encoder.finish(&mut file)?;
    let mut left = values.iter_mut().flat_map(|part| part.iter_mut());
    let mut decoder = Decoder::new(header.values, &header.layout, header.base.as_deref());
    // All of them come, in order: those that are not sent as 0.
    decoder.take(&file, |_, sent| {
        for (sent, value) in sent.iter().zip(&mut left) {
            *value -= sent;
        }
    })?;
    Ok(file)
}
