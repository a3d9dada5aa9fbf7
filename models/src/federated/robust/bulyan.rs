//! Bulyan: selects by Krum, then trims each coordinate around its median, so that no single
//! coordinate of a selected update can be far off (El Mhamdi et al. 2018, arXiv 1802.07927).

use super::columns::{Columns, Combined, Values};
use super::krum::{Selection, scores};
use super::network::WIDTH;
use super::{Influence, Measure, TooFewDevices};
use crate::federated::distances::Distances;
use crate::federated::tile::{TileError, check_shape};

/// Combines the `theta = n - 2 f` selected updates: of each coordinate the mean of the
/// `beta = theta - 2 f` values nearest its median.
#[derive(Debug, Clone)]
pub struct Bulyan {
    selection: Selection,
    devices: usize,
    /// Values averaged, `beta`.
    nearest: usize,
    columns: Columns,
}

impl Bulyan {
    /// Selects by distances between all devices: Krum's choice, then Krum's among the rest, and so
    /// on. Towards the end, where fewer neighbours are left than Krum's score would take, it takes
    /// the nearest one.
    ///
    /// # Errors
    /// [`TooFewDevices`] when `n >= 4 f + 3` does not hold.
    pub fn new(distances: &Distances, byzantine: usize) -> Result<Self, TooFewDevices> {
        let devices = distances.points();
        check(devices, byzantine)?;
        let mut rest: Vec<usize> = (0..devices).collect();
        let mut last = vec![0.0; devices];
        let (mut chosen, mut limit) = (Vec::new(), 0.0);
        for _ in 0..devices - 2 * byzantine {
            let scores = scores(distances, &rest, byzantine);
            for (device, score) in rest.iter().zip(&scores) {
                last[*device] = *score;
            }
            let order = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]);
            if let Some(lowest) = (0..rest.len()).min_by(order) {
                limit = scores[lowest];
                chosen.push(rest.remove(lowest));
            }
        }
        Self::of(Selection::new(chosen, last, limit), devices, byzantine)
    }

    /// Of devices that were selected in some way.
    pub(in crate::federated) fn of(
        selection: Selection,
        devices: usize,
        byzantine: usize,
    ) -> Result<Self, TooFewDevices> {
        check(devices, byzantine)?;
        let selected = selection.chosen().len();
        let columns = Columns::new(selected, 0..selected);
        Ok(Self { selection, devices, nearest: selected - 2 * byzantine, columns })
    }

    /// A tile of the result; tiles may come in any order. Rows that were not selected are not
    /// read.
    ///
    /// Shapes: `rows [n][length]` -> `combined [length]`.
    ///
    /// # Errors
    /// [`TileError`]; `combined` is then without meaning.
    pub fn tile(&mut self, rows: &[&[f32]], combined: &mut [f32]) -> Result<(), TileError> {
        check_shape(rows, self.devices, combined.len())?;
        let chosen = self.selection.chosen();
        let rows: Vec<&[f32]> = chosen.iter().map(|device| rows[*device]).collect();
        let nearest = self.nearest;
        let found = self.columns.combine(&rows, combined, |sorted| around_median(sorted, nearest));
        found.map_err(|error| error.of(|row| chosen[row]))
    }

    /// Who was selected, by which score, by device.
    pub fn influences(&self) -> Vec<Influence> {
        self.selection.influences()
    }

    /// How many of the coordinates so far of each selected device lie within what was averaged,
    /// with the device.
    pub fn coordinates(&self) -> Vec<(usize, Measure)> {
        let total = self.columns.total;
        let measure = |kept: &u64| Measure::Coordinates { kept: *kept, total };
        let chosen = self.selection.chosen().iter().copied();
        chosen.zip(self.columns.kept.iter().map(measure)).collect()
    }
}

fn check(devices: usize, byzantine: usize) -> Result<(), TooFewDevices> {
    TooFewDevices::check(("bulyan", "n >= 4 f + 3"), (4, 3), devices, byzantine)
}

fn around_median(sorted: &[Values], nearest: usize) -> Combined {
    let mut found = Combined { values: [0.0; WIDTH], lowest: [0.0; WIDTH], highest: [0.0; WIDTH] };
    let mut column = vec![0.0; sorted.len()];
    for at in 0..WIDTH {
        for (value, values) in column.iter_mut().zip(sorted) {
            *value = values[at];
        }
        let window = nearest_to(&column, median(&column), nearest);
        found.values[at] = mean(window);
        (found.lowest[at], found.highest[at]) = (window[0], window[window.len() - 1]);
    }
    found
}

fn median(sorted: &[f32]) -> f64 {
    let half = sorted.len() / 2;
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[half]);
    f64::midpoint(f64::from(low), f64::from(high))
}

/// The `count` values nearest to `reference`; of two equally near ones the lower.
///
/// # Panics
/// When there are not so many.
pub(in crate::federated) fn nearest_to(sorted: &[f32], reference: f64, count: usize) -> &[f32] {
    assert!(0 < count && count <= sorted.len(), "{count} of {} values", sorted.len());
    let distance = |at: usize| (f64::from(sorted[at]) - reference).abs();
    // The nearest values lie side by side: the window moves up as long as that brings it nearer.
    let mut start = 0;
    while start + count < sorted.len() && distance(start + count) < distance(start) {
        start += 1;
    }
    &sorted[start..start + count]
}

#[expect(clippy::cast_possible_truncation, reason = "the mean of f32 values fits f32")]
#[expect(clippy::cast_precision_loss, reason = "a number of devices")]
pub(in crate::federated) fn mean(values: &[f32]) -> f32 {
    (values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64) as f32
}

#[cfg(test)]
mod tests;
