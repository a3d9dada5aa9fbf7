//! Products of weights and features, row-major, for few columns: nothing is packed.

#![expect(unsafe_code, reason = "threads write rows of the same matrix; tiles take addresses")]

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{Instructions, LANES_MAX, Simd, Work};
use super::tile::{self, Outputs, Products, Run, Spot, Tap};

/// Rows that a thread takes at a time.
const ROWS: usize = 48;

/// The left factor: its element of row `r` and depth `k`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Left<'a> {
    /// At `r * depth + k`.
    Rows(&'a [f32]),
    /// At `k * rows + r`.
    Columns(&'a [f32]),
}

/// The right factor: rows `step` apart, with so much room behind the last that whole vectors can
/// be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a> {
    values: &'a [f32],
    columns: usize,
    step: usize,
}

/// `f32`s that a [`Right`] of so many rows and columns takes.
pub(super) fn right_len(rows: usize, columns: usize) -> usize {
    rows * step(columns) + LANES_MAX
}

fn step(columns: usize) -> usize {
    columns.next_multiple_of(4)
}

impl<'a> Right<'a> {
    /// What [`Right::rows`] or [`Right::transposed`] put there.
    pub(super) fn of(room: &'a [f32], columns: usize) -> Self {
        Self { values: room, columns, step: step(columns) }
    }

    /// Of values `[rows][columns]`.
    pub(super) fn rows(values: &[f32], columns: usize, room: &'a mut [f32]) -> Self {
        for (into, row) in room.chunks_mut(step(columns)).zip(values.chunks_exact(columns)) {
            into[..columns].copy_from_slice(row);
        }
        Self::of(room, columns)
    }

    /// Of values `[columns][rows]`.
    pub(super) fn transposed(values: &[f32], columns: usize, room: &'a mut [f32]) -> Self {
        /// Columns that are read side by side, so that what is written stays in the cache.
        const SIDE: usize = 16;
        let (step, rows) = (step(columns), values.len() / columns);
        for first in (0..columns).step_by(SIDE) {
            let end = (first + SIDE).min(columns);
            for row in 0..rows {
                let into = &mut room[row * step + first..row * step + end];
                for (into, column) in into.iter_mut().zip(first..end) {
                    *into = values[column * rows + row];
                }
            }
        }
        Self::of(room, columns)
    }
}

/// `out [rows][columns] = left right`, or added to what is there.
///
/// # Panics
/// When a factor is too short.
pub(super) fn product(out: &mut [f32], left: Left<'_>, depth: usize, right: Right<'_>, add: bool) {
    let rows = out.len() / right.columns;
    let (Left::Rows(values) | Left::Columns(values)) = left;
    assert!(values.len() >= rows * depth);
    assert!(right.values.len() >= right_len(depth, right.columns));
    let instructions = Instructions::best();
    out.par_chunks_mut(ROWS * right.columns).enumerate().for_each(|(part, out)| {
        let first = part * ROWS;
        instructions.run(Part { out, first, rows, left, depth, right, add });
    });
}

/// Some rows of the product, from `first` on.
struct Part<'a> {
    out: &'a mut [f32],
    first: usize,
    /// Of the whole product.
    rows: usize,
    left: Left<'a>,
    depth: usize,
    right: Right<'a>,
    add: bool,
}

impl Work for Part<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let target = self.out.as_mut_ptr();
        let columns = self.right.columns;
        let vectors = columns.div_ceil(S::LANES);
        let mut row = 0;
        let rows = self.out.len() / columns;
        while row < rows {
            let taken = tile::rows_of_tile(rows - row, S::ROWS);
            let mut first = 0;
            while first < vectors {
                let end = vectors.min(first + S::VECTORS);
                let lanes = columns.min(end * S::LANES) - (end - 1) * S::LANES;
                // SAFETY: `product` checked both factors; `out` has these rows and columns.
                unsafe {
                    let target = target.add(row * columns + first * S::LANES);
                    self.tile::<S>(target, row, taken, first..end, lanes);
                }
                first = end;
            }
            row += taken;
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        target: *mut f32,
        row: usize,
        rows: usize,
        vectors: Range<usize>,
        lanes: usize,
    ) {
        let columns = self.right.columns;
        let right = self.right.values[vectors.start * S::LANES..].as_ptr();
        let vectors = vectors.len();
        // SAFETY: the caller's promise.
        unsafe {
            match self.left {
                Left::Rows(values) => {
                    let job = Products {
                        runs: &[Run { from: 0, row: 0, len: self.depth }],
                        source: values[(self.first + row) * self.depth..].as_ptr(),
                        source_plane: self.depth,
                        columns: right,
                        columns_step: self.right.step,
                        target,
                        target_step: columns,
                        last_lanes: lanes,
                        add: self.add,
                    };
                    tile::products::<S>(&job, rows, vectors);
                }
                Left::Columns(values) => {
                    let job = Outputs {
                        taps: &[Tap { element: 0, offset: 0 }],
                        channels: self.depth,
                        source: right,
                        source_plane: self.right.step,
                        weights: values[self.first + row..].as_ptr(),
                        channel_step: self.rows,
                        weights_step: 0,
                        target,
                        target_plane: columns,
                        add: self.add,
                    };
                    let mut spots = [Spot { from: 0, to: 0, lanes }; 4];
                    for (v, spot) in spots.iter_mut().enumerate().take(vectors) {
                        let lanes = if v + 1 == vectors { lanes } else { S::LANES };
                        *spot = Spot { from: v * S::LANES, to: v * S::LANES, lanes };
                    }
                    tile::outputs::<S>(&job, rows, &spots[..vectors]);
                }
            }
        }
    }
}
