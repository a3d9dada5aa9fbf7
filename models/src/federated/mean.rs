//! Federated averaging, piece by piece: `x' = sum n_k w_k / sum n_k` (McMahan et al. 2017).

use rayon::prelude::*;

/// Adds weighted vectors into `f64` sums; the same order of vectors gives the same bits, however
/// they are cut into pieces and on however many threads they are added.
///
/// Memory: 8 bytes per value, whatever the number of vectors.
#[derive(Debug, Clone)]
pub struct WeightedMean {
    sums: Vec<f64>,
    weight: f64,
}

/// No vector was counted, or only ones without weight: there is no mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("mean of nothing: expected at least one update with a weight above 0")]
pub struct EmptyMean;

/// Values that one thread adds at a time: enough to outweigh handing them over, and small enough
/// to spread a layer of a small model over the cores.
const BLOCK: usize = 64 * 1024;

impl WeightedMean {
    /// A mean of vectors of this length, of which none was added yet.
    pub fn new(length: usize) -> Self {
        Self { sums: vec![0.0; length], weight: 0.0 }
    }

    /// Adds part of a vector: `values` belong at `offset`. Pieces of one vector may come in any
    /// order; vectors must come in a fixed order.
    ///
    /// # Panics
    /// When the piece lies outside of the vector.
    pub fn add_piece(&mut self, offset: usize, values: &[f32], weight: f64) {
        let sums = &mut self.sums[offset..offset + values.len()];
        if values.len() <= BLOCK {
            return add(sums, values, weight);
        }
        let blocks = sums.par_chunks_mut(BLOCK).zip(values.par_chunks(BLOCK));
        blocks.for_each(|(sums, values)| add(sums, values, weight));
    }

    /// Counts a whole vector's weight, once all of its pieces were added.
    pub fn add_weight(&mut self, weight: f64) {
        self.weight += weight;
    }

    /// The weights counted so far.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Part of the mean, from `offset`.
    ///
    /// # Errors
    /// [`EmptyMean`], and `out` as it was.
    ///
    /// # Panics
    /// When the piece lies outside of the vector.
    pub fn mean_piece(&self, offset: usize, out: &mut [f32]) -> Result<(), EmptyMean> {
        let sums = &self.sums[offset..offset + out.len()];
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return Err(EmptyMean);
        }
        let blocks = out.par_chunks_mut(BLOCK).zip(sums.par_chunks(BLOCK));
        blocks.for_each(|(out, sums)| divide(out, sums, self.weight));
        Ok(())
    }
}

fn add(sums: &mut [f64], values: &[f32], weight: f64) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += f64::from(*value) * weight;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the mean of f32 values fits f32")]
fn divide(out: &mut [f32], sums: &[f64], weight: f64) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum / weight) as f32;
    }
}

#[cfg(test)]
mod tests;
