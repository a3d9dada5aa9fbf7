//! Rules that look at one coordinate of all devices at a time, in order of its values.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::network::{SortingNetwork, WIDTH, Wire, key, value};
use crate::federated::tile::{TileError, check_finite, check_shape, fill};
use crate::kernels::simd::vectorised;

/// One value of [`WIDTH`] columns each.
pub(super) type Values = [f32; WIDTH];

/// Sorts columns of tiles, combines them, and counts how often each row was in the range kept.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    network: SortingNetwork,
    /// Rows that are sorted.
    rows: usize,
    /// Places that the rule is given.
    wanted: Range<usize>,
    /// By row.
    pub(super) kept: Vec<u64>,
    /// Columns combined so far.
    pub(super) total: u64,
}

/// What a rule made of [`WIDTH`] columns, with the range of values that it kept of each.
pub(super) struct Combined {
    pub(super) values: Values,
    pub(super) lowest: Values,
    pub(super) highest: Values,
}

impl Columns {
    /// Columns of so many rows, of which these places are wanted in order.
    pub(super) fn new(rows: usize, wanted: Range<usize>) -> Self {
        let network = SortingNetwork::new(rows, wanted.clone());
        Self { network, rows, wanted, kept: vec![0; rows], total: 0 }
    }

    /// Combines a tile by a rule of the wanted places of sorted columns.
    pub(super) fn combine(
        &mut self,
        rows: &[&[f32]],
        combined: &mut [f32],
        rule: impl Fn(&[Values]) -> Combined + Sync,
    ) -> Result<(), TileError> {
        check_shape(rows, self.rows, combined.len())?;
        let kept: Vec<AtomicU64> = rows.iter().map(|_| AtomicU64::new(0)).collect();
        let (network, wanted) = (&self.network, &self.wanted);
        fill(combined, |columns, combined| {
            for (index, row) in rows.iter().enumerate() {
                check_finite(index, row, columns.clone())?;
            }
            let mut counts = vec![0_u32; rows.len()];
            let mut keys = vec![[0; WIDTH]; rows.len()];
            let mut sorted = vec![[0.0; WIDTH]; wanted.len()];
            vectorised(|| {
                for (index, combined) in combined.chunks_mut(WIDTH).enumerate() {
                    let start = columns.start + index * WIDTH;
                    let columns = start..start + combined.len();
                    for (keys, row) in keys.iter_mut().zip(rows) {
                        load(keys, &row[columns.clone()]);
                    }
                    network.sort(&mut keys);
                    for (sorted, keys) in sorted.iter_mut().zip(&keys[wanted.clone()]) {
                        store(keys, sorted);
                    }
                    let found = rule(&sorted);
                    combined.copy_from_slice(&found.values[..columns.len()]);
                    for (count, row) in counts.iter_mut().zip(rows) {
                        *count += within(&row[columns.clone()], &found);
                    }
                }
            });
            for (kept, count) in kept.iter().zip(counts) {
                kept.fetch_add(u64::from(count), Ordering::Relaxed);
            }
            Ok(())
        })?;
        self.total += combined.len() as u64;
        for (kept, count) in self.kept.iter_mut().zip(kept) {
            *kept += count.into_inner();
        }
        Ok(())
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn load(keys: &mut Wire, row: &[f32]) {
    for (key_of, value) in keys.iter_mut().zip(row) {
        *key_of = key(*value);
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn store(keys: &Wire, values: &mut Values) {
    for (value_of, key) in values.iter_mut().zip(keys) {
        *value_of = value(*key);
    }
}

/// How many values are in the range kept.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn within(row: &[f32], found: &Combined) -> u32 {
    let ranges = found.lowest.iter().zip(&found.highest);
    // Wrapping, or a check of every sum keeps it from being made of vectors.
    row.iter().zip(ranges).fold(0_u32, |count, (value, (lowest, highest))| {
        count.wrapping_add(u32::from(value >= lowest) & u32::from(value <= highest))
    })
}
