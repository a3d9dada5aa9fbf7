//! A tile: the same range of several vectors of one length, one row per device.

use std::ops::Range;

use rayon::prelude::*;

use crate::params::first_not_finite;

/// Why a tile cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum TileError {
    /// Rows for fewer or more devices than were announced, or none.
    #[error("expected a row for each of {expected} devices, found {found}")]
    Rows {
        /// Devices, at least 1.
        expected: usize,
        /// Rows given.
        found: usize,
    },
    /// Rows of different lengths.
    #[error("row {row}: expected {expected} values, found {found}")]
    Length {
        /// Counted from 0; the number of rows stands for the centre.
        row: usize,
        /// Values of the tile.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("row {row}: value {column} of the tile is {value}, expected a finite one")]
    NotFinite {
        /// Counted from 0; the number of rows stands for the centre.
        row: usize,
        /// Counted from the start of the tile.
        column: usize,
        /// What was given.
        value: f32,
    },
    /// A coefficient is NaN or infinite.
    #[error("row {row}: its coefficient is {value}, expected a finite one")]
    Coefficient {
        /// Counted from 0.
        row: usize,
        /// What was given.
        value: f64,
    },
    /// The combination of finite values leaves the range of `f32`.
    #[error("value {column} of the combined tile does not fit f32")]
    Overflow {
        /// Counted from the start of the tile.
        column: usize,
    },
    /// Tiles must come without gaps, from the vector's start on.
    #[error("expected the tile at {expected}, found the one at {found}")]
    Order {
        /// Values taken so far.
        expected: usize,
        /// Offset given.
        found: usize,
    },
}

impl TileError {
    /// The same of a row that has another number elsewhere.
    pub(super) fn of(self, number: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Length { row, expected, found } => {
                Self::Length { row: number(row), expected, found }
            }
            Self::NotFinite { row, column, value } => {
                Self::NotFinite { row: number(row), column, value }
            }
            Self::Coefficient { row, value } => Self::Coefficient { row: number(row), value },
            Self::Rows { .. } | Self::Overflow { .. } | Self::Order { .. } => self,
        }
    }
}

/// Columns that a thread takes at a time: a dozen rows of them fit its cache.
pub(super) const CHUNK: usize = 4096;

/// Checks number and lengths of rows.
pub(super) fn check_shape(rows: &[&[f32]], devices: usize, length: usize) -> Result<(), TileError> {
    if devices == 0 {
        return Err(TileError::Rows { expected: 1, found: rows.len() });
    }
    check_rows(rows, devices, length)
}

/// The same where there may be no devices.
pub(super) fn check_rows(rows: &[&[f32]], devices: usize, length: usize) -> Result<(), TileError> {
    if rows.len() != devices {
        return Err(TileError::Rows { expected: devices, found: rows.len() });
    }
    check_lengths(rows, length)
}

fn check_lengths(rows: &[&[f32]], length: usize) -> Result<(), TileError> {
    match rows.iter().position(|row| row.len() != length) {
        Some(row) => Err(TileError::Length { row, expected: length, found: rows[row].len() }),
        None => Ok(()),
    }
}

/// The same for what updates are told from.
pub(super) fn check_centre(
    centre: Option<&[f32]>,
    rows: usize,
    length: usize,
) -> Result<(), TileError> {
    match centre {
        Some(centre) if centre.len() != length => {
            Err(TileError::Length { row: rows, expected: length, found: centre.len() })
        }
        _ => Ok(()),
    }
}

/// Checks some columns of a row.
pub(super) fn check_finite(
    row: usize,
    values: &[f32],
    columns: Range<usize>,
) -> Result<(), TileError> {
    let part = &values[columns.clone()];
    match first_not_finite(part) {
        Some(at) => Err(TileError::NotFinite { row, column: columns.start + at, value: part[at] }),
        None => Ok(()),
    }
}

/// Fills `combined` by chunks on all threads; of several errors it gives the first chunk's.
pub(super) fn fill(
    combined: &mut [f32],
    work: impl Fn(Range<usize>, &mut [f32]) -> Result<(), TileError> + Sync,
) -> Result<(), TileError> {
    let chunks = combined.par_chunks_mut(CHUNK).enumerate();
    let results: Vec<_> = chunks
        .map(|(index, chunk)| {
            let start = index * CHUNK;
            work(start..start + chunk.len(), chunk)?;
            match first_not_finite(chunk) {
                Some(at) => Err(TileError::Overflow { column: start + at }),
                None => Ok(()),
            }
        })
        .collect();
    results.into_iter().collect()
}
