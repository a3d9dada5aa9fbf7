//! What needs whole vectors: norms of updates and distances between them, summed tile by tile.

use std::ops::Range;

use rayon::prelude::*;

use super::tile::{CHUNK, TileError, check_centre, check_finite, check_shape};
use crate::kernels::simd::vectorised;

/// Sums of `f64` that a block of values is spread over: as many as fill two vectors of any
/// processor.
const LANES: usize = 8;

/// Values summed together. Blocks are added in order, and inside of one a value's place says which
/// lane it goes to: so a sum has the same bits however its vector is cut.
const BLOCK: usize = CHUNK;

/// Blocks under way at the same time: bounds the memory of long tiles.
const BATCH: usize = 64;

/// Sums over all values of vectors that come in tiles, from the vectors' start on.
#[derive(Debug, Clone)]
struct BlockSums {
    /// Of the blocks that are complete, by term.
    sums: Vec<f64>,
    /// Of the block that is not, by term.
    open: Vec<[f64; LANES]>,
    position: usize,
}

impl BlockSums {
    fn new(terms: usize) -> Self {
        Self { sums: vec![0.0; terms], open: vec![[0.0; LANES]; terms], position: 0 }
    }

    /// Adds the next `length` values of every term: `term(index, columns, lanes, lane)` adds these
    /// columns of the tile, the first of them to that lane.
    fn add(
        &mut self,
        length: usize,
        term: impl Fn(usize, Range<usize>, &mut [f64; LANES], usize) + Sync,
    ) {
        let inside = self.position % BLOCK;
        let head = if inside == 0 { 0 } else { length.min(BLOCK - inside) };
        self.add_to_open(0..head, inside, &term);
        if head > 0 && inside + head == BLOCK {
            self.close();
        }
        let terms = self.sums.len();
        let blocks: Vec<usize> = (head..length).step_by(BLOCK).collect();
        let (blocks, tail) = match blocks.split_last() {
            Some((last, whole)) if length - last < BLOCK => (whole, *last..length),
            _ => (&blocks[..], length..length),
        };
        for batch in blocks.chunks(BATCH) {
            let block = |start: &usize| {
                let sum = |index| {
                    let mut lanes = [0.0; LANES];
                    term(index, *start..start + BLOCK, &mut lanes, 0);
                    total(&lanes)
                };
                (0..terms).map(sum).collect::<Vec<f64>>()
            };
            let parts: Vec<Vec<f64>> = batch.par_iter().map(block).collect();
            for part in parts {
                self.sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        self.add_to_open(tail, 0, &term);
        self.position += length;
    }

    fn add_to_open(
        &mut self,
        columns: Range<usize>,
        inside: usize,
        term: &(impl Fn(usize, Range<usize>, &mut [f64; LANES], usize) + Sync),
    ) {
        if columns.is_empty() {
            return;
        }
        let terms = self.open.par_iter_mut().enumerate();
        terms.for_each(|(index, lanes)| term(index, columns.clone(), lanes, inside % LANES));
    }

    fn close(&mut self) {
        for (sum, lanes) in self.sums.iter_mut().zip(&mut self.open) {
            *sum += total(lanes);
            *lanes = [0.0; LANES];
        }
    }

    fn finished(&self) -> impl Iterator<Item = f64> {
        self.sums.iter().zip(&self.open).map(|(sum, lanes)| sum + total(lanes))
    }
}

fn total(lanes: &[f64; LANES]) -> f64 {
    lanes.iter().sum()
}

/// Adds `term` of the values to the lanes, the first to `lane`, the next to the one after it.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the term is to be part of the loop")]
fn spread(
    lanes: &mut [f64; LANES],
    lane: usize,
    (a, b): (&[f32], &[f32]),
    term: impl Fn(f32, f32) -> f64,
) {
    let head = a.len().min((LANES - lane) % LANES);
    let (a_head, a) = a.split_at(head);
    let (b_head, b) = b.split_at(head);
    for ((sum, a), b) in lanes[lane..].iter_mut().zip(a_head).zip(b_head) {
        *sum += term(*a, *b);
    }
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut sums = *lanes;
    for (a, b) in a.iter().zip(b) {
        for at in 0..LANES {
            sums[at] += term(a[at], b[at]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_tail).zip(b_tail) {
        *sum += term(*a, *b);
    }
    *lanes = sums;
}

fn add_squared_distance(lanes: &mut [f64; LANES], lane: usize, a: &[f32], b: &[f32]) {
    let square = |a, b| {
        let difference = f64::from(a) - f64::from(b);
        difference * difference
    };
    vectorised(|| spread(lanes, lane, (a, b), square));
}

fn add_squares(lanes: &mut [f64; LANES], lane: usize, a: &[f32]) {
    vectorised(|| spread(lanes, lane, (a, a), |a, _| f64::from(a) * f64::from(a)));
}

/// Checks a tile's rows and the centre, all columns.
fn check(
    centre: Option<&[f32]>,
    rows: &[&[f32]],
    devices: usize,
    (expected, found): (usize, usize),
) -> Result<usize, TileError> {
    let length = rows.first().map_or(0, |row| row.len());
    check_shape(rows, devices, length)?;
    check_centre(centre, devices, length)?;
    if expected != found {
        return Err(TileError::Order { expected, found });
    }
    let all = rows.par_iter().copied().chain(centre.into_par_iter());
    let all: Vec<_> =
        all.enumerate().map(|(row, values)| check_finite(row, values, 0..length)).collect();
    all.into_iter().collect::<Result<(), _>>()?;
    Ok(length)
}

/// Sums up the Euclidean norms of updates.
///
/// Memory: 72 bytes per device, whatever the length of vectors.
#[derive(Debug, Clone)]
pub struct UpdateNorms(BlockSums);

impl UpdateNorms {
    /// Norms of so many devices' updates, of which no tile was added yet.
    pub fn new(devices: usize) -> Self {
        Self(BlockSums::new(devices))
    }

    /// Adds the tile at `offset`; tiles come in order. With a `centre` the rows are parameters
    /// that were trained from it; without one they are differences already.
    ///
    /// Shapes: `rows [devices][length]`, `centre [length]`.
    ///
    /// # Errors
    /// [`TileError`]; the sums are as they were.
    pub fn add(
        &mut self,
        offset: usize,
        centre: Option<&[f32]>,
        rows: &[&[f32]],
    ) -> Result<(), TileError> {
        let sums = &mut self.0;
        let length = check(centre, rows, sums.sums.len(), (sums.position, offset))?;
        sums.add(length, |device, columns, lanes, lane| {
            let row = &rows[device][columns.clone()];
            match centre {
                Some(centre) => add_squared_distance(lanes, lane, row, &centre[columns]),
                None => add_squares(lanes, lane, row),
            }
        });
        Ok(())
    }

    /// The norms of what was added, by device.
    pub fn norms(&self) -> Vec<f64> {
        self.0.finished().map(f64::sqrt).collect()
    }
}

/// Sums up the squared Euclidean distances between vectors, each with each.
///
/// Work: `n (n - 1) / 2` times the length; memory: 88 bytes per pair.
#[derive(Debug, Clone)]
pub struct PairwiseDistances {
    points: usize,
    /// `(i, j)` with `i < j`, row by row.
    pairs: Vec<(usize, usize)>,
    sums: BlockSums,
}

impl PairwiseDistances {
    /// Distances between so many vectors, of which no tile was added yet.
    pub fn new(points: usize) -> Self {
        let pairs = (0..points).flat_map(|i| (i + 1..points).map(move |j| (i, j)));
        let pairs: Vec<_> = pairs.collect();
        Self { points, sums: BlockSums::new(pairs.len()), pairs }
    }

    /// Adds the tile at `offset`; tiles come in order.
    ///
    /// Shapes: `rows [points][length]`.
    ///
    /// # Errors
    /// [`TileError`]; the sums are as they were.
    pub fn add(&mut self, offset: usize, rows: &[&[f32]]) -> Result<(), TileError> {
        let length = check(None, rows, self.points, (self.sums.position, offset))?;
        let pairs = &self.pairs;
        self.sums.add(length, |index, columns, lanes, lane| {
            let (i, j) = pairs[index];
            add_squared_distance(lanes, lane, &rows[i][columns.clone()], &rows[j][columns]);
        });
        Ok(())
    }

    /// The distances of what was added.
    pub fn distances(&self) -> Distances {
        let mut squared = vec![0.0; self.points * self.points];
        for ((i, j), sum) in self.pairs.iter().zip(self.sums.finished()) {
            squared[i * self.points + j] = sum;
            squared[j * self.points + i] = sum;
        }
        Distances { points: self.points, squared }
    }
}

/// Squared Euclidean distances between points: all that Krum, Bulyan, the geometric median and
/// centred clipping need to know of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Distances {
    points: usize,
    /// `[points, points]`, symmetric.
    squared: Vec<f64>,
}

impl Distances {
    /// Number of points.
    pub fn points(&self) -> usize {
        self.points
    }

    /// The squared distance between two of them.
    ///
    /// # Panics
    /// When there is no such point.
    pub fn squared(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.points && j < self.points, "points among {}", self.points);
        self.squared[i * self.points + j]
    }

    /// Distances from every point to a combination of them whose `shares [points]` have the sum 1:
    /// `|p_i - sum b_j p_j|^2 = sum b_j d_ij^2 - 1/2 sum b_j b_k d_jk^2`.
    ///
    /// Near the combination itself the difference loses half of the digits: a distance below
    /// 1e-8 of the points' spread is 0 or noise.
    pub(super) fn to_combination(&self, shares: &[f64]) -> Vec<f64> {
        let row = |i| &self.squared[i * self.points..][..self.points];
        let weighted = |i| row(i).iter().zip(shares).map(|(d, share)| d * share).sum::<f64>();
        let weighted: Vec<f64> = (0..self.points).map(weighted).collect();
        let spread = weighted.iter().zip(shares).map(|(d, share)| d * share).sum::<f64>() / 2.0;
        weighted.iter().map(|d| (d - spread).max(0.0).sqrt()).collect()
    }
}

#[cfg(test)]
mod tests;
