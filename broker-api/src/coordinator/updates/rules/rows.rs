//! Updates side by side, in tiles.

use std::ops::Range;

use futures::future::try_join_all;
use jobs::id::BlobRef;
use jobs::round::Base;
use models::federated::distances::{Distances, PairwiseDistances, UpdateNorms};
use models::params::Layout;
use tokio::sync::Semaphore;

use super::RuleError;
use crate::coordinator::fold::content::Expected;
use crate::coordinator::updates::values::Values;
use crate::coordinator::updates::{ReadError, Updates};

/// Values of a tile, over all devices.
const TILE_VALUES: usize = if cfg!(test) { 240 } else { 2 * 1024 * 1024 };
/// Values of one device in a tile, at least.
const ROW_MIN: usize = if cfg!(test) { 31 } else { 4096 };
/// Bytes of all updates that may be asked for ahead: the connection takes twice as much memory for
/// a chunk as it has bytes.
const BATCHES_BYTES: u64 = 32 * 1024 * 1024;
/// Updates that are asked for their next values at the same time.
const ROWS_AT_ONCE: usize = 32;

/// Puts the centre's values where they are fixed, in a tile at `offset`.
pub(in crate::coordinator) fn fix(
    fixed: &[Range<usize>],
    offset: usize,
    centre: &[f32],
    row: &mut [f32],
) {
    for range in fixed {
        let start = range.start.saturating_sub(offset).min(row.len());
        let end = range.end.saturating_sub(offset).min(row.len());
        row[start..end].copy_from_slice(&centre[start..end]);
    }
}

/// Updates side by side, as parameters, behind the centre if there is one.
pub(in crate::coordinator::updates) struct Rows {
    expected: Expected,
    /// What differences are from, unless that is the centre.
    base: Option<Values>,
    values: Vec<Values>,
    offset: usize,
    length: usize,
    centred: bool,
    /// Values that are the centre's in every row.
    fixed: Vec<Range<usize>>,
    /// For each row the one that it is a difference from, if it is one; the first where absent.
    bases: Vec<usize>,
}

impl Rows {
    /// Opens blobs that are laid out as the model is; the first one is the centre, if so. Those of
    /// them that are differences are from `base`, which is the centre if there is one.
    pub(in crate::coordinator::updates) async fn open(
        updates: &Updates,
        blobs: &[&BlobRef],
        centred: bool,
        expected: &Expected,
        base: Option<&BlobRef>,
    ) -> Result<Self, ReadError> {
        let batch = BATCHES_BYTES / blobs.len().max(1) as u64;
        let open = async |blob: &BlobRef| {
            let values = Values::of_parameters(&updates.blobs, blob).await?;
            Ok::<_, ReadError>(values.in_batches_of(batch))
        };
        let base = match base.filter(|_| !centred) {
            Some(base) => Some(open(base).await?),
            None => None,
        };
        let values = try_join_all(blobs.iter().map(|blob| open(blob))).await?;
        let length = (TILE_VALUES / values.len().max(1)).max(ROW_MIN);
        let (expected, fixed, bases) = (expected.clone(), Vec::new(), Vec::new());
        Ok(Self { expected, base, values, offset: 0, length, centred, fixed, bases })
    }

    /// The same with values that are the centre's in every row, whatever is in it.
    pub(in crate::coordinator::updates) fn with_fixed(self, fixed: &[Range<usize>]) -> Self {
        Self { fixed: fixed.to_vec(), ..self }
    }

    /// The same where row `index` may be a difference from row `base`, whose parameters these are.
    pub(super) fn with_base(mut self, index: usize, base: usize, of: &Base) -> Self {
        self.bases.resize(self.values.len(), 0);
        self.bases[index] = base;
        self.values[index].expect(self.expected.of_base(of));
        self
    }

    /// How the result is laid out.
    pub(super) fn model(&self) -> &Layout {
        self.expected.layout()
    }

    /// The next tile with its offset; `None` at the end, when each digest was right.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Vec<Vec<f32>>)>, ReadError> {
        let offset = self.offset;
        let total = self.expected.layout().total_len();
        let length = self.length.min(total - offset);
        if length == 0 {
            return Ok(None);
        }
        let (expected, whole) = (&self.expected, offset + length == total);
        let turns = Semaphore::new(ROWS_AT_ONCE);
        let next = self.base.iter_mut().chain(&mut self.values).map(async |values| {
            // It is never closed.
            let _turn = turns.acquire().await;
            let row = values.next(length, expected).await?;
            if whole {
                values.end().await?;
            }
            Ok::<_, ReadError>(row)
        });
        let mut rows = try_join_all(next).await?;
        let base = self.base.is_some().then(|| rows.remove(0));
        if self.values.iter().any(Values::is_difference) {
            self.add_base(base, &mut rows);
        }
        if let Some((centre, rows)) = rows.split_first_mut().filter(|_| !self.fixed.is_empty()) {
            for row in rows {
                fix(&self.fixed, offset, centre, row);
            }
        }
        self.offset += length;
        Ok(Some((offset, rows)))
    }

    /// Makes parameters of the rows that are differences from `base`, or else from the centre.
    fn add_base(&self, base: Option<Vec<f32>>, rows: &mut [Vec<f32>]) {
        let shared = base.or_else(|| rows.first().cloned()).unwrap_or_default();
        for (index, values) in self.values.iter().enumerate() {
            if !values.is_difference() {
                continue;
            }
            let own = self.bases.get(index).copied().filter(|base| *base > 0);
            let own = own.and_then(|base| rows.get(base).cloned());
            let base = own.as_ref().unwrap_or(&shared);
            rows[index].iter_mut().zip(base).for_each(|(value, base)| *value += base);
        }
    }

    pub(super) async fn distances(mut self) -> Result<Distances, ReadError> {
        let mut sums = PairwiseDistances::new(self.values.len());
        while let Some((offset, rows)) = self.next().await? {
            sums = blocking(move || {
                let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                sums.add(offset, &rows).map(|()| sums)
            })
            .await?;
        }
        Ok(sums.distances())
    }

    pub(in crate::coordinator::updates) async fn norms(mut self) -> Result<Vec<f64>, ReadError> {
        let mut sums = UpdateNorms::new(self.values.len() - usize::from(self.centred));
        while let Some((offset, rows)) = self.next().await? {
            sums = blocking(move || {
                let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                let (centre, rows) = rows.split_first().expect("the centre is a row");
                sums.add(offset, Some(centre), rows).map(|()| sums)
            })
            .await?;
        }
        Ok(sums.norms())
    }
}

/// Computes apart from the threads that wait for bytes.
pub(super) async fn blocking<T: Send + 'static, E: Into<RuleError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ReadError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| RuleError::Fault)?;
    Ok(done.map_err(Into::into)?)
}
