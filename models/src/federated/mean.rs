//! Federated averaging, piece by piece: `x' = sum n_k w_k / sum n_k` (McMahan et al. 2017).

use rayon::prelude::*;

use crate::kernels::simd::vectorised;

/// Adds weighted vectors into `f64` sums; the same order of vectors gives the same bits, however
/// they are cut into pieces and on however many threads they are added.
///
/// Memory: 8 bytes per value, whatever the number of vectors.
#[derive(Debug, Clone)]
pub struct WeightedMean {
    /// Of [`BLOCK`] values each, the last one of fewer.
    blocks: Vec<Vec<f64>>,
    weight: f64,
}

/// No vector was counted, or only ones without weight: there is no mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("mean of nothing: expected at least one update with a weight above 0")]
pub struct EmptyMean;

/// Values that one thread adds at a time, and that are kept together: enough to outweigh handing
/// them over, and small enough to spread a layer of a small model over the cores.
const BLOCK: usize = 64 * 1024;

/// Of fewer blocks one thread makes an end sooner than others are woken.
const PARALLEL_MIN: usize = 16;

impl WeightedMean {
    /// A mean of vectors of this length, of which none was added yet.
    pub fn new(length: usize) -> Self {
        let block = |start| vec![0.0; BLOCK.min(length - start)];
        Self { blocks: (0..length).step_by(BLOCK).map(block).collect(), weight: 0.0 }
    }

    /// Adds part of a vector: `values` belong at `offset`. Pieces of one vector may come in any
    /// order; vectors must come in a fixed order.
    ///
    /// # Panics
    /// When the piece lies outside of the vector.
    pub fn add_piece(&mut self, offset: usize, values: &[f32], weight: f64) {
        let (first, start) = (offset / BLOCK, offset % BLOCK);
        let head = values.len().min(BLOCK - start);
        if head == 0 {
            return;
        }
        let (head, tail) = values.split_at(head);
        add(&mut self.blocks[first][start..start + head.len()], head, weight);
        let blocks = &mut self.blocks[first + 1..];
        assert!(tail.len() <= blocks.iter().map(Vec::len).sum(), "a piece within the vector");
        let add = |(sums, values): (&mut Vec<f64>, &[f32])| {
            add(&mut sums[..values.len()], values, weight);
        };
        if tail.len() < PARALLEL_MIN * BLOCK {
            blocks.iter_mut().zip(tail.chunks(BLOCK)).for_each(add);
        } else {
            blocks.par_iter_mut().zip(tail.par_chunks(BLOCK)).for_each(add);
        }
    }

    /// Counts a whole vector's weight, once all of its pieces were added.
    pub fn add_weight(&mut self, weight: f64) {
        self.weight += weight;
    }

    /// The weights counted so far.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean of `length` values from `offset` on, fewer at the vector's end.
    ///
    /// # Errors
    /// [`EmptyMean`].
    pub fn piece(&self, offset: usize, length: usize) -> Result<Vec<f32>, EmptyMean> {
        self.read(offset, length, |sums, _, values| {
            for (value, sum) in values.iter_mut().zip(sums) {
                *value = narrowed(sum / self.weight);
            }
        })
    }

    /// The same where some of the vectors, of this weight together, were differences from a vector
    /// of which `base` is the part from `offset` on: the mean of as many values, all of them
    /// parameters.
    ///
    /// # Errors
    /// [`EmptyMean`].
    pub fn piece_from(
        &self,
        offset: usize,
        base: &[f32],
        differences: f64,
    ) -> Result<Vec<f32>, EmptyMean> {
        self.read(offset, base.len(), |sums, start, values| {
            for ((value, sum), base) in values.iter_mut().zip(sums).zip(&base[start..]) {
                *value = narrowed((sum + f64::from(*base) * differences) / self.weight);
            }
        })
    }

    /// Lets `fill` make values of `length` sums from `offset` on, fewer at the vector's end; it is
    /// told how many it made before.
    fn read(
        &self,
        offset: usize,
        length: usize,
        fill: impl Fn(&[f64], usize, &mut [f32]),
    ) -> Result<Vec<f32>, EmptyMean> {
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return Err(EmptyMean);
        }
        let total = self.blocks.iter().map(Vec::len).sum::<usize>();
        let mut values = vec![0.0; length.min(total.saturating_sub(offset))];
        let (first, mut start) = (offset / BLOCK, offset % BLOCK);
        let mut done = 0;
        for sums in self.blocks.iter().skip(first) {
            if done == values.len() {
                break;
            }
            let sums = &sums[start..];
            let count = sums.len().min(values.len() - done);
            let part = &mut values[done..done + count];
            vectorised(|| fill(&sums[..count], done, part));
            done += count;
            start = 0;
        }
        Ok(values)
    }

    /// Forgets what was added; the memory serves the next mean.
    pub fn clear(&mut self) {
        self.weight = 0.0;
        let clear = |sums: &mut Vec<f64>| sums.fill(0.0);
        if self.blocks.len() < PARALLEL_MIN {
            self.blocks.iter_mut().for_each(clear);
        } else {
            self.blocks.par_iter_mut().for_each(clear);
        }
    }
}

fn add(sums: &mut [f64], values: &[f32], weight: f64) {
    vectorised(|| {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value) * weight;
        }
    });
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrowed(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
