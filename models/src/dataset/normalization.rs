//! How values become what a model sees.

use super::{Examples, Values};

/// `(value - mean) / std` for each channel; a pixel's value is 0 to 1 (its byte over 255), each
/// column of a table is a channel of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalization {
    /// Subtracted: one value for each channel, or one for all.
    pub mean: Vec<f32>,
    /// Divides; above 0. As many as `mean`, or one.
    pub std: Vec<f32>,
}

/// Why values cannot be normalised so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NormalizationError {
    /// A text has no channels.
    #[error("the characters of a text are not normalised")]
    NoChannels,
    /// Neither one value nor one for each channel.
    #[error("{field} has {found} values, expected 1 or {channels}, one for each channel")]
    Count {
        /// `mean` or `std`.
        field: &'static str,
        /// Values given.
        found: usize,
        /// Channels of an example.
        channels: usize,
    },
    /// A mean that is not finite, or a deviation that is not above 0.
    #[error("{field} holds {value}, expected {expected}")]
    Value {
        /// `mean` or `std`.
        field: &'static str,
        /// What was given.
        value: f32,
        /// What is accepted.
        expected: &'static str,
    },
}

impl Normalization {
    /// The same for all channels.
    pub fn uniform(mean: f32, std: f32) -> Self {
        Self { mean: vec![mean], std: vec![std] }
    }

    /// Values stay as they are.
    pub fn none() -> Self {
        Self::uniform(0.0, 1.0)
    }

    /// Whether examples of so many channels can be normalised so.
    ///
    /// # Errors
    /// [`NormalizationError`].
    pub fn check(&self, channels: usize) -> Result<(), NormalizationError> {
        if channels == 0 && *self != Self::none() {
            return Err(NormalizationError::NoChannels);
        }
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                let found = values.len();
                return Err(NormalizationError::Count { field, found, channels });
            }
        }
        let wrong = |field, value, expected| NormalizationError::Value { field, value, expected };
        if let Some(mean) = self.mean.iter().find(|mean| !mean.is_finite()) {
            return Err(wrong("mean", *mean, "finite numbers"));
        }
        if let Some(std) = self.std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return Err(wrong("std", *std, "finite numbers above 0"));
        }
        Ok(())
    }

    /// Mean and deviation of a channel.
    pub(super) fn of(&self, channel: usize) -> (f32, f32) {
        let pick = |values: &[f32], without| {
            values.get(channel).or(values.first()).copied().unwrap_or(without)
        };
        (pick(&self.mean, 0.0), pick(&self.std, 1.0))
    }
}

impl Examples {
    /// Channels that are normalised: a picture's, a table's columns; a text has none.
    pub fn channels(&self) -> usize {
        match self.values {
            Values::Pixels(_) => self.shape[0],
            Values::Numbers(_) => self.size(),
            Values::Symbols(_) => 0,
        }
    }

    /// Mean and standard deviation of each channel over all examples, to normalise by: a deviation
    /// of 0 becomes 1, so that it can divide. `None` without examples or channels.
    pub fn statistics(&self) -> Option<Normalization> {
        let (mean, mut std) = self.moments()?;
        for std in std.iter_mut().filter(|std| **std <= 0.0) {
            *std = 1.0;
        }
        Some(Normalization { mean, std })
    }

    /// Mean and standard deviation of each channel over all examples. `None` without examples or
    /// channels.
    pub fn moments(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        if self.is_empty() || self.channels() == 0 {
            return None;
        }
        let channels = match &self.values {
            Values::Pixels(pixels) => of_pixels(pixels, self.shape),
            Values::Numbers(numbers) => of_columns(numbers, self.size()),
            Values::Symbols(_) => return None,
        };
        Some(channels.into_iter().unzip())
    }
}

/// Mean and deviation of each channel of pictures, by counting bytes.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn of_pixels(pixels: &[u8], [channels, h, w]: [usize; 3]) -> Vec<(f32, f32)> {
    let mut counts = vec![[0_u64; 256]; channels];
    for (index, plane) in pixels.chunks_exact(h * w).enumerate() {
        let counts = &mut counts[index % channels];
        for pixel in plane {
            counts[usize::from(*pixel)] += 1;
        }
    }
    let channel = |counts: [u64; 256]| {
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for (pixel, times) in counts.into_iter().enumerate() {
            let (value, times) = (pixel as f64 / 255.0, times as f64);
            count += times;
            sum += times * value;
            squares += times * value * value;
        }
        moments(count, sum, squares, 0.0)
    };
    counts.into_iter().map(channel).collect()
}

/// Mean and deviation of each column of a table.
fn of_columns(numbers: &[f32], columns: usize) -> Vec<(f32, f32)> {
    // Around the first row, so that a large mean costs no digits.
    let first: Vec<f64> = numbers[..columns].iter().map(|value| f64::from(*value)).collect();
    let mut sums = vec![(0.0, 0.0); columns];
    let mut count = 0.0;
    for row in numbers.chunks_exact(columns) {
        count += 1.0;
        for ((value, first), (sum, squares)) in row.iter().zip(&first).zip(&mut sums) {
            let offset = f64::from(*value) - first;
            *sum += offset;
            *squares += offset * offset;
        }
    }
    let column = |((sum, squares), first)| moments(count, sum, squares, first);
    sums.into_iter().zip(first).map(column).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn moments(count: f64, sum: f64, squares: f64, origin: f64) -> (f32, f32) {
    let mean = sum / count;
    let std = (squares / count - mean * mean).max(0.0).sqrt();
    // What rounding leaves of a constant channel is none.
    let constant = std <= 1e-7 * mean.abs();
    ((origin + mean) as f32, if constant { 0.0 } else { std as f32 })
}
