//! Combinations of updates: what most rules come to once their coefficients are known.

use std::ops::Range;

use super::tile::{TileError, check_centre, check_finite, check_shape, fill};
use crate::kernels::simd::{Loop, vectorised};

/// A tile of a combination of updates, written to `combined`.
///
/// With a `centre` the rows are parameters that devices trained from it, and the result is
/// `centre + sum c_k (row_k - centre)`; without one it is `sum c_k row_k`, right for updates that
/// are differences already, and for parameters whose coefficients have the sum 1.
///
/// Sums are `f64`, in the order of devices. A row whose coefficient is 0 is not read: a refused
/// update cannot spoil the result.
///
/// Shapes: `rows [n][length]`, `coefficients [n]`, `centre [length]` -> `combined [length]`.
///
/// # Errors
/// [`TileError`]; `combined` is then without meaning.
pub fn combine(
    centre: Option<&[f32]>,
    rows: &[&[f32]],
    coefficients: &[f64],
    combined: &mut [f32],
) -> Result<(), TileError> {
    if let Some(row) = coefficients.iter().position(|value| !value.is_finite()) {
        return Err(TileError::Coefficient { row, value: coefficients[row] });
    }
    check_shape(rows, coefficients.len(), combined.len())?;
    check_centre(centre, rows.len(), combined.len())?;
    let part = Part { centre, rows, coefficients };
    fill(combined, |columns, combined| {
        let mut largest = 0;
        vectorised(Columns { part: &part, start: columns.start, combined, largest: &mut largest });
        if largest < f32::INFINITY.to_bits() { Ok(()) } else { Err(part.spoiled(columns)) }
    })
}

/// Columns whose sums stay in registers while all rows are read.
const BLOCK: usize = 32;

/// What columns are combined from.
struct Part<'a> {
    centre: Option<&'a [f32]>,
    rows: &'a [&'a [f32]],
    coefficients: &'a [f64],
}

impl Part<'_> {
    /// Combines the columns that `columns_of` finds in a row.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    fn block(
        &self,
        columns_of: impl Fn(&[f32]) -> [f32; BLOCK],
        largest: &mut [u32; BLOCK],
    ) -> [f32; BLOCK] {
        let mut note = |values: &[f32; BLOCK]| {
            for (largest, value) in largest.iter_mut().zip(values) {
                *largest = (*largest).max(value.to_bits() & !(1 << 31));
            }
        };
        let mut sums = [0.0; BLOCK];
        let mut combined = [0.0; BLOCK];
        let rows = self.rows.iter().zip(self.coefficients).filter(|(_, by)| **by != 0.0);
        let Some(centre) = self.centre else {
            for (row, coefficient) in rows {
                let values = columns_of(row);
                note(&values);
                for (sum, value) in sums.iter_mut().zip(&values) {
                    *sum += coefficient * f64::from(*value);
                }
            }
            for (value, sum) in combined.iter_mut().zip(&sums) {
                *value = *sum as f32;
            }
            return combined;
        };
        let centre = columns_of(centre);
        note(&centre);
        for (row, coefficient) in rows {
            let values = columns_of(row);
            note(&values);
            for ((sum, value), centre) in sums.iter_mut().zip(&values).zip(&centre) {
                *sum += coefficient * (f64::from(*value) - f64::from(*centre));
            }
        }
        for ((value, sum), centre) in combined.iter_mut().zip(&sums).zip(&centre) {
            *value = (f64::from(*centre) + sum) as f32;
        }
        combined
    }

    /// The first value in these columns that is not finite.
    fn spoiled(&self, columns: Range<usize>) -> TileError {
        let rows = self.rows.iter().zip(self.coefficients).enumerate();
        let read = rows.filter(|(_, (_, by))| **by != 0.0).map(|(row, (values, _))| (row, *values));
        let centre = self.centre.map(|centre| (self.rows.len(), centre));
        let mut all = centre.into_iter().chain(read);
        all.find_map(|(row, values)| check_finite(row, values, columns.clone()).err())
            .expect("one is not finite")
    }
}

/// Some columns to combine, from `start` on.
struct Columns<'a> {
    part: &'a Part<'a>,
    start: usize,
    combined: &'a mut [f32],
    /// The largest bits, without the sign, of all values that were read.
    largest: &'a mut u32,
}

impl Loop for Columns<'_> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
    fn run(self) {
        let (blocks, tail) = self.combined.as_chunks_mut::<BLOCK>();
        let end = self.start + blocks.len() * BLOCK;
        let mut largest = [0; BLOCK];
        for (index, block) in blocks.iter_mut().enumerate() {
            let at = self.start + index * BLOCK;
            let columns = |row: &[f32]| *row[at..].first_chunk().expect("a block");
            *block = self.part.block(columns, &mut largest);
        }
        if !tail.is_empty() {
            let length = tail.len();
            let padded = |row: &[f32]| {
                let mut block = [0.0; BLOCK];
                block[..length].copy_from_slice(&row[end..end + length]);
                block
            };
            tail.copy_from_slice(&self.part.block(padded, &mut largest)[..length]);
        }
        *self.largest = largest.into_iter().fold(0, u32::max);
    }
}

#[cfg(test)]
mod tests;
