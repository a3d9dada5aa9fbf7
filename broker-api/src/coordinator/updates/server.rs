//! A server optimizer's step: global parameters, what the optimizer keeps, and the mean of the
//! updates are read side by side, and what comes of them is stored meanwhile. No more of a vector
//! than a block is in memory, but for the mean.
//!
//! [Running statistics](models::federated::statistics) become the mean's.
//!
//! What an optimizer keeps is stored as little-endian `f32`: for each [`BLOCK`] of parameters
//! their first moments, then their second ones, whichever it has.

use bytes::{Bytes, BytesMut};
use jobs::id::{BlobRef, Bytes as Size};
use jobs::spec::{FedAdam, FedYogi, Strategy};
use link::blobs::Pieces;
use models::federated::server::{Adaptive, Aggregate, Moments, ServerOptimizer};
use models::params::{Layout, append_le_bytes};
use tokio::sync::mpsc;

use super::values::Values;
use super::{Fold, ReadError, Updates};
use crate::coordinator::fold::content::Expected;

/// Parameters that are moved at a time.
const BLOCK: usize = if cfg!(test) { 61 } else { 64 * 1024 };
/// Blocks of the state that may wait to be stored.
const BLOCKS_WAITING: usize = 4;

/// What a step starts from.
#[derive(Debug, Clone)]
pub(in crate::coordinator) struct Base {
    pub(in crate::coordinator) optimizer: ServerOptimizer,
    /// The round's parameters.
    pub(in crate::coordinator) parameters: BlobRef,
    /// What the optimizer kept with them; nothing before its first step.
    pub(in crate::coordinator) state: Option<BlobRef>,
}

/// The optimizer of a strategy; none where the mean is the result.
pub(in crate::coordinator) fn optimizer(strategy: &Strategy) -> Option<ServerOptimizer> {
    #[expect(clippy::cast_possible_truncation, reason = "within the range, and kept as this")]
    let initial = |v0: f64| v0 as f32;
    match *strategy {
        Strategy::FedAvg {}
        | Strategy::QFedAvg(_)
        | Strategy::FedNova {}
        | Strategy::Scaffold(_)
        | Strategy::FedBuff(_)
        | Strategy::FedMedian {}
        | Strategy::FedTrimmedAvg(_)
        | Strategy::Krum(_)
        | Strategy::MultiKrum(_)
        | Strategy::Bulyan(_)
        | Strategy::GeometricMedian {}
        | Strategy::CentredClipping(_)
        | Strategy::NormBound(_) => None,
        Strategy::FedAvgM(it) => {
            let (learning_rate, momentum) = (it.learning_rate, it.momentum);
            Some(ServerOptimizer::FedAvgM { learning_rate, momentum })
        }
        Strategy::FedAdagrad(it) => {
            let (learning_rate, tau, initial) = (it.learning_rate, it.tau, initial(it.v0));
            let (beta1, beta2) = (0.0, 0.0);
            let it = Adaptive { learning_rate, beta1, beta2, tau, initial };
            Some(ServerOptimizer::FedAdagrad(it))
        }
        Strategy::FedAdam(it) => {
            let FedAdam { learning_rate, beta1, beta2, tau, v0 } = it;
            let it = Adaptive { learning_rate, beta1, beta2, tau, initial: initial(v0) };
            Some(ServerOptimizer::FedAdam(it))
        }
        Strategy::FedYogi(it) => {
            let FedYogi { learning_rate, beta1, beta2, tau, v0 } = it;
            let it = Adaptive { learning_rate, beta1, beta2, tau, initial: initial(v0) };
            Some(ServerOptimizer::FedYogi(it))
        }
    }
}

/// Moments for each parameter.
fn moments(optimizer: &ServerOptimizer) -> usize {
    let (first, second) = optimizer.has_moments();
    usize::from(first) + usize::from(second)
}

/// Bytes of what an optimizer keeps of a model.
pub(in crate::coordinator) fn state_bytes(optimizer: &ServerOptimizer, model: &Layout) -> usize {
    4 * moments(optimizer) * model.total_len()
}

impl Updates {
    /// Stores what a step makes of a mean, the sealed one if no other is given, under two names:
    /// the parameters, and the state if the optimizer has one.
    pub(super) async fn step(
        &self,
        names: (String, String),
        mean: Option<&BlobRef>,
        base: &Base,
    ) -> Result<(BlobRef, Option<BlobRef>), ReadError> {
        let model = Expected::parameters(self.ask(|fold| fold.model().clone()).await?);
        let (sender, receiver) = mpsc::channel(BLOCKS_WAITING);
        let state_bytes = state_bytes(&base.optimizer, model.layout());
        let size = Size(model.layout().byte_len() as u64);
        let stepped = Stepped::begin(self, model, base, mean, sender).await?;
        let parameters = self.blobs.put_pieces(names.0, size, stepped);
        if state_bytes == 0 {
            return Ok((parameters.await?, None));
        }
        let state = State { receiver, ready: BytesMut::new(), left: state_bytes };
        let state = self.blobs.put_pieces(names.1, Size(state_bytes as u64), state);
        // The first error is the cause: the other one is that its peer is gone.
        let (parameters, state) = futures::join!(parameters, state);
        Ok((parameters?, Some(state?)))
    }
}

impl Updates {
    /// The same with a mean that is in the object store, and not needed any more afterwards.
    pub(super) async fn step_against(
        &self,
        names: (String, String),
        mean: &BlobRef,
        base: &Base,
    ) -> Result<(BlobRef, Option<BlobRef>), ReadError> {
        let stepped = Box::pin(self.step(names, Some(mean), base)).await;
        if let Err(error) = self.blobs.delete(mean).await {
            tracing::debug!(blob = mean.object_name(), %error, "a mean stays");
        }
        stepped
    }
}

/// The new parameters, as they are made.
struct Stepped<'a> {
    updates: &'a Updates,
    optimizer: ServerOptimizer,
    model: Expected,
    parameters: Values,
    /// The mean, where it is not in memory.
    mean: Option<Values>,
    state: Option<Values>,
    state_sender: mpsc::Sender<Vec<u8>>,
    /// Parameters that were moved.
    moved: usize,
    ready: BytesMut,
}

impl<'a> Stepped<'a> {
    async fn begin(
        updates: &'a Updates,
        model: Expected,
        base: &Base,
        mean: Option<&BlobRef>,
        state_sender: mpsc::Sender<Vec<u8>>,
    ) -> Result<Self, ReadError> {
        let blobs = &updates.blobs;
        let parameters = Values::of_parameters(blobs, &base.parameters).await?;
        let state = match &base.state {
            Some(state) => Some(Values::bare(blobs, state).await?),
            None => None,
        };
        let mean = match mean {
            Some(mean) => Some(Values::of_parameters(blobs, mean).await?),
            None => None,
        };
        let ready = BytesMut::from(&model.layout().header()[..]);
        let (optimizer, moved) = (base.optimizer, 0);
        Ok(Self { updates, optimizer, model, parameters, mean, state, state_sender, moved, ready })
    }

    /// Moves the next block.
    async fn block(&mut self) -> Result<(), ReadError> {
        let (offset, optimizer) = (self.moved, self.optimizer);
        let length = BLOCK.min(self.model.layout().total_len() - offset);
        let mut parameters = self.parameters.next(length, &self.model).await?;
        let mut kept = if let Some(state) = &mut self.state {
            state.next(moments(&optimizer) * length, &self.model).await?
        } else {
            let fresh = optimizer.state(length);
            [fresh.first(), fresh.second()].concat()
        };
        let known = match &mut self.mean {
            Some(mean) => Some(mean.next(length, &self.model).await?),
            None => None,
        };
        let statistics = self.updates.statistics.clone();
        let (parameters, kept) = self
            .updates
            .ask(move |fold| {
                let mean = known.map_or_else(|| fold.mean_from(offset, &parameters), Ok)?;
                let mut towards = mean.clone();
                statistics.put(offset, &parameters, &mut towards);
                let has_first = optimizer.has_moments().0;
                let (first, second) = kept.split_at_mut(if has_first { length } else { 0 });
                let moments = Moments { first, second };
                optimizer.step(moments, &mut parameters, Aggregate::Parameters(&towards))?;
                statistics.put(offset, &mean, &mut parameters);
                Ok::<_, ReadError>((parameters, kept))
            })
            .await??;
        self.moved += length;
        let mut bytes = Vec::new();
        append_le_bytes(&parameters, &mut bytes);
        self.ready.extend_from_slice(&bytes);
        if !kept.is_empty() {
            let mut bytes = Vec::new();
            append_le_bytes(&kept, &mut bytes);
            // Whoever stores the state says why it is gone.
            let _ = self.state_sender.send(bytes).await;
        }
        Ok(())
    }
}

impl Pieces for Stepped<'_> {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        while self.ready.len() < max && self.moved < self.model.layout().total_len() {
            self.block().await?;
            if self.moved == self.model.layout().total_len() {
                self.parameters.end().await?;
                if let Some(mean) = &mut self.mean {
                    mean.end().await?;
                }
                if let Some(state) = &mut self.state {
                    state.end().await?;
                }
                self.updates.tell(Fold::forget_all).await;
            }
        }
        Ok(self.ready.split_to(max.min(self.ready.len())).freeze())
    }
}

/// What the optimizer keeps, as it is made.
struct State {
    receiver: mpsc::Receiver<Vec<u8>>,
    ready: BytesMut,
    /// Bytes that are still to be made.
    left: usize,
}

impl Pieces for State {
    type Error = ReadError;

    async fn next(&mut self, max: usize) -> Result<Bytes, ReadError> {
        while self.ready.len() < max && self.left > 0 {
            let bytes = self.receiver.recv().await.ok_or(ReadError::Cut)?;
            self.left = self.left.saturating_sub(bytes.len());
            self.ready.extend_from_slice(&bytes);
        }
        Ok(self.ready.split_to(max.min(self.ready.len())).freeze())
    }
}
