//! What a strategy kept in the job that a training goes on from, copied for the training.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use jobs::id::{BlobRef, Bytes as Size, JobId, RoundNumber};
use jobs::round::Outcome;
use jobs::spec::{Keeps, RoundOf, TrainSpec, WorkSpec};
use jobs::training::{Before, Controls};
use link::blobs::{BlobError, BlobReader, Pieces};
use models::params::Layout;

use crate::broker::Core;
use crate::coordinator::state::server_state_name;
use crate::coordinator::updates;
use crate::record::{StoredJob, WentOn};
use crate::store::StoreError;

/// Jobs that went on from one another and whose control variates go along, at most.
const CHAIN_MAX: usize = 100;

/// What a training begins with beside the parameters.
#[derive(Debug, Default)]
pub(in crate::coordinator) struct Carried {
    pub(in crate::coordinator) state: Option<BlobRef>,
    pub(in crate::coordinator) controls: Option<Controls>,
    /// The round before, where it is known.
    pub(in crate::coordinator) went_on: Option<WentOn>,
    /// In words, what of the strategy begins at zero although another job was before.
    pub(in crate::coordinator) notes: Vec<String>,
}

impl Carried {
    /// Nothing but a note.
    pub(super) fn noting(note: Option<String>) -> Self {
        Self { notes: note.into_iter().collect(), ..Self::default() }
    }
}

/// The round before, with what devices keep of the job.
struct Found {
    outcome: Outcome,
    controls: Controls,
    /// Whether devices have their control variates of it, and are to keep them.
    is_kept: bool,
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
        let stored = self.store.jobs.get(from.job.as_str()).await?;
        let before = stored.map(|stored| stored.value);
        let keeps = spec.strategy.keeps();
        let found = match &before {
            // Where nothing is kept the round's number is enough.
            Some(before) if keeps.is_some() || from.round.is_none() => {
                self.found(before, from.round).await?
            }
            Some(_) | None => None,
        };
        let round = from.round.or(found.as_ref().map(|found| found.outcome.round));
        let went_on = went_on(from, before.as_ref(), round);
        let mut carried = Carried { went_on, ..Carried::default() };
        let Some(keeps) = keeps else { return Ok(carried) };
        let work = before.as_ref().map(|before| &before.record.spec.work);
        let (Some(found), Some(WorkSpec::Train(work))) = (found, work) else {
            carried.notes.push(at_zero(keeps, from, "the round is gone"));
            return Ok(carried);
        };
        let round =
            Before { strategy: &work.strategy, outcome: &found.outcome, is_kept: found.is_kept };
        let state = match jobs::training::carried(&spec.strategy, round) {
            Ok(Some(state)) => state,
            Ok(None) => return Ok(carried),
            Err(anew) => {
                carried.notes.push(at_zero(keeps, from, &anew.to_string()));
                return Ok(carried);
            }
        };
        if !is_same || state.size != state_size(spec, model) {
            carried.notes.push(at_zero(keeps, from, "what was kept is of another form"));
            return Ok(carried);
        }
        match self.copied(state, server_state_name(job, 0, term)).await {
            Ok(state) => carried.state = Some(state),
            Err(BlobError::NotFound { .. }) => {
                let why = "what was kept with that round is not stored any more";
                carried.notes.push(at_zero(keeps, from, why));
                return Ok(carried);
            }
            Err(error) => return Err(error.into()),
        }
        if keeps == Keeps::Controls {
            let before = before.as_ref().and_then(|before| before.went_on.clone());
            let (controls, lacking) = self.chain(found.controls, before).await?;
            carried.controls = Some(controls);
            carried.notes.extend(lacking);
            if let Some(went_on) = &mut carried.went_on {
                went_on.controls = true;
            }
        }
        Ok(carried)
    }

    /// Control variates with those of the jobs before that job, for devices that it names none of;
    /// in words, what is lacking.
    async fn chain(
        &self,
        mut controls: Controls,
        mut before: Option<WentOn>,
    ) -> Result<(Controls, Option<String>), StoreError> {
        for _ in 0..CHAIN_MAX {
            let Some(WentOn { job, round, controls: true, .. }) = before else {
                return Ok((controls, None));
            };
            let stored = self.store.jobs.get(job.as_str()).await?.map(|stored| stored.value);
            let found = match &stored {
                Some(stored) => self.found(stored, Some(round)).await?,
                None => None,
            };
            let (Some(stored), Some(found)) = (stored, found) else {
                return Ok((controls, Some(lacking(&job, "it is gone"))));
            };
            controls.add_earlier(found.controls);
            before = stored.went_on;
        }
        let lacking =
            before.filter(|it| it.controls).map(|it| lacking(&it.job, "it is too long ago"));
        Ok((controls, lacking))
    }

    /// A round, the newest one where none is named, as it ended.
    async fn found(
        &self,
        before: &StoredJob,
        wanted: Option<RoundNumber>,
    ) -> Result<Option<Found>, StoreError> {
        let record = &before.record;
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
            let kept = before.kept_states.iter().any(|(round, _)| *round == outcome.round);
            let is_kept = record.state.is_final() && (kept || outcome.round == newest);
            Found { outcome, controls, is_kept }
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

/// What a training goes on from, for those that go on from it.
fn went_on(
    from: &RoundOf,
    before: Option<&StoredJob>,
    round: Option<RoundNumber>,
) -> Option<WentOn> {
    let earlier = before?.went_on.as_ref().map_or(0, |it| it.rounds_before);
    let round = round?;
    let rounds_before = earlier.saturating_add(round.0);
    Some(WentOn { job: from.job.clone(), round, rounds_before, controls: false })
}

fn at_zero(keeps: Keeps, from: &RoundOf, why: &str) -> String {
    let what = match keeps {
        Keeps::Moments => "the server optimizer's moments begin",
        Keeps::Controls => "the control variates begin",
    };
    format!("{what} at zero, and not where {from} left them: {why}")
}

fn lacking(job: &JobId, why: &str) -> String {
    format!(
        "control variates of devices that were in job {job} or before, and in none since, begin at \
         zero: {why}"
    )
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
