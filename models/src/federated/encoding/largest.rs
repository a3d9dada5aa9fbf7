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
    pub fn of(values: &[f32], share: f64) -> Self {
        let mut magnitudes: Vec<u32> = values.iter().map(|value| magnitude(*value)).collect();
        let count = count(values.len(), share);
        let Some(at) = magnitudes.len().checked_sub(count.max(1)) else {
            return Self { least: u32::MAX, ties: 0 };
        };
        let (_, least, above) = magnitudes.select_nth_unstable(at);
        let least = *least;
        let ties = count - above.iter().filter(|magnitude| **magnitude > least).count();
        Self { least, ties }
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

fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

/// A file of the largest of `values`, a share of them; what it does not hold is left in `values`,
/// the error of what it holds included: to be added to the next values (error feedback, Stich et
/// al. 2018, arXiv 1809.07599; Karimireddy et al. 2019, arXiv 1901.09847).
///
/// # Errors
/// [`EncodingError`]; `values` are then of no use.
pub fn encode_largest(
    header: &Header,
    seed: u64,
    share: f64,
    values: &mut [f32],
) -> Result<Vec<u8>, EncodingError> {
    let mut file = Vec::new();
    let largest = Largest::of(values, share);
    let mut encoder = Encoder::sparse(header.clone(), seed, largest, &mut file);
    encoder.push(values, &mut file)?;
    encoder.finish(&mut file)?;
    let mut decoder = Decoder::new(header.values, &header.layout, header.base.as_deref());
    decoder.take(&file, |offset, sent| {
        for (value, sent) in values[offset..].iter_mut().zip(sent) {
            *value -= sent;
        }
    })?;
    Ok(file)
}
