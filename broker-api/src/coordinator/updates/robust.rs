//! Robust strategies: the updates are read side by side, in tiles, once for distances between
//! them if the rule needs any, and once to be combined. No more than a tile of each is in memory.

use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use jobs::id::{BlobRef, Bytes as Size};
use jobs::round::{Influence, Verdict};
use jobs::spec::{Byzantine, CentredClipping, MultiKrum, NormBound, Strategy};
use link::blobs::Pieces;
use models::federated::combination::combine;
use models::federated::distances::{PairwiseDistances, UpdateNorms};
use models::federated::robust;
use models::federated::tile::TileError;
use models::params::{Layout, append_le_bytes};

use super::values::Values;
use super::{ReadError, Updates};
use crate::coordinator::fold::Part;

/// Values of a tile, over all devices.
const TILE_VALUES: usize = if cfg!(test) { 20 } else { 2 * 1024 * 1024 };
/// Values of one device in a tile, at least.
const ROW_MIN: usize = if cfg!(test) { 3 } else { 4096 };
/// Bytes of all updates that may be under way to this broker.
const BATCHES_BYTES: u64 = 64 * 1024 * 1024;

/// A rule that bears wrong updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::coordinator) enum Rule {
    Median,
    TrimmedMean(f64),
    MultiKrum { byzantine: usize, selected: Option<usize> },
    Bulyan { byzantine: usize },
    GeometricMedian,
    CentredClipping(robust::centred_clipping::CentredClipping),
    NormBound(f64),
}

/// The robust rule of a strategy; none where updates are averaged.
pub(in crate::coordinator) fn rule(strategy: &Strategy) -> Option<Rule> {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    Some(match *strategy {
        Strategy::FedAvg {}
        | Strategy::FedAvgM(_)
        | Strategy::FedAdagrad(_)
        | Strategy::FedAdam(_)
        | Strategy::FedYogi(_) => return None,
        Strategy::FedMedian {} => Rule::Median,
        Strategy::FedTrimmedAvg(it) => Rule::TrimmedMean(it.fraction),
        Strategy::Krum(Byzantine { byzantine }) => {
            Rule::MultiKrum { byzantine: count(byzantine), selected: Some(1) }
        }
        Strategy::MultiKrum(MultiKrum { byzantine, selected }) => {
            Rule::MultiKrum { byzantine: count(byzantine), selected: selected.map(count) }
        }
        Strategy::Bulyan(Byzantine { byzantine }) => Rule::Bulyan { byzantine: count(byzantine) },
        Strategy::GeometricMedian {} => Rule::GeometricMedian,
        Strategy::CentredClipping(CentredClipping { radius, iterations }) => {
            let iterations = count(iterations);
            Rule::CentredClipping(robust::centred_clipping::CentredClipping { radius, iterations })
        }
        Strategy::NormBound(NormBound { norm }) => Rule::NormBound(norm),
    })
}

/// Why a rule gives nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::coordinator) enum RuleError {
    #[error(transparent)]
    Devices(#[from] robust::TooFewDevices),
    #[error(transparent)]
    TrimmedMean(#[from] robust::trimmed_mean::TrimmedMeanError),
    #[error(transparent)]
    Krum(#[from] robust::krum::KrumError),
    #[error(transparent)]
    Shares(#[from] robust::krum::SharesError),
    #[error(transparent)]
    GeometricMedian(#[from] robust::geometric_median::GeometricMedianError),
    #[error(transparent)]
    CentredClipping(#[from] robust::centred_clipping::CentredClippingError),
    #[error(transparent)]
    NormBound(#[from] robust::norm_bound::NormBoundError),
    #[error("the updates: {0}")]
    Tile(#[from] TileError),
    #[error("the thread that combines met a fault of the program: see the broker's log")]
    Fault,
}

/// How tiles are combined, once it is known.
enum Combiner {
    Columns(robust::trimmed_mean::TrimmedMean),
    Bulyan(robust::bulyan::Bulyan),
    /// By coefficients; of the differences from the centre, if so.
    Linear {
        coefficients: Vec<f64>,
        centred: bool,
        influences: Vec<robust::Influence>,
    },
}

impl Combiner {
    /// The combined tile; with a centre it is the first row.
    fn tile(&mut self, rows: &[Vec<f32>]) -> Result<Vec<f32>, TileError> {
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let mut combined = vec![0.0; rows.first().map_or(0, |row| row.len())];
        match self {
            Self::Columns(rule) => rule.tile(&rows, &mut combined)?,
            Self::Bulyan(rule) => rule.tile(&rows, &mut combined)?,
            Self::Linear { coefficients, centred: false, .. } => {
                combine(None, &rows, coefficients, &mut combined)?;
            }
            Self::Linear { coefficients, centred: true, .. } => {
                let (centre, rows) = rows.split_first().expect("the centre is a row");
                combine(Some(centre), rows, coefficients, &mut combined)?;
            }
        }
        Ok(combined)
    }

    fn is_centred(&self) -> bool {
        matches!(self, Self::Linear { centred: true, .. })
    }

    fn influences(&self) -> Vec<Influence> {
        let influences = match self {
            Self::Columns(rule) => rule.influences(),
            Self::Bulyan(rule) => rule.influences(),
            Self::Linear { influences, .. } => influences.clone(),
        };
        influences.iter().map(told).collect()
    }
}

/// An influence in words.
fn told(influence: &robust::Influence) -> Influence {
    let verdict = match influence.verdict {
        robust::Verdict::Kept => Verdict::Kept,
        robust::Verdict::Reduced => Verdict::Reduced,
        robust::Verdict::Refused => Verdict::Refused,
    };
    let reason = match influence.measure {
        robust::Measure::Score { score, limit } => {
            format!("Krum's score {score:.3e}, the highest of those kept {limit:.3e}")
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

impl Updates {
    /// Stores what a rule makes of updates that were trained from `base`, and tells what became of
    /// each.
    pub(super) async fn robust(
        &self,
        name: String,
        parts: &[Part],
        rule: Rule,
        base: &BlobRef,
    ) -> Result<(BlobRef, Vec<Influence>), ReadError> {
        let model = self.ask(|fold| fold.model().clone()).await?;
        let combiner = self.combiner(parts, rule, base, &model).await?;
        let centre = combiner.is_centred().then_some(base);
        let rows = Rows::open(self, parts, centre, &model).await?;
        let size = Size(model.byte_len() as u64);
        let ready = BytesMut::from(&model.header()[..]);
        let mut result = Combined { rows, combiner: Some(combiner), ready };
        let parameters = self.blobs.put_pieces(name, size, &mut result).await?;
        let influences = result.combiner.map(|combiner| combiner.influences());
        Ok((parameters, influences.unwrap_or_default()))
    }

    /// Reads the updates once, if the rule has to know something of them as a whole.
    async fn combiner(
        &self,
        parts: &[Part],
        rule: Rule,
        base: &BlobRef,
        model: &Layout,
    ) -> Result<Combiner, ReadError> {
        let devices = parts.len();
        let weights: Vec<f64> = parts.iter().map(super::super::fold::weight).collect();
        let rows = async |centre| Rows::open(self, parts, centre, model).await;
        let linear = |coefficients, centred, influences| Combiner::Linear {
            coefficients,
            centred,
            influences,
        };
        Ok(match rule {
            Rule::Median => Combiner::Columns(
                robust::trimmed_mean::TrimmedMean::median(devices).map_err(RuleError::from)?,
            ),
            Rule::TrimmedMean(fraction) => Combiner::Columns(
                robust::trimmed_mean::TrimmedMean::new(devices, fraction)
                    .map_err(RuleError::from)?,
            ),
            Rule::MultiKrum { byzantine, selected } => {
                let selected = selected.unwrap_or(devices.saturating_sub(byzantine));
                let distances = rows(None).await?.distances().await?;
                let krum = robust::krum::MultiKrum { byzantine, selected };
                let selection = krum.select(&distances).map_err(RuleError::from)?;
                let coefficients = selection.coefficients(&weights).map_err(RuleError::from)?;
                linear(coefficients, false, selection.influences())
            }
            Rule::Bulyan { byzantine } => {
                let distances = rows(None).await?.distances().await?;
                let bulyan = robust::bulyan::Bulyan::new(&distances, byzantine);
                Combiner::Bulyan(bulyan.map_err(RuleError::from)?)
            }
            Rule::GeometricMedian => {
                let distances = rows(None).await?.distances().await?;
                let median = robust::geometric_median::GeometricMedian::default();
                let located = median.locate(&distances, &weights).map_err(RuleError::from)?;
                let influences = located.influences();
                linear(located.shares, false, influences)
            }
            Rule::CentredClipping(rule) => {
                let distances = rows(Some(base)).await?.distances().await?;
                let clipped = rule.coefficients(&distances).map_err(RuleError::from)?;
                linear(clipped.coefficients.clone(), true, clipped.influences())
            }
            Rule::NormBound(norm) => {
                let norms = rows(Some(base)).await?.norms().await?;
                let total: f64 = weights.iter().sum();
                let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
                let bound = robust::norm_bound::NormBound::new(norm).map_err(RuleError::from)?;
                let clipped = bound.clip(&norms, &shares).map_err(RuleError::from)?;
                linear(clipped.coefficients.clone(), true, clipped.influences())
            }
        })
    }
}

/// Updates side by side, behind the centre if there is one.
struct Rows {
    model: Layout,
    values: Vec<Values>,
    offset: usize,
    length: usize,
    centred: bool,
}

impl Rows {
    async fn open(
        updates: &Updates,
        parts: &[Part],
        centre: Option<&BlobRef>,
        model: &Layout,
    ) -> Result<Self, ReadError> {
        let blobs = centre.into_iter().chain(parts.iter().map(|part| &part.parameters));
        let blobs: Vec<&BlobRef> = blobs.collect();
        let batch = BATCHES_BYTES / blobs.len().max(1) as u64;
        let open = blobs.iter().map(async |blob| {
            let values = Values::of_parameters(&updates.blobs, blob).await?;
            Ok::<_, ReadError>(values.in_batches_of(batch))
        });
        let values = try_join_all(open).await?;
        let length = (TILE_VALUES / values.len().max(1)).max(ROW_MIN);
        let centred = centre.is_some();
        Ok(Self { model: model.clone(), values, offset: 0, length, centred })
    }

    /// The next tile with its offset; `None` at the end, when each digest was right.
    async fn next(&mut self) -> Result<Option<(usize, Vec<Vec<f32>>)>, ReadError> {
        let offset = self.offset;
        let length = self.length.min(self.model.total_len() - offset);
        if length == 0 {
            return Ok(None);
        }
        let (model, whole) = (&self.model, offset + length == self.model.total_len());
        let next = self.values.iter_mut().map(async |values| {
            let row = values.next(length, model).await?;
            if whole {
                values.end().await?;
            }
            Ok::<_, ReadError>(row)
        });
        let rows = try_join_all(next).await?;
        self.offset += length;
        Ok(Some((offset, rows)))
    }

    async fn distances(mut self) -> Result<models::federated::distances::Distances, ReadError> {
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

    async fn norms(mut self) -> Result<Vec<f64>, ReadError> {
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

/// The result, as it is made.
struct Combined {
    rows: Rows,
    /// Away while it combines.
    combiner: Option<Combiner>,
    ready: BytesMut,
}

impl Pieces for &mut Combined {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        while self.ready.len() < max
            && let Some((_, rows)) = self.rows.next().await?
        {
            let mut combiner = self.combiner.take().ok_or(RuleError::Fault)?;
            let (combiner, tile) =
                blocking(move || combiner.tile(&rows).map(|tile| (combiner, tile))).await?;
            self.combiner = Some(combiner);
            let mut bytes = Vec::with_capacity(4 * tile.len());
            append_le_bytes(&tile, &mut bytes);
            self.ready.extend_from_slice(&bytes);
        }
        let length = max.min(self.ready.len());
        Ok(self.ready.split_to(length).freeze())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TileError> + Send + 'static,
) -> Result<T, ReadError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| RuleError::Fault)?;
    Ok(done.map_err(RuleError::from)?)
}
