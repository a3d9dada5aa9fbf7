//! Federated averaging, piece by piece: `x' = sum n_k w_k / sum n_k` (McMahan et al. 2017).

/// Adds weighted vectors into `f64` sums; the same order of calls gives the same bits.
#[derive(Debug, Clone)]
pub struct WeightedMean {
    sums: Vec<f64>,
    weight: f64,
}

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
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value) * weight;
        }
    }

    /// Counts a whole vector's weight, once all of its pieces were added.
    pub fn add_weight(&mut self, weight: f64) {
        self.weight += weight;
    }

    /// Part of the mean, from `offset`.
    ///
    /// # Panics
    /// When the piece lies outside of the vector.
    #[expect(clippy::cast_possible_truncation, reason = "the mean of f32 values fits f32")]
    pub fn mean_piece(&self, offset: usize, out: &mut [f32]) {
        let sums = &self.sums[offset..offset + out.len()];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum / self.weight) as f32;
        }
    }
}
