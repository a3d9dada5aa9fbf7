//! What a strategy kept in the job that a training goes on from, copied for the training.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use jobs::id::{BlobRef, Bytes as Size, JobId, RoundNumber};
use jobs::round::Outcome;
use jobs::spec::{Keeps, RoundOf, TrainSpec, WorkSpec};
use jobs::training::{Before, Controls, carried};
use link::blobs::{BlobError, BlobReader, Pieces};
use models::params::Layout;

use crate::broker::Core;
use crate::coordinator::state::server_state_name;
use crate::coordinator::updates;
use crate::record::StoredJob;
use crate::store::StoreError;

/// What a training begins with beside the parameters.
#[derive(Debug, Default)]
pub(in crate::coordinator) struct Carried {
    pub(in crate::coordinator) state: Option<BlobRef>,
    pub(in crate::coordinator) controls: Option<Controls>,
    /// In words, why the strategy begins at zero although another job was before.
    pub(in crate::coordinator) note: Option<String>,
}

/// The round before, with what devices keep of the job.
struct Found {
    outcome: Outcome,
    controls: Controls,
    is_last: bool,
}

impl Core {
    /// What goes along from a round of another job into one of this model; `is_same` is false where
    /// that job's model lays its parameters out otherwise.
    pub(super) async fn carried(
        &self,
        spec: &TrainSpec,
        from: &RoundOf,
        (model, is_same): (&Layout, bool),
        (job, term): (&JobId, u64),
    ) -> Result<Carried, StoreError> {
        let Some(keeps) = spec.strategy.keeps() else { return Ok(Carried::default()) };
        let stored = self.store.jobs.get(from.job.as_str()).await?;
        let Some(before) = stored.map(|stored| stored.value) else {
            return Ok(at_zero(keeps, from, "the job is gone"));
        };
        let found = self.found(&before, from).await?;
        let (Some(found), WorkSpec::Train(before)) = (found, &before.record.spec.work) else {
            return Ok(at_zero(keeps, from, "the round is gone"));
        };
        let Found { outcome, controls, is_last } = found;
        let round = Before { strategy: &before.strategy, outcome: &outcome, is_last };
        let state = match carried(&spec.strategy, round) {
            Ok(Some(state)) => state,
            Ok(None) => return Ok(Carried::default()),
            Err(anew) => return Ok(at_zero(keeps, from, &anew.to_string())),
        };
        if !is_same || state.size != state_size(spec, model) {
            return Ok(at_zero(keeps, from, "what was kept is of another form"));
        }
        match self.copied(state, server_state_name(job, 0, term)).await {
            Ok(state) => Ok(Carried {
                state: Some(state),
                controls: (keeps == Keeps::Controls).then_some(controls),
                note: None,
            }),
            Err(BlobError::NotFound { .. }) => {
                Ok(at_zero(keeps, from, "what was kept with that round is not stored any more"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The round that is gone on from, as it ended.
    async fn found(&self, before: &StoredJob, from: &RoundOf) -> Result<Option<Found>, StoreError> {
        let (record, wanted) = (&before.record, from.round);
        let (mut found, mut newest) = (None, RoundNumber(0));
        let mut controls = Controls::of(record.id.clone());
        let mut outcomes = self.outcomes(&record.id);
        while let Some(outcome) = outcomes.try_next().await? {
            if outcome.failure.is_some() {
                continue;
            }
            newest = outcome.round;
            if wanted.is_none_or(|wanted| outcome.round <= wanted) {
                controls.count(&outcome);
                found = Some(outcome);
            }
        }
        let found = found.filter(|found| wanted.is_none_or(|wanted| found.round == wanted));
        Ok(found.map(|outcome| {
            let is_last = record.state.is_final() && outcome.round == newest;
            Found { outcome, controls, is_last }
        }))
    }

    /// A copy of a blob under another name.
    async fn copied(&self, blob: &BlobRef, name: String) -> Result<BlobRef, BlobError> {
        let blobs = &self.store.blobs;
        let reader = blobs.open(blob).await?;
        let copy = Copy { reader, ready: BytesMut::new(), is_over: false };
        blobs.put_pieces(name, blob.size, copy).await
    }
}

/// Bytes of what a strategy keeps of a model.
fn state_size(spec: &TrainSpec, model: &Layout) -> Size {
    Size(match updates::server::optimizer(&spec.strategy) {
        Some(optimizer) => updates::server::state_bytes(&optimizer, model) as u64,
        None => model.byte_len() as u64,
    })
}

fn at_zero(keeps: Keeps, from: &RoundOf, why: &str) -> Carried {
    let what = match keeps {
        Keeps::Moments => "the server optimizer's moments begin",
        Keeps::Controls => "the control variates begin",
    };
    let note = format!("{what} at zero, and not where {from} left them: {why}");
    Carried { note: Some(note), ..Carried::default() }
}

/// A blob as it is read.
struct Copy {
    reader: BlobReader,
    ready: BytesMut,
    is_over: bool,
}

impl Pieces for Copy {
    type Error = BlobError;

    async fn next(&mut self, max: usize) -> Result<Bytes, BlobError> {
        while self.ready.len() < max && !self.is_over {
            match self.reader.next().await? {
                Some(chunk) => self.ready.extend_from_slice(&chunk),
                None => self.is_over = true,
            }
        }
        Ok(self.ready.split_to(max.min(self.ready.len())).freeze())
    }
}
