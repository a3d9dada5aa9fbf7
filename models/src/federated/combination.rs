//! Combinations of updates: what most rules come to once their coefficients are known.

use std::ops::Range;

use super::tile::{TileError, check_centre, check_finite, check_shape, fill};
use crate::kernels::simd::{Loop, fetch, vectorised};

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
    let read = rows.iter().zip(coefficients).enumerate().filter(|(_, (_, by))| **by != 0.0);
    let read = read.map(|(number, (row, coefficient))| Row {
        number,
        values: row,
        coefficient: *coefficient,
    });
    let part = Part { centre, rows: read.collect(), count: rows.len() };
    fill(combined, |columns, combined| {
        let mut largest = 0;
        vectorised(Columns { part: &part, start: columns.start, combined, largest: &mut largest });
        if largest < f32::INFINITY.to_bits() { Ok(()) } else { Err(part.spoiled(columns)) }
    })
}

/// Columns whose sums stay in registers while all rows are read. Loops over them count: iterators
/// are not made vectors of where the compiler does not copy their methods.
const BLOCK: usize = 32;

/// How far ahead values of each row are fetched, and how many of them are in one line of a cache.
const AHEAD: usize = 256;
const LINE: usize = 16;

/// What columns are combined from.
struct Part<'a> {
    centre: Option<&'a [f32]>,
    /// Those that are read.
    rows: Vec<Row<'a>>,
    /// Of all rows.
    count: usize,
}

struct Row<'a> {
    /// Counted from 0.
    number: usize,
    values: &'a [f32],
    coefficient: f64,
}

impl Part<'_> {
    /// The first value in these columns that is not finite.
    fn spoiled(&self, columns: Range<usize>) -> TileError {
        let centre = self.centre.map(|centre| (self.count, centre));
        let rows = self.rows.iter().map(|row| (row.number, row.values));
        let mut all = centre.into_iter().chain(rows);
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
        let mut largest = [0; BLOCK];
        let mut start = self.start;
        for block in blocks {
            *block = combined(self.part, start..start + BLOCK, &mut largest);
            start += BLOCK;
        }
        if !tail.is_empty() {
            let block = combined(self.part, start..start + tail.len(), &mut largest);
            tail.copy_from_slice(&block[..tail.len()]);
        }
        *self.largest = largest.into_iter().fold(0, u32::max);
    }
}

/// Some columns, [`BLOCK`] at most.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn combined(part: &Part<'_>, columns: Range<usize>, largest: &mut [u32; BLOCK]) -> [f32; BLOCK] {
    match part.centre {
        None => sum(&part.rows, &columns, largest),
        Some(centre) => sum_from(centre, &part.rows, &columns, largest),
    }
}

/// `sum c_k row_k` of some columns.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn sum(rows: &[Row<'_>], columns: &Range<usize>, largest: &mut [u32; BLOCK]) -> [f32; BLOCK] {
    let mut sums = [0.0; BLOCK];
    for row in rows {
        let values = block(row.values, columns);
        note(&values, largest);
        for at in 0..BLOCK {
            sums[at] += row.coefficient * f64::from(values[at]);
        }
    }
    narrowed(&sums)
}

/// `centre + sum c_k (row_k - centre)` of some columns.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn sum_from(
    centre: &[f32],
    rows: &[Row<'_>],
    columns: &Range<usize>,
    largest: &mut [u32; BLOCK],
) -> [f32; BLOCK] {
    let centre = block(centre, columns);
    note(&centre, largest);
    let mut sums = [0.0; BLOCK];
    for row in rows {
        let values = block(row.values, columns);
        note(&values, largest);
        for at in 0..BLOCK {
            sums[at] += row.coefficient * (f64::from(values[at]) - f64::from(centre[at]));
        }
    }
    for at in 0..BLOCK {
        sums[at] += f64::from(centre[at]);
    }
    narrowed(&sums)
}

/// Some columns of a row, zeros behind them.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn block(row: &[f32], columns: &Range<usize>) -> [f32; BLOCK] {
    for at in (0..BLOCK).step_by(LINE) {
        fetch(row, columns.start + AHEAD + at);
    }
    let values = &row[columns.start..columns.end];
    if let Some(block) = values.first_chunk() {
        return *block;
    }
    let mut block = [0.0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    block
}

/// Notes the largest bits, without the sign.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn note(values: &[f32; BLOCK], largest: &mut [u32; BLOCK]) {
    for at in 0..BLOCK {
        largest[at] = largest[at].max(values[at].to_bits() & !(1 << 31));
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrowed(sums: &[f64; BLOCK]) -> [f32; BLOCK] {
    let mut values = [0.0; BLOCK];
    for at in 0..BLOCK {
        values[at] = sums[at] as f32;
    }
    values
}

#[cfg(test)]
mod tests;
