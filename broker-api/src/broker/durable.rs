//! Durable jobs: accepted, looked up, waited for, stopped, ended.
//!
//! Order of writes when a job is accepted: its input, its idempotency key, its record, its event,
//! its place in the work queue. A broker that dies in between has either accepted nothing, or
//! left a record that the next sweep puts into the queue.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use jobs::id::{BlobRef, JobId, Millis};
use jobs::job::JobState;
use jobs::report::{Failure, FailureCode};
use jobs::round::Outcome;
use jobs::spec::{InferInput, JobSpec, WorkSpec};
use link::digest;

use super::{Core, new_job_id};
use crate::coordinator::state::round_key;
use crate::coordinator::waiting::Checked;
use crate::error::{ApiCode, ApiError};
use crate::metrics::Counter;
use crate::record::{EventBody, JobEvent, JobPage, JobRecord, JobResult, StoredJob, StoredKey};
use crate::request;
use crate::request::training::Unread;
use crate::store::events::End;
use crate::store::{self, StoreError};

/// Records that are read at the same time for a list.
const READ_AT_ONCE: usize = 16;
/// Times that an idempotency key is looked up that another request is just taking.
const KEY_TRIED: usize = 20;
/// Between two of these times.
const KEY_PAUSE: Duration = Duration::from_millis(50);

/// How a job ended.
#[derive(Debug, Clone)]
pub(crate) struct JobEnd {
    pub(crate) state: JobState,
    pub(crate) failure: Option<Failure>,
    pub(crate) result: Option<JobResult>,
}

impl Core {
    /// Checks a job, and tells everything that is wrong with it; the devices that match now.
    pub(crate) async fn check(&self, spec: &JobSpec) -> Result<Checked, ApiError> {
        let said = request::check(spec);
        let devices = match &spec.work {
            WorkSpec::Infer(infer) => {
                said?;
                let model = self.registry.find(&infer.model).await?;
                request::fit(infer.input.clone(), &model.config)?;
                let engine = request::placed_by(&infer.engine, model.engine.as_deref())?;
                self.fleet.answering(&spec.selector, &engine)
            }
            WorkSpec::Train(train) => {
                let mut errors: Vec<ApiError> = said.err().into_iter().collect();
                let known = self.check_training(&spec.selector, train, &Unread::default()).await?;
                errors.extend(known);
                if let Some(error) = ApiError::all(errors) {
                    return Err(error);
                }
                return Ok(self.would_take_part(&spec.selector, train));
            }
            WorkSpec::Telemetry => {
                said?;
                self.fleet.matching(&spec.selector, None)
            }
        };
        let devices = devices.into_iter().map(|hello| hello.device).collect();
        Ok(Checked { devices, warnings: Vec::new() })
    }

    /// See [`super::Broker::submit`].
    pub(crate) async fn submit(
        &self,
        spec: JobSpec,
        binary: Bytes,
        id: Option<JobId>,
        idempotency_key: Option<String>,
    ) -> Result<JobRecord, ApiError> {
        if let Err(refused) = self.check(&spec).await {
            // The same request again: what it needs may be gone by now.
            let key = idempotency_key.as_deref();
            let known = self.accepted_before(&spec, &binary, id.as_ref(), key).await?;
            return known.ok_or(refused);
        }
        check_binary(&spec, &binary)?;
        self.gateway.check_input(&binary)?;
        let input = if binary.is_empty() {
            None
        } else {
            Some(self.store.blobs.put(binary).await.map_err(StoreError::from)?)
        };
        self.accept(spec, input, id, idempotency_key).await
    }

    async fn accept(
        &self,
        spec: JobSpec,
        input: Option<BlobRef>,
        id: Option<JobId>,
        idempotency_key: Option<String>,
    ) -> Result<JobRecord, ApiError> {
        let id = match (id, idempotency_key) {
            (Some(id), _) => id,
            (None, Some(key)) => self.reserve(&key, &spec, input.as_ref()).await?,
            (None, None) => new_job_id(),
        };
        let record = JobRecord {
            id: id.clone(),
            spec,
            state: JobState::Accepted,
            accepted_at: store::now(),
            ended_at: None,
            devices: Vec::new(),
            failure: None,
            result: None,
            waiting: None,
            notes: Vec::new(),
            rounds: Vec::new(),
        };
        let stored = StoredJob::of(record, input);
        match self.store.jobs.create(id.as_str(), &stored).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => return self.same_again(&stored).await,
            Err(error) => return Err(error.into()),
        }
        self.count_job(&stored.record);
        // From here on the job is accepted: what fails now is made good by the sweep.
        let kind = stored.record.spec.work.kind();
        let told = async {
            self.store.publish_event(&id, "accepted", EventBody::Accepted).await?;
            self.store.queue_work(kind, &id).await
        };
        if let Err(error) = told.await {
            tracing::warn!(job = %id, %error, "an accepted job is queued later");
        }
        Ok(stored.record)
    }

    /// The job without an input that was accepted for the same id or key, if it is the same.
    async fn accepted_before(
        &self,
        spec: &JobSpec,
        binary: &Bytes,
        id: Option<&JobId>,
        idempotency_key: Option<&str>,
    ) -> Result<Option<JobRecord>, ApiError> {
        if !binary.is_empty() {
            return Ok(None);
        }
        let id = match (id, idempotency_key) {
            (Some(id), _) => id.clone(),
            (None, Some(key)) => {
                let name = digest::of(key.as_bytes());
                match self.store.idempotency.get(name.hex()).await? {
                    Some(found) => found.value.job,
                    None => return Ok(None),
                }
            }
            (None, None) => return Ok(None),
        };
        let found = self.store.jobs.get(id.as_str()).await?.map(|stored| stored.value);
        let is_it = |stored: &StoredJob| stored.record.spec == *spec && stored.input.is_none();
        Ok(found.filter(is_it).map(|stored| stored.record))
    }

    /// The job that has this id already, if it is the same.
    async fn same_again(&self, asked: &StoredJob) -> Result<JobRecord, ApiError> {
        let id = &asked.record.id;
        let found = self.stored(id).await?;
        if found.record.spec == asked.record.spec && found.input == asked.input {
            return Ok(found.record);
        }
        Err(ApiError::new(
            ApiCode::Conflict,
            format!("job {id} exists and does something else"),
            "use another id or key, or leave it out",
        ))
    }

    /// The job id that belongs to an idempotency key.
    async fn reserve(
        &self,
        key: &str,
        spec: &JobSpec,
        input: Option<&BlobRef>,
    ) -> Result<JobId, ApiError> {
        let asked = serde_json::to_vec(&(spec, input)).expect("plain data is JSON");
        let mine = StoredKey { job: new_job_id(), asked: digest::of(&asked) };
        let name = digest::of(key.as_bytes());
        let name = name.hex();
        for _ in 0..KEY_TRIED {
            // One that is not known here yet is met when it is created.
            if let Some(found) = self.store.idempotency.get_unconfirmed(name).await? {
                if found.value.asked == mine.asked {
                    return Ok(found.value.job);
                }
                return Err(ApiError::new(
                    ApiCode::Conflict,
                    format!("the idempotency key was used for job {}", found.value.job),
                    "use another key for another job",
                ));
            }
            match self.store.idempotency.create(name, &mine).await {
                Ok(_) => return Ok(mine.job),
                Err(StoreError::Conflict { .. }) => tokio::time::sleep(KEY_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::new(
            ApiCode::Unavailable,
            format!("the idempotency key is taken, and was not readable {KEY_TRIED} times"),
            "try again",
        ))
    }

    /// A job as it is stored.
    pub(crate) async fn stored(&self, id: &JobId) -> Result<StoredJob, ApiError> {
        let stored = self.store.jobs.get(id.as_str()).await?;
        stored.map(|stored| stored.value).ok_or_else(|| unknown(id))
    }

    /// A job with its rounds.
    pub(crate) async fn job(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        let mut record = self.stored(id).await?.record;
        if matches!(record.spec.work, WorkSpec::Train(_)) {
            record.rounds = self.rounds(id).await?;
        }
        Ok(record)
    }

    /// Rounds that ended, the oldest first.
    async fn rounds(&self, id: &JobId) -> Result<Vec<Outcome>, ApiError> {
        Ok(self.outcomes(id).try_collect().await?)
    }

    /// Rounds that ended, the oldest first, as they are read.
    pub(crate) fn outcomes(&self, id: &JobId) -> BoxStream<'static, Result<Outcome, StoreError>> {
        let (store, id) = (self.store.clone(), id.clone());
        let read = move |round| {
            let (rounds, key) = (store.rounds.clone(), round_key(&id, round));
            async move { rounds.get_unconfirmed(&key).await.transpose() }
        };
        let reads = stream::iter(1..).map(read).buffered(READ_AT_ONCE);
        let found = reads.take_while(|read| std::future::ready(read.is_some()));
        found.filter_map(|read| std::future::ready(read.map(|read| Ok(read?.value)))).boxed()
    }

    /// See [`super::Broker::jobs`].
    pub(crate) async fn jobs(
        &self,
        limit: usize,
        before: Option<&JobId>,
    ) -> Result<JobPage, ApiError> {
        let ids = match (self.index.page(limit, before), before) {
            (Some(ids), _) => ids,
            (None, Some(before)) => return Err(unknown(before)),
            (None, None) => Vec::new(),
        };
        // One that is removed meanwhile ends no list.
        let next = ids.last().filter(|_| ids.len() == limit).cloned();
        let read = |id: JobId| async move { self.store.jobs.get(id.as_str()).await };
        let mut reads = stream::iter(ids).map(read).buffered(READ_AT_ONCE);
        let mut jobs = Vec::new();
        while let Some(stored) = reads.next().await {
            jobs.extend(stored?.map(|stored| stored.value.record));
        }
        Ok(JobPage { jobs, next })
    }

    /// See [`super::Broker::cancel`].
    pub(crate) async fn cancel(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        let mark = |stored: &mut StoredJob| {
            let mark = !stored.cancel && !stored.record.state.is_final();
            stored.cancel |= mark;
            mark
        };
        let stored = self.store.jobs.modify(id.as_str(), mark).await?;
        stored.map(|stored| stored.value.record).ok_or_else(|| unknown(id))
    }

    /// See [`super::Broker::retry`].
    pub(crate) async fn retry(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        let StoredJob { record, input, .. } = self.stored(id).await?;
        match record.state {
            JobState::Failed | JobState::Cancelled => {}
            JobState::Accepted | JobState::Placed | JobState::Running | JobState::Succeeded => {
                return Err(ApiError::new(
                    ApiCode::Conflict,
                    format!("job {id} is {:?}, expected failed or cancelled", record.state),
                    "submit it as a new job to run it again",
                ));
            }
        }
        self.check(&record.spec).await?;
        if let Some(input) = &input
            && !self.store.blobs.renew(&input.digest).await.map_err(StoreError::from)?
        {
            return Err(ApiError::new(
                ApiCode::Job(FailureCode::BlobUnavailable),
                format!("the input of job {id} is not stored any more"),
                "submit it as a new job to run it again",
            ));
        }
        self.accept(record.spec, input, None, None).await
    }

    /// See [`super::Broker::wait`].
    pub(crate) async fn wait(&self, id: &JobId, timeout: Millis) -> Result<JobRecord, ApiError> {
        let mut signal = self.index.watch(id);
        let record = self.job(id).await?;
        if record.state.is_final() {
            return Ok(record);
        }
        let ended = signal.wait_for(|signal| signal.ended);
        // Whether it ended or the time did, the record tells.
        let _ = tokio::time::timeout(Duration::from_millis(timeout.0), ended).await;
        self.job(id).await
    }

    /// See [`super::Broker::events`].
    pub(crate) async fn events(
        &self,
        id: &JobId,
        after: u64,
    ) -> Result<BoxStream<'static, JobEvent>, ApiError> {
        let record = self.stored(id).await?.record;
        let (stored, events) = self.store.events(id, after).await?;
        if !record.state.is_final() {
            return Ok(events);
        }
        let sequence = match self.store.end_of(id).await? {
            End::ToldAt(told) if after < told => return Ok(events),
            End::Untold if stored > 0 => return Ok(events),
            End::Untold => 0,
            End::ForgottenBehind(last) if after < last => last,
            // The client has seen it.
            End::ToldAt(_) | End::ForgottenBehind(_) => return Ok(stream::empty().boxed()),
        };
        let JobRecord { id, state, failure, result, ended_at, .. } = record;
        let body = EventBody::Ended { state, failure, result };
        let event = JobEvent { sequence, job: id, at: ended_at.unwrap_or_default(), body };
        Ok(stream::iter([event]).boxed())
    }

    /// Writes the end of a job; it is over once, and the first end holds.
    pub(crate) async fn end_job(&self, id: &JobId, end: JobEnd) -> Result<(), StoreError> {
        let mut ended = false;
        let change = |stored: &mut StoredJob| {
            let record = &mut stored.record;
            ended = !record.state.is_final();
            if ended {
                record.state = end.state;
                record.failure.clone_from(&end.failure);
                record.result.clone_from(&end.result);
                record.ended_at = Some(store::now());
                record.waiting = None;
            }
            ended
        };
        let Some(stored) = self.store.jobs.modify(id.as_str(), change).await? else {
            return Ok(());
        };
        if ended {
            self.count_job(&stored.value.record);
        }
        self.tell_end(&stored.value.record).await
    }

    /// Publishes the event that ends a job, however often it is called.
    pub(crate) async fn tell_end(&self, record: &JobRecord) -> Result<(), StoreError> {
        let body = EventBody::Ended {
            state: record.state,
            failure: record.failure.clone(),
            result: record.result.clone(),
        };
        self.store.publish_event(&record.id, "ended", body).await
    }

    fn count_job(&self, record: &JobRecord) {
        let kind = record.spec.work.kind().as_str();
        let state = serde_json::to_value(record.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default();
        self.metrics.add(Counter::Jobs, format!("kind=\"{kind}\",state=\"{state}\""), 1);
    }
}

fn check_binary(spec: &JobSpec, binary: &Bytes) -> Result<(), ApiError> {
    let WorkSpec::Infer(infer) = &spec.work else { return Ok(()) };
    match &infer.input {
        InferInput::Picture if binary.is_empty() => {
            Err(ApiError::new(ApiCode::InvalidSpec, "the picture is empty", "send a JPEG or PNG"))
        }
        InferInput::Picture => Ok(()),
        InferInput::Tensors { tensors } => {
            let expected: u64 = tensors.iter().map(|tensor| tensor.size.0).sum();
            if expected == binary.len() as u64 {
                return Ok(());
            }
            Err(ApiError::new(
                ApiCode::InvalidSpec,
                format!("the tensors need {expected} bytes, found {}", binary.len()),
                "make the sizes and the data agree",
            ))
        }
    }
}

fn unknown(id: &JobId) -> ApiError {
    ApiError::new(
        ApiCode::UnknownJob,
        format!("no job {id}"),
        "see which jobs there are with 'dunlin jobs', or GET /v1/jobs",
    )
}
