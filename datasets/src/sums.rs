//! What a trainer makes of examples, summed over batches.

/// Sums over batches.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Sums {
    loss: f64,
    correct: usize,
    /// Examples so far.
    pub examples: usize,
}

#[expect(clippy::cast_precision_loss, reason = "numbers of examples are far below 2^52")]
impl Sums {
    /// Adds a batch with its mean loss.
    pub fn add(&mut self, loss: f64, correct: usize, examples: usize) {
        self.loss += loss * examples as f64;
        self.correct += correct;
        self.examples += examples;
    }

    /// Examples, as a number to divide by.
    pub fn count(&self) -> f64 {
        self.examples as f64
    }

    /// Mean loss; 0 without examples.
    pub fn loss(&self) -> f64 {
        self.loss / self.count().max(1.0)
    }

    /// Share that was right; 0 without examples.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count().max(1.0)
    }

    /// As whole numbers, to the last bit.
    pub fn to_bits(self) -> (u64, u64, u64) {
        (self.loss.to_bits(), self.correct as u64, self.examples as u64)
    }

    /// The other way.
    pub fn from_bits((loss, correct, examples): (u64, u64, u64)) -> Self {
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Self { loss: f64::from_bits(loss), correct: count(correct), examples: count(examples) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_every_bit() {
        let mut sums = Sums::default();
        sums.add(0.1, 3, 7);
        sums.add(1.0 / 3.0, 1, 2);
        assert_eq!(Sums::from_bits(sums.to_bits()), sums);
    }
}
