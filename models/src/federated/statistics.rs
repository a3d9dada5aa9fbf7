//! Running statistics of batch normalisations: they travel with the parameters, but no gradient
//! reaches them.
//!
//! A step beyond the mean of what devices measured (momentum, an adaptive rate, coefficients whose
//! sum is not 1) makes a variance that nobody measured, below 0 too, of which the root is NaN. So
//! statistics stay within the range of the devices' own under every rule, and no variance is below
//! 0 whatever rounding made of it.

use std::ops::Range;

/// Which values of a model's parameters are running statistics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Means and variances, in order and apart from one another.
    all: Vec<Range<usize>>,
    /// Those of them that are variances.
    variances: Vec<Range<usize>>,
}

impl Statistics {
    /// Of the ranges of means and of variances.
    pub fn new(means: Vec<Range<usize>>, mut variances: Vec<Range<usize>>) -> Self {
        let mut all = [means, variances.clone()].concat();
        all.sort_by_key(|range| range.start);
        variances.sort_by_key(|range| range.start);
        Self { all, variances }
    }

    /// Where statistics lie in a piece of so many values from `offset` on, counted from its start.
    pub fn within(&self, offset: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
        parts(&self.all, offset, length)
    }

    /// Gives the statistics of a piece at `offset` the values of another one.
    ///
    /// # Panics
    /// When one is shorter than the other.
    pub fn put(&self, offset: usize, from: &[f32], into: &mut [f32]) {
        for range in self.within(offset, into.len()) {
            into[range.clone()].copy_from_slice(&from[range]);
        }
    }

    /// Makes 0 of variances below it, in a piece at `offset`.
    pub fn bound(&self, offset: usize, values: &mut [f32]) {
        for range in parts(&self.variances, offset, values.len()) {
            for value in &mut values[range] {
                if *value < 0.0 {
                    *value = 0.0;
                }
            }
        }
    }
}

fn parts(
    ranges: &[Range<usize>],
    offset: usize,
    length: usize,
) -> impl Iterator<Item = Range<usize>> {
    let first = ranges.partition_point(|range| range.end <= offset);
    let reached = ranges[first..].iter().take_while(move |range| range.start < offset + length);
    reached.map(move |range| range.start.saturating_sub(offset)..(range.end - offset).min(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_are_as_the_whole() {
        let statistics = Statistics::new(vec![2..4, 9..10], vec![4..6, 10..12]);
        let from: Vec<f32> = (0..13_u8).map(|value| 6.5 - f32::from(value)).collect();
        let mut whole = vec![-9.0; 13];
        statistics.put(0, &from, &mut whole);
        statistics.bound(0, &mut whole);
        let expected = [-9.0, -9.0, 4.5, 3.5, 2.5, 1.5, -9.0, -9.0, -9.0, -2.5, 0.0, 0.0, -9.0];
        assert_eq!(whole, expected);
        for length in 1..13 {
            let mut pieces = vec![-9.0; 13];
            for (at, piece) in pieces.chunks_mut(length).enumerate() {
                statistics.put(at * length, &from[at * length..], piece);
                statistics.bound(at * length, piece);
            }
            assert_eq!(pieces, expected, "{length}");
        }
        assert_eq!(Statistics::default().within(0, 13).count(), 0);
    }
}
