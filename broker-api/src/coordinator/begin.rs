//! How an owner begins: with a training that is prepared anew, or with one that was stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs::id::{BlobRef, JobId, Millis};
use jobs::job::JobState;
use jobs::report::{Failure, FailureCode};
use jobs::spec::{JobSpec, TrainSpec, WorkSpec};
use jobs::subject;
use jobs::training::{Effect, Event, Start, Training, seed_of};
use link::secret::Secret;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::RENEW_EVERY;
use super::download::Encoding;
use super::kept::Kept;
use super::leftovers::kept;
use super::listed::Listed;
use super::masking::KeyRing;
use super::notes::tell;
use super::owner::{DONE_WAITING, Ears, Owner, REST, Stop};
use super::pace::Pace;
use super::prepare::{Carried, Model, Ready, Unprepared, eligible, model_of, unjudged};
use super::state::{Prepared, StoredTraining, encoded_name, unknown};
use super::updates::Updates;
use super::waiting::{Absent, Told};
use crate::broker::work::{asked_to_stop, failed};
use crate::broker::{Core, JobEnd};
use crate::record::{StoredJob, Waiting};
use crate::store::{StoreError, Versioned, unavailable};

/// Loads or prepares the training. Tries for as long as the store does not answer.
pub(super) async fn begin(
    core: &Arc<Core>,
    job: &JobId,
    mut stored: Versioned<StoredTraining>,
) -> Result<(Owner, Ears, Vec<Effect>), Stop> {
    loop {
        let begun = tokio::select! {
            begun = try_begin(core, job, &mut stored) => begun,
            () = core.closing.cancelled() => Err(Unready::Stop(Stop::Closing)),
        };
        match begun {
            Ok(begun) => return Ok(begun),
            Err(Unready::Stop(Stop::Closing)) => {
                let value = StoredTraining { owner: None, ..stored.value };
                // If it is not stored, the lease lapses.
                let _ = core.store.trainings.update(job.as_str(), &value, stored.revision).await;
                return Err(Stop::Closing);
            }
            Err(Unready::Stop(stop)) => return Err(stop),
            Err(Unready::Store(error)) => {
                tracing::warn!(%job, %error, "a training waits for the store");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

enum Unready {
    Stop(Stop),
    Store(StoreError),
}

impl From<StoreError> for Unready {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Conflict { .. }) {
            return Unready::Stop(Stop::Lost);
        }
        Unready::Store(error)
    }
}

async fn try_begin(
    core: &Arc<Core>,
    job: &JobId,
    stored: &mut Versioned<StoredTraining>,
) -> Result<(Owner, Ears, Vec<Effect>), Unready> {
    let found = core.store.jobs.get(job.as_str()).await?;
    let Some(found) = found.map(|found| found.value) else {
        core.store.trainings.remove(job.as_str()).await?;
        return Err(Unready::Stop(Stop::Over));
    };
    let kept = Kept::of(&found);
    let StoredJob { record, .. } = found;
    let WorkSpec::Train(spec) = record.spec.work.clone() else {
        core.store.trainings.remove(job.as_str()).await?;
        return Err(Unready::Stop(Stop::Over));
    };
    if record.state.is_final() {
        core.tell_end(&record).await?;
        core.forget_training(job, &stored.value, &kept).await?;
        return Err(Unready::Stop(Stop::Over));
    }
    let deadline = record.accepted_at.plus(record.spec.deadline_ms);
    let (spec, secret) = (*spec, secret_of(&stored.value)?);
    let known = stored.value.machine.clone().zip(stored.value.prepared.clone());
    let begun = if let Some((machine, prepared)) = known {
        go_on(core, job, stored.value.term, machine, prepared).await
    } else {
        let patience = Patience { core, job, spec: &spec, job_spec: &record.spec, deadline };
        Box::pin(patience.begin(stored, &secret)).await?
    };
    let Begun { machine, effects, prepared, model, garbage } = match begun {
        Ok(begun) => begun,
        Err(unprepared) => return Err(give_up(core, job, &stored.value, unprepared).await?),
    };
    mark_running(core, job).await?;
    let updates = Updates::start(core.store.blobs.clone(), model, &spec).map_err(|error| {
        StoreError::Unavailable { doing: "starting a thread".to_owned(), reason: error.to_string() }
    })?;
    let making = TaskTracker::new();
    making.close();
    let (ears, done, returns) = listen(core, job).await?;
    let mut value = StoredTraining { prepared: Some(prepared.clone()), ..stored.value.clone() };
    value.secret = spec.privacy.map(|_| secret.clone());
    value.garbage.push(garbage);
    let owner = Owner {
        core: core.clone(),
        job: job.clone(),
        spec,
        job_spec: record.spec,
        prepared,
        updates,
        making,
        machine,
        secret,
        listed: Listed::of(&value.updates),
        stored: value,
        revision: stored.revision,
        stored_at: Instant::now(),
        storing_took: Duration::ZERO,
        pace: Pace::default(),
        told: Told::default(),
        lost_lease: false,
        changed_at: None,
        done,
        folding: 0,
        key_ring: KeyRing::default(),
        masking: Arc::default(),
        returns,
    };
    Ok((owner, ears, effects))
}

/// A training at the moment at which it is owned.
struct Begun {
    machine: Training,
    effects: Vec<Effect>,
    prepared: Prepared,
    model: Model,
    /// Blobs that are not needed for long, if they are there.
    garbage: Vec<BlobRef>,
}

/// A training that was stored.
async fn go_on(
    core: &Core,
    job: &JobId,
    term: u64,
    machine: Training,
    prepared: Prepared,
) -> Result<Begun, Unprepared> {
    let model = model_of(core, &prepared).await?;
    let garbage = unknown(job, machine.number().0, term.saturating_sub(1));
    Ok(Begun { effects: machine.pending_effects(), machine, prepared, model, garbage })
}

/// The secret of a training, a new one before its first state is stored.
fn secret_of(stored: &StoredTraining) -> Result<Secret, StoreError> {
    let known = stored.secret.clone().map_or_else(Secret::random, Ok);
    known.map_err(|error| unavailable("drawing a key", &error))
}

/// Draws who takes part in rounds; tells nothing of the noise.
fn secret_number(secret: &Secret) -> u64 {
    let derived = secret.derive(b"sampling");
    derived.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A job that has begun is shown as running.
async fn mark_running(core: &Core, job: &JobId) -> Result<(), StoreError> {
    let running = |stored: &mut StoredJob| {
        let change = matches!(stored.record.state, JobState::Accepted | JobState::Placed);
        if change {
            stored.record.state = JobState::Running;
        }
        let waited = stored.record.waiting.take().is_some();
        change || waited
    };
    core.store.jobs.modify(job.as_str(), running).await?;
    Ok(())
}

/// Opens everything that an owner listens to; reports follow once it runs.
async fn listen(
    core: &Core,
    job: &JobId,
) -> Result<(Ears, mpsc::Sender<Event>, String), StoreError> {
    let (done, done_receiver) = mpsc::channel(DONE_WAITING);
    let client = core.store.client();
    let returns = client.new_inbox();
    let returned = client.subscribe(format!("{returns}.*")).await;
    let returned = returned.map_err(|error| unavailable("subscribing", &error))?;
    let mut made = core.store.made();
    let reports_at = made.borrow_and_update().at(subject::STREAM_REPORTS);
    let ears = Ears {
        reports: None,
        returned,
        done: done_receiver,
        fleet: core.fleet.events(),
        signal: core.index.watch(job),
        made,
        reports_at,
        behind: true,
        presence_known: false,
    };
    Ok((ears, done, returns))
}

/// Ends a training that cannot begin.
async fn give_up(
    core: &Core,
    job: &JobId,
    stored: &StoredTraining,
    unprepared: Unprepared,
) -> Result<Unready, StoreError> {
    let failure = match unprepared {
        Unprepared::Store(error) => return Ok(error.into()),
        Unprepared::Failed(failure) => failure,
        Unprepared::Nobody => {
            Failure::new(FailureCode::NoDevice, "no device with the data set is online")
        }
    };
    let state =
        if failure.code == FailureCode::Cancelled { JobState::Cancelled } else { JobState::Failed };
    let kept = match &stored.machine {
        Some(machine) => kept(machine, false, stored),
        None => Kept::default(),
    };
    core.end_training(job, &JobEnd { state, ..failed(failure) }, &kept).await?;
    core.forget_training(job, stored, &kept).await?;
    Ok(Unready::Stop(Stop::Over))
}

/// Prepares a training as soon as a device with the data set is online.
struct Patience<'a> {
    core: &'a Core,
    job: &'a JobId,
    spec: &'a TrainSpec,
    job_spec: &'a JobSpec,
    deadline: Millis,
}

impl Patience<'_> {
    /// A training that is prepared anew.
    async fn begin(
        &self,
        stored: &mut Versioned<StoredTraining>,
        secret: &Secret,
    ) -> Result<Result<Begun, Unprepared>, StoreError> {
        let Ready { prepared, parameters, carried, model } = match self.prepare(stored).await? {
            Ok(ready) => ready,
            Err(unprepared) => return Ok(Err(unprepared)),
        };
        let Carried { state: server_state, controls, went_on, mut notes } = carried;
        let Self { core, job, spec, job_spec, deadline } = *self;
        let devices = eligible(&core.fleet, &job_spec.selector, spec, Some(&prepared));
        notes.extend(unjudged(&devices, spec));
        // From here on the graph is referred to.
        stored.value.prepared = Some(prepared.clone());
        self.write(stored).await?;
        let term = stored.value.term;
        let rounds_before = went_on.as_ref().map_or(0, |went_on| went_on.rounds_before);
        let seed = seed_of(spec.seed, rounds_before);
        let encoding = Encoding::of(spec, seed, encoded_name(job, 0, term));
        for note in &notes {
            tracing::info!(%job, "{note}");
        }
        tell(core, job, went_on.as_ref(), &notes).await?;
        let encoding = encoding.store(&core.store.blobs, &model.layout, &parameters);
        let encoded = self.while_renewing(stored, Box::pin(encoding)).await?;
        let mut garbage = unknown(job, 0, term.saturating_sub(1));
        garbage.push(parameters.clone());
        garbage.extend(encoded.clone());
        garbage.extend(server_state.clone());
        let secret_seed = spec.privacy.map(|_| secret_number(secret));
        let start =
            Start { parameters, encoded, server_state, controls, rounds_before, secret_seed };
        let (machine, effects) =
            Training::begin_with(core.fleet.now(), spec.clone(), deadline, start);
        Ok(Ok(Begun { machine, effects, prepared, model, garbage }))
    }

    async fn prepare(
        &self,
        stored: &mut Versioned<StoredTraining>,
    ) -> Result<Result<Ready, Unprepared>, StoreError> {
        let mut chances = self.core.fleet.chances();
        let mut signal = self.core.index.watch(self.job);
        let mut told = String::new();
        loop {
            if signal.borrow().cancel {
                let failure = Failure::new(FailureCode::Cancelled, "stopped on request");
                return Ok(Err(Unprepared::Failed(failure)));
            }
            let (selector, term) = (&self.job_spec.selector, stored.value.term);
            let preparing = Box::pin(self.core.prepare(self.job, self.spec, selector, term));
            match self.while_renewing(stored, preparing).await? {
                Err(Unprepared::Nobody) => self.tell_waiting(&mut told).await?,
                prepared => return Ok(prepared),
            }
            let left = self.deadline.since(self.core.fleet.now());
            if left.0 == 0 {
                let text = format!(
                    "no device with data set {} was online before the deadline",
                    self.spec.dataset
                );
                let failure = Failure::new(FailureCode::NoDevice, text);
                return Ok(Err(Unprepared::Failed(failure)));
            }
            tokio::select! {
                _ = chances.changed() => {}
                () = asked_to_stop(&mut signal) => {}
                () = tokio::time::sleep(Duration::from_millis(left.0).min(RENEW_EVERY)) => {
                    // A sign of life.
                    self.write(stored).await?;
                }
            }
        }
    }

    /// Says why nobody is there, if that is not what was told last.
    async fn tell_waiting(&self, told: &mut String) -> Result<(), StoreError> {
        let Self { core, job, spec, job_spec, deadline } = *self;
        let absent = Absent::of(&core.fleet, &job_spec.selector, spec, None);
        let needed = spec.participation.quorum.max(1) as usize;
        let reason = absent.reason(0, needed, (&job_spec.selector, spec));
        // Somebody came just now.
        let Some(reason) = reason else { return Ok(()) };
        if reason != *told {
            told.clone_from(&reason);
            let since = core.fleet.now();
            let waiting = Waiting { round: 1, reason, since, until: deadline };
            core.tell_waiting(job, Some(waiting)).await?;
        }
        Ok(())
    }

    /// Does work that takes as long as a model on its way, and gives signs of life meanwhile.
    async fn while_renewing<T>(
        &self,
        stored: &mut Versioned<StoredTraining>,
        work: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(RENEW_EVERY, &mut work).await {
                return Ok(done);
            }
            match self.write(stored).await {
                Ok(()) => {}
                Err(error @ StoreError::Conflict { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %self.job, %error, "a training was not stored");
                }
            }
        }
    }

    async fn write(&self, stored: &mut Versioned<StoredTraining>) -> Result<(), StoreError> {
        stored.value.write += 1;
        let trainings = &self.core.store.trainings;
        let written = trainings.update(self.job.as_str(), &stored.value, stored.revision).await;
        stored.revision = written?;
        Ok(())
    }
}
