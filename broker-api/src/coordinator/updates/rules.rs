//! Strategies that look at all updates of a round: these are read side by side, in tiles, once for
//! distances between them if the rule needs any, and once to be combined. No more than a tile of
//! each is in memory.
//!
//! [Running statistics](models::federated::statistics) become a mean of the updates' wherever a rule
//! moves parameters beyond what updates have.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jobs::id::{BlobRef, Bytes as Size};
use jobs::round::{Aggregate, Influence, Verdict};
use jobs::spec::{Byzantine, CentredClipping, MultiKrum, NormBound, Scaffold, Strategy, TrainSpec};
use link::blobs::Pieces;
use models::federated::fed_nova::{self, FedNovaError, LocalSteps};
use models::federated::q_fed_avg::{QFedAvg, QFedAvgError};
use models::federated::robust;
use models::federated::staleness::StalenessError;
use models::federated::statistics::Statistics;
use models::federated::tile::TileError;
use models::params::append_le_bytes;

pub(super) use self::combiner::Combiner;
use self::combiner::{influences, told};
use self::late::Late;
pub(super) use self::rows::Rows;
use self::rows::blocking;
pub(in crate::coordinator) use self::rows::fix;
use super::server::Base;
use super::{ReadError, Updates};
use crate::coordinator::fold::content::Expected;
use crate::coordinator::fold::{Part, weight};
use crate::coordinator::state::mean_beside;

mod combiner;
mod control;
mod late;
mod rows;

/// What is made of all updates of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::coordinator) enum Rule {
    QFedAvg(QFedAvg),
    /// After local steps with this momentum, or with this pull of a proximal term.
    FedNova {
        momentum: f64,
        pull: f64,
    },
    /// So far towards the plain mean.
    Scaffold {
        learning_rate: f64,
    },
    Median,
    TrimmedMean(f64),
    MultiKrum {
        byzantine: usize,
        selected: Option<usize>,
    },
    Bulyan {
        byzantine: usize,
    },
    GeometricMedian,
    CentredClipping(robust::centred_clipping::CentredClipping),
    NormBound(f64),
    /// Updates that were trained from different versions.
    Late(Late),
}

/// What a rule starts from.
#[derive(Debug, Clone)]
pub(in crate::coordinator) struct Start {
    pub(in crate::coordinator) rule: Rule,
    /// The round's parameters.
    pub(in crate::coordinator) parameters: BlobRef,
    /// The server's control variate, with [`Rule::Scaffold`]; all 0 before its first round.
    pub(in crate::coordinator) control: Option<BlobRef>,
    /// Devices of whom the control variate is a mean.
    pub(in crate::coordinator) population: usize,
    /// Takes the rule's result for a mean and goes a step against it.
    pub(in crate::coordinator) optimizer: Option<Base>,
    /// The version of the parameters, with [`Rule::Late`].
    pub(in crate::coordinator) version: u32,
}

/// The rule of a training's strategy; none where updates are averaged while they arrive.
pub(in crate::coordinator) fn rule(spec: &TrainSpec) -> Option<Rule> {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    if let Some(staleness) = spec.staleness() {
        return Some(Rule::Late(Late::of(&spec.strategy, staleness)));
    }
    let local = &spec.local;
    let local_rate = f64::from(local.learning_rate);
    Some(match *spec.combination() {
        Strategy::FedAvg {}
        | Strategy::FedAvgM(_)
        | Strategy::FedAdagrad(_)
        | Strategy::FedAdam(_)
        | Strategy::FedYogi(_)
        | Strategy::FedBuff(_) => return None,
        Strategy::QFedAvg(it) => {
            let learning_rate = it.learning_rate.unwrap_or(local_rate);
            Rule::QFedAvg(QFedAvg { q: it.q, learning_rate })
        }
        Strategy::FedNova {} => {
            let pull = f64::from(local.proximal) * local_rate;
            Rule::FedNova { momentum: local.momentum.into(), pull }
        }
        Strategy::Scaffold(Scaffold { learning_rate }) => Rule::Scaffold { learning_rate },
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
    QFedAvg(#[from] QFedAvgError),
    #[error(transparent)]
    FedNova(#[from] FedNovaError),
    #[error(transparent)]
    Devices(#[from] robust::TooFewDevices),
    #[error(transparent)]
    TrimmedMean(#[from] robust::trimmed_mean::TrimmedMeanError),
    #[error(transparent)]
    Krum(#[from] robust::krum::KrumError),
    #[error(transparent)]
    GeometricMedian(#[from] robust::geometric_median::GeometricMedianError),
    #[error(transparent)]
    CentredClipping(#[from] robust::centred_clipping::CentredClippingError),
    #[error(transparent)]
    NormBound(#[from] robust::norm_bound::NormBoundError),
    #[error(transparent)]
    Staleness(#[from] StalenessError),
    #[error("the updates: {0}")]
    Tile(#[from] TileError),
    #[error("the thread that combines met a fault of the program: see the broker's log")]
    Fault,
}

impl Updates {
    /// Stores under the first name what a rule makes of updates that were trained from the round's
    /// parameters, and tells what became of each; with [`Rule::Scaffold`] the server's next
    /// control variate is stored under the second, with an optimizer what that keeps.
    pub(super) async fn combine_by(
        &self,
        names: (String, String),
        parts: &[Part],
        start: &Start,
    ) -> Result<Aggregate, ReadError> {
        let mut expected = Expected::parameters(self.ask(|fold| fold.model().clone()).await?);
        let controls = expected.clone();
        let base = self.differences.then_some(&start.parameters);
        expected.or_differences_from(base.map(|base| base.digest.clone()));
        let (rows, combiner) = if let Rule::Late(late) = &start.rule {
            self.late(parts, late, start, &expected).await?
        } else {
            let combiner = self.combiner(parts, start, &expected).await?;
            let centre = combiner.is_centred().then_some(&start.parameters);
            let blobs = blobs(parts, centre);
            (Rows::open(self, &blobs, centre.is_some(), &expected, base).await?, combiner)
        };
        let Some(base) = &start.optimizer else {
            let (parameters, combiner) = self.combined(names.0.clone(), rows, combiner).await?;
            let influences = influences(parts, &combiner);
            let server_state = if matches!(start.rule, Rule::Scaffold { .. }) {
                Some(self.move_control(names.1, parts, start, &controls).await?)
            } else {
                None
            };
            return Ok(Aggregate { server_state, influences, ..Aggregate::of(parameters) });
        };
        let mean = mean_beside(&names.0);
        let (mean, combiner) = self.combined(mean, rows, combiner).await?;
        let (parameters, server_state) = self.step_against(names, &mean, base).await?;
        let influences = influences(parts, &combiner);
        Ok(Aggregate { server_state, influences, ..Aggregate::of(parameters) })
    }

    /// Stores what a combiner makes of rows.
    pub(super) async fn combined(
        &self,
        name: String,
        rows: Rows,
        combiner: Combiner,
    ) -> Result<(BlobRef, Combiner), ReadError> {
        let model = rows.model();
        let ready = BytesMut::from(&model.header()[..]);
        let size = Size(model.byte_len() as u64);
        let statistics = self.statistics.clone();
        let mut result = Combined { rows, combiner: Some(combiner), statistics, ready };
        let stored = self.blobs.put_pieces(name, size, &mut result).await?;
        Ok((stored, result.combiner.ok_or(RuleError::Fault)?))
    }

    /// Reads the updates once, if the rule has to know something of them as a whole.
    async fn combiner(
        &self,
        parts: &[Part],
        start: &Start,
        expected: &Expected,
    ) -> Result<Combiner, ReadError> {
        let (devices, base) = (parts.len(), &start.parameters);
        let weights: Vec<f64> = parts.iter().map(weight).collect();
        let rows = async |centre: Option<&BlobRef>| {
            let differences = self.differences.then_some(base);
            Rows::open(self, &blobs(parts, centre), centre.is_some(), expected, differences).await
        };
        Ok(match start.rule {
            Rule::QFedAvg(rule) => {
                let norms = rows(Some(base)).await?.norms().await?;
                let (shares, influences) = by_loss(rule, parts, &norms)?;
                Combiner::moving(shares, shares_of(&weights), influences)
            }
            Rule::FedNova { momentum, pull } => {
                let (shares, influences) = by_steps(parts, &weights, momentum, pull)?;
                Combiner::moving(shares, shares_of(&weights), influences)
            }
            Rule::Scaffold { learning_rate } => {
                let share = count(devices).recip();
                let coefficients = vec![learning_rate * share; devices];
                Combiner::moving(coefficients, vec![share; devices], Vec::new())
            }
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
                let selection = blocking(move || krum.select(&distances)).await?;
                Combiner::sum(selection.coefficients(), told(&selection.influences()))
            }
            Rule::Bulyan { byzantine } => {
                let distances = rows(None).await?.distances().await?;
                let bulyan = move || robust::bulyan::Bulyan::new(&distances, byzantine);
                Combiner::Bulyan(blocking(bulyan).await?)
            }
            Rule::GeometricMedian => {
                let distances = rows(None).await?.distances().await?;
                let median = robust::geometric_median::GeometricMedian::default();
                let located = blocking(move || median.locate(&distances)).await?;
                let influences = told(&located.influences());
                Combiner::sum(located.shares, influences)
            }
            Rule::CentredClipping(rule) => {
                let distances = rows(Some(base)).await?.distances().await?;
                let clipped = blocking(move || rule.coefficients(&distances)).await?;
                Combiner::centred(clipped.coefficients.clone(), told(&clipped.influences()))
            }
            // Their rows are not those of the others.
            Rule::Late(_) => return Err(RuleError::Fault.into()),
            Rule::NormBound(norm) => {
                let norms = rows(Some(base)).await?.norms().await?;
                let shares = vec![count(devices).recip(); devices];
                let bound = robust::norm_bound::NormBound::new(norm).map_err(RuleError::from)?;
                let clipped = bound.clip(&norms, &shares).map_err(RuleError::from)?;
                Combiner::centred(clipped.coefficients.clone(), told(&clipped.influences()))
            }
        })
    }
}

/// The result, as it is made.
struct Combined {
    rows: Rows,
    /// Away while it combines.
    combiner: Option<Combiner>,
    statistics: Arc<Statistics>,
    ready: BytesMut,
}

impl Pieces for &mut Combined {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        while self.ready.len() < max
            && let Some((offset, rows)) = self.rows.next().await?
        {
            let mut combiner = self.combiner.take().ok_or(RuleError::Fault)?;
            let statistics = self.statistics.clone();
            let tile =
                move || combiner.tile(offset, &rows, &statistics).map(|tile| (combiner, tile));
            let (combiner, tile) = blocking(tile).await?;
            self.combiner = Some(combiner);
            let mut bytes = Vec::with_capacity(4 * tile.len());
            append_le_bytes(&tile, &mut bytes);
            self.ready.extend_from_slice(&bytes);
        }
        let length = max.min(self.ready.len());
        Ok(self.ready.split_to(length).freeze())
    }
}

/// The parameters of updates, behind the centre if there is one.
pub(super) fn blobs<'a>(parts: &'a [Part], centre: Option<&'a BlobRef>) -> Vec<&'a BlobRef> {
    centre.into_iter().chain(parts.iter().map(|part| &part.parameters)).collect()
}

/// Coefficients of q-FedAvg, and what to say of them.
fn by_loss(
    rule: QFedAvg,
    parts: &[Part],
    norms: &[f64],
) -> Result<(Vec<f64>, Vec<Influence>), RuleError> {
    let losses: Vec<f64> = parts.iter().map(|part| part.initial_loss).collect();
    let shares = rule.coefficients(&losses, norms)?;
    let told = losses
        .iter()
        .zip(&shares)
        .map(|(loss, share)| kept(format!("loss {loss:.4} before the training, share {share:.4}")));
    let told = told.collect();
    Ok((shares, told))
}

/// Coefficients of `FedNova`, and what to say of them.
fn by_steps(
    parts: &[Part],
    weights: &[f64],
    momentum: f64,
    pull: f64,
) -> Result<(Vec<f64>, Vec<Influence>), RuleError> {
    let steps = parts.iter().map(|part| local_steps(part.steps, momentum, pull));
    let steps: Vec<LocalSteps> = steps.collect();
    let shares = fed_nova::coefficients(weights, &steps)?;
    let told = steps.iter().zip(&shares).map(|(steps, share)| {
        kept(format!("steps of weight {:.2}, share {share:.4}", steps.weight()))
    });
    let told = told.collect();
    Ok((shares, told))
}

fn local_steps(steps: u64, momentum: f64, pull: f64) -> LocalSteps {
    // Others were refused when they arrived.
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    if momentum > 0.0 {
        LocalSteps::Momentum { steps, momentum }
    } else if pull > 0.0 {
        LocalSteps::Proximal { steps, pull }
    } else {
        LocalSteps::Plain { steps }
    }
}

/// The part of each weight in their sum.
fn shares_of(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn kept(reason: String) -> Influence {
    Influence { verdict: Verdict::Kept, reason }
}

#[expect(clippy::cast_precision_loss, reason = "a round has far fewer than 2^53 devices")]
fn count(devices: usize) -> f64 {
    devices as f64
}
