//! Krum and Multi-Krum: the updates that lie closest to their neighbours (Blanchard et al. 2017,
//! "Machine Learning with Adversaries").

use super::{Influence, Measure, TooFewDevices, Verdict};
use crate::federated::distances::Distances;

/// Selects the updates with the lowest scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiKrum {
    /// Devices that may be byzantine, `f`.
    pub byzantine: usize,
    /// Devices that are selected, `m`; 1 is Krum.
    pub selected: usize,
}

/// Why nothing is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KrumError {
    /// Too few devices.
    #[error(transparent)]
    Devices(#[from] TooFewDevices),
    /// None is to be selected, or more than there are honest ones.
    #[error("{selected} devices are to be selected, expected 1 to n - f = {max}")]
    Selected {
        /// `m`
        selected: usize,
        /// The most that may be.
        max: usize,
    },
}

/// Which devices were selected.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// In the order of devices.
    chosen: Vec<usize>,
    /// By device: the one it was chosen or, in the end, left out with.
    scores: Vec<f64>,
    /// That of the device that was chosen last, beside which the others were left out.
    limit: f64,
}

impl MultiKrum {
    /// Krum: selects one.
    pub fn krum(byzantine: usize) -> Self {
        Self { byzantine, selected: 1 }
    }

    /// Selects by distances between all devices. Of equal scores the first device's counts as
    /// lower.
    ///
    /// A score is the sum of the squared distances to the `n - f - 2` nearest others.
    ///
    /// # Errors
    /// [`KrumError`].
    pub fn select(self, distances: &Distances) -> Result<Selection, KrumError> {
        let Self { byzantine, selected } = self;
        let devices = distances.points();
        TooFewDevices::check(("krum", "n >= 2 f + 3"), (2, 3), devices, byzantine)?;
        let max = devices - byzantine;
        if selected == 0 || selected > max {
            return Err(KrumError::Selected { selected, max });
        }
        let all: Vec<usize> = (0..devices).collect();
        let scores = scores(distances, &all, byzantine);
        let mut chosen = all;
        chosen.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        chosen.truncate(selected);
        let limit = chosen.last().map_or(0.0, |last| scores[*last]);
        Ok(Selection::new(chosen, scores, limit))
    }
}

/// The scores of some devices among themselves, in their order: sums of squared distances to the
/// nearest others, all but `f + 1` of them, at least one if there is one.
pub(super) fn scores(distances: &Distances, among: &[usize], byzantine: usize) -> Vec<f64> {
    let others = among.len() - 1;
    let nearest = others.saturating_sub(byzantine.saturating_add(1)).max(1).min(others);
    let score = |device: &usize| {
        let others = among.iter().filter(|other| *other != device);
        let mut squares: Vec<f64> =
            others.map(|other| distances.squared(*device, *other)).collect();
        squares.sort_by(f64::total_cmp);
        squares[..nearest].iter().sum()
    };
    among.iter().map(score).collect()
}

impl Selection {
    pub(super) fn new(mut chosen: Vec<usize>, scores: Vec<f64>, limit: f64) -> Self {
        chosen.sort_unstable();
        Self { chosen, scores, limit }
    }

    /// The selected devices, in the order of devices.
    pub fn chosen(&self) -> &[usize] {
        &self.chosen
    }

    /// Coefficients for [`combine`](crate::federated::combination::combine), by device: the plain
    /// mean of the selected ones, 0 for others. How many examples a device says it has does not
    /// count: one that lies about them would own the mean of those it is among.
    #[expect(clippy::cast_precision_loss, reason = "a number of devices")]
    pub fn coefficients(&self) -> Vec<f64> {
        let mut coefficients = vec![0.0; self.scores.len()];
        for device in &self.chosen {
            coefficients[*device] = 1.0 / self.chosen.len() as f64;
        }
        coefficients
    }

    /// Who was selected, by which score, by device.
    pub fn influences(&self) -> Vec<Influence> {
        let influence = |(device, score): (usize, &f64)| Influence {
            verdict: match self.chosen.binary_search(&device) {
                Ok(_) => Verdict::Kept,
                Err(_) => Verdict::Refused,
            },
            measure: Measure::Score { score: *score, limit: self.limit },
        };
        self.scores.iter().enumerate().map(influence).collect()
    }
}

#[cfg(test)]
mod tests;
