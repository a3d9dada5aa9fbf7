//! How the tiles of updates become those of the result.

use std::ops::Range;

use jobs::id::DeviceId;
use jobs::round::{Influence, Verdict};
use models::federated::combination::combine;
use models::federated::privacy::PrivateMean;
use models::federated::robust;
use models::federated::statistics::Statistics;
use models::federated::tile::TileError;

use super::fix;
use crate::coordinator::fold::Part;

/// How tiles are combined, once it is known.
pub(in crate::coordinator::updates) enum Combiner {
    Columns(robust::trimmed_mean::TrimmedMean),
    Bulyan(robust::bulyan::Bulyan),
    /// By coefficients; of the differences from the centre, if so.
    Linear {
        coefficients: Vec<f64>,
        centred: bool,
        /// Those of running statistics, for a mean of the rows behind the centre; where absent they
        /// are those of other values.
        statistics: Option<Vec<f64>>,
        influences: Vec<Influence>,
    },
    /// Of the differences from the centre, with noise but on values that are fixed.
    Private {
        mean: PrivateMean,
        fixed: Vec<Range<usize>>,
    },
}

impl Combiner {
    /// `sum c_k row_k`
    pub(super) fn sum(coefficients: Vec<f64>, influences: Vec<Influence>) -> Self {
        Self::Linear { coefficients, centred: false, statistics: None, influences }
    }

    /// `centre + sum c_k (row_k - centre)`
    pub(super) fn centred(coefficients: Vec<f64>, influences: Vec<Influence>) -> Self {
        Self::Linear { coefficients, centred: true, statistics: None, influences }
    }

    /// The same with a mean of the running statistics, `sum p_k row_k`.
    pub(super) fn moving(
        coefficients: Vec<f64>,
        statistics: Vec<f64>,
        influences: Vec<Influence>,
    ) -> Self {
        Self::Linear { coefficients, centred: true, statistics: Some(statistics), influences }
    }

    /// The combined tile at `offset`; with a centre it is the first row.
    pub(super) fn tile(
        &mut self,
        offset: usize,
        rows: &[Vec<f32>],
        measured: &Statistics,
    ) -> Result<Vec<f32>, TileError> {
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let mut combined = vec![0.0; rows.first().map_or(0, |row| row.len())];
        match self {
            Self::Columns(rule) => rule.tile(&rows, &mut combined)?,
            Self::Bulyan(rule) => rule.tile(&rows, &mut combined)?,
            Self::Linear { coefficients, centred: false, .. } => {
                combine(None, &rows, coefficients, &mut combined)?;
            }
            Self::Linear { coefficients, centred: true, statistics, .. } => {
                let (centre, rows) = rows.split_first().expect("the centre is a row");
                combine(Some(centre), rows, coefficients, &mut combined)?;
                for at in measured.within(offset, combined.len()) {
                    let Some(shares) = statistics else { break };
                    let rows: Vec<&[f32]> = rows.iter().map(|row| &row[at.clone()]).collect();
                    combine(None, &rows, shares, &mut combined[at])?;
                }
            }
            Self::Private { mean, fixed } => {
                let (centre, rows) = rows.split_first().expect("the centre is a row");
                mean.tile(offset, centre, rows, &mut combined)?;
                fix(fixed, offset, centre, &mut combined);
            }
        }
        measured.bound(offset, &mut combined);
        Ok(combined)
    }

    pub(super) fn is_centred(&self) -> bool {
        matches!(self, Self::Linear { centred: true, .. } | Self::Private { .. })
    }

    fn influences(&self) -> Vec<Influence> {
        match self {
            Self::Columns(rule) => told(&rule.influences()),
            Self::Bulyan(rule) => told(&rule.influences()),
            Self::Linear { influences, .. } => influences.clone(),
            // Norms of updates are not covered by noise.
            Self::Private { .. } => Vec::new(),
        }
    }
}

/// What became of each update.
pub(super) fn influences(parts: &[Part], combiner: &Combiner) -> Vec<(DeviceId, Influence)> {
    let devices = parts.iter().map(|part| part.device.clone());
    devices.zip(combiner.influences()).collect()
}

/// Influences in words.
pub(super) fn told(influences: &[robust::Influence]) -> Vec<Influence> {
    influences.iter().map(in_words).collect()
}

fn in_words(influence: &robust::Influence) -> Influence {
    let verdict = match influence.verdict {
        robust::Verdict::Kept => Verdict::Kept,
        robust::Verdict::Reduced => Verdict::Reduced,
        robust::Verdict::Refused => Verdict::Refused,
    };
    let reason = match influence.measure {
        robust::Measure::Score { score, limit } => {
            format!("Krum's score {score:.3e}, of the last one kept {limit:.3e}")
        }
        robust::Measure::Distance { distance, share } => {
            format!("distance {distance:.3e} from the result, share {share:.4}")
        }
        robust::Measure::Norm { norm, limit } => {
            format!("distance {norm:.3e} from the centre, bound {limit:.3e}")
        }
        robust::Measure::Coordinates { kept, total } => {
            format!("{kept} of {total} coordinates within what was kept")
        }
    };
    Influence { verdict, reason }
}
