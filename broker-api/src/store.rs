//! JetStream as the broker uses it: typed buckets with compare-and-set, events, work, blobs.
//!
//! The only place on the broker's side that knows streams and keys. Holds no rule about jobs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::header::HeaderMap;
use async_nats::jetstream::{self, Context, stream::Stream};
use async_nats::{Client, connection::State};
use bytes::Bytes;
use jobs::device::Hello;
use jobs::id::{JobId, Millis, ModelName, ModelVersion};
use jobs::round::Outcome;
use jobs::spec::JobKind;
use jobs::{subject, wire};
use link::blobs::{BlobError, Blobs};
use link::layout::{self, LayoutError, Made};
use link::publish::SendError;
use tokio::sync::watch;

use crate::coordinator::state::StoredTraining;
use crate::error::{ApiCode, ApiError};
use crate::record::{EventBody, JobEvent, ModelRecord, StoredJob, StoredKey};

pub mod bucket;
pub mod events;
mod packed;
pub mod progress;

pub use bucket::{Bucket, Change, Versioned};
pub use progress::Progress;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Someone else wrote in between.
    #[error("{key:?} was changed by someone else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// What is stored is not what was written.
    #[error("{bucket}/{key} cannot be read: {reason}")]
    Damaged {
        /// The bucket.
        bucket: &'static str,
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// NATS does not answer as it should.
    #[error("JetStream does not answer while {doing}: {reason}")]
    Unavailable {
        /// What was going on.
        doing: String,
        /// What happened.
        reason: String,
    },
    /// A message could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A blob could not be moved.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Old things are removed while more than this share of a bucket is taken: when one is full,
/// nothing is accepted and no round ends.
pub const FILLED_MAX: f64 = 0.5;

/// Everything that is stored; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    context: Context,
    layout: layout::Layout,
    /// When the streams were made, as they were looked at last.
    made: Arc<watch::Sender<Made>>,
    /// Blobs by digest.
    pub blobs: Blobs,
    /// Job id -> job.
    pub jobs: Bucket<StoredJob>,
    /// Job id -> state of a training.
    pub trainings: Bucket<StoredTraining>,
    /// [`crate::coordinator::state::round_key`] -> how a round ended.
    pub rounds: Bucket<Outcome>,
    /// Idempotency key -> job.
    pub idempotency: Bucket<StoredKey>,
    /// [`model_key`] -> model version.
    pub models: Bucket<ModelRecord>,
    /// Device id -> what it said of itself last.
    pub devices: Bucket<Hello>,
}

impl Store {
    /// Makes what is missing and opens everything.
    ///
    /// # Errors
    /// When JetStream is absent or refuses a stream or bucket.
    pub async fn open(client: Client, replicas: usize) -> anyhow::Result<Self> {
        let context = jetstream::new(client.clone());
        let layout = layout::Layout { replicas, ..layout::Layout::default() };
        layout::ensure(&context, layout).await?;
        let made = watch::Sender::new(Made::look(&context).await?);
        Ok(Self {
            blobs: Blobs::new(client.clone()),
            jobs: Bucket::open(&context, &made, layout::BUCKET_JOBS, "*").await?,
            trainings: Bucket::open(&context, &made, layout::BUCKET_TRAININGS, "*").await?,
            rounds: Bucket::open(&context, &made, layout::BUCKET_TRAININGS, "*.*").await?,
            idempotency: Bucket::open(&context, &made, layout::BUCKET_IDEMPOTENCY, "*").await?,
            models: Bucket::open(&context, &made, layout::BUCKET_MODELS, "*.*").await?,
            devices: Bucket::open(&context, &made, layout::BUCKET_DEVICES, "*").await?,
            client,
            context,
            layout,
            made: Arc::new(made),
        })
    }

    /// Makes streams and buckets again that are gone; whoever follows them is told. Those that were
    /// lost since this was called last, made again by this broker or another one.
    ///
    /// # Errors
    /// [`LayoutError`]
    pub async fn mend(&self) -> Result<Vec<String>, LayoutError> {
        let mut found = Made::look(&self.context).await?;
        if found.lacks_any() {
            layout::ensure(&self.context, self.layout).await?;
            found = Made::look(&self.context).await?;
        }
        let lost = self.made.borrow().lost(&found);
        if !lost.is_empty() {
            self.made.send_replace(found);
        }
        Ok(lost)
    }

    /// When the streams were made, as they were looked at last.
    pub(crate) fn made(&self) -> watch::Receiver<Made> {
        self.made.subscribe()
    }

    /// How much of their room the jobs, or the trainings with their rounds, have taken, whichever
    /// is fuller, 0 to 1.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn filled(&self) -> Result<f64, StoreError> {
        Ok(self.jobs.filled().await?.max(self.trainings.filled().await?))
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// JetStream on the connection.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Asks JetStream whether it is there; it also has to take what is stored.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ready(&self) -> Result<(), StoreError> {
        let fail = |reason: String| StoreError::Unavailable { doing: "asking".to_owned(), reason };
        if self.client.connection_state() != State::Connected {
            return Err(fail("NATS is not connected".to_owned()));
        }
        let asked = tokio::time::timeout(Duration::from_secs(2), self.context.query_account());
        match asked.await {
            Ok(Ok(_)) => match self.refusal() {
                None => Ok(()),
                Some(reason) => Err(fail(format!(
                    "nothing is stored ({reason}): where the log of nats-server says \"no space left \
                     on device\", make room and start it again"
                ))),
            },
            Ok(Err(error)) => Err(fail(error.to_string())),
            Err(_) => Err(fail("no answer within 2 s".to_owned())),
        }
    }

    /// Why a bucket takes no values now.
    fn refusal(&self) -> Option<String> {
        let refusals = [
            self.trainings.refusal(),
            self.jobs.refusal(),
            self.rounds.refusal(),
            self.models.refusal(),
            self.idempotency.refusal(),
            self.devices.refusal(),
        ];
        refusals.into_iter().flatten().next()
    }

    /// Puts an event into the stream `EVENTS`; the same `id` of the same job is stored once.
    ///
    /// # Errors
    /// [`StoreError::Send`].
    pub async fn publish_event(
        &self,
        job: &JobId,
        id: &str,
        body: EventBody,
    ) -> Result<(), StoreError> {
        let subject = subject::event(job, body.name());
        let mut event = JobEvent { sequence: 0, job: job.clone(), at: now(), body };
        let id = format!("{job}.{id}");
        let mut payload = wire::encode(&event);
        if link::publish::check_size(&self.client, payload.len()).is_err() {
            event.body = event.body.shortened();
            payload = wire::encode(&event);
        }
        link::publish::store(&self.context, &subject, &id, HeaderMap::new(), payload).await?;
        Ok(())
    }

    /// Puts an event into the stream without waiting: for what may be lost.
    pub async fn mention_event(&self, job: &JobId, body: EventBody) {
        let subject = subject::event(job, body.name());
        let event = JobEvent { sequence: 0, job: job.clone(), at: now(), body };
        let sent = link::publish::publish(&self.client, subject, None, wire::encode(&event)).await;
        if let Err(error) = sent {
            tracing::debug!(%job, %error, "an event was not sent");
        }
    }

    /// Puts a job into the work queue; once, however often it is called while it is there.
    ///
    /// # Errors
    /// [`StoreError::Send`].
    pub async fn queue_work(&self, kind: JobKind, job: &JobId) -> Result<(), StoreError> {
        let subject = subject::work(kind, job);
        let payload = Bytes::from_static(b"{}");
        link::publish::store(&self.context, &subject, job.as_str(), HeaderMap::new(), payload)
            .await?;
        Ok(())
    }

    /// Whether a job is in the work queue.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn has_work(&self, kind: JobKind, job: &JobId) -> Result<bool, StoreError> {
        let stream = self.stream(subject::STREAM_WORK).await?;
        match stream.get_last_raw_message_by_subject(&subject::work(kind, job)).await {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                jetstream::stream::LastRawMessageErrorKind::NoMessageFound => Ok(false),
                jetstream::stream::LastRawMessageErrorKind::InvalidSubject
                | jetstream::stream::LastRawMessageErrorKind::JetStream(_)
                | jetstream::stream::LastRawMessageErrorKind::Other => {
                    Err(unavailable("looking into the work queue", &error))
                }
            },
        }
    }

    /// Forgets the reports of a job that is over.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn purge_reports(&self, job: &JobId) -> Result<(), StoreError> {
        let stream = self.stream(subject::STREAM_REPORTS).await?;
        let purge = stream.purge().filter(subject::reports_of(job)).await;
        purge.map(drop).map_err(|error| unavailable("forgetting reports", &error))
    }

    /// A stream, without asking for its state.
    pub(crate) async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        let stream = self.context.get_stream_no_info(name).await;
        stream.map_err(|error| unavailable("opening a stream", &error))
    }
}

/// The key of a model version in the bucket `models`: dots of the version become `=d`.
pub fn model_key(name: &ModelName, version: &ModelVersion) -> String {
    format!("{name}.{}", version.as_str().replace('.', "=d"))
}

/// Milliseconds since the Unix epoch on this machine's clock.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) fn unavailable(doing: impl Into<String>, error: &dyn std::error::Error) -> StoreError {
    StoreError::Unavailable { doing: doing.into(), reason: error.to_string() }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let (code, hint) = match &error {
            StoreError::Conflict { .. } => (ApiCode::Conflict, "look at it again and try again"),
            StoreError::Damaged { .. } => (ApiCode::Internal, "see the broker's log"),
            StoreError::Send(SendError::TooLarge { .. }) => {
                (ApiCode::TooLarge, "raise max_payload in the nats-server's configuration")
            }
            StoreError::Blob(error) if !matches!(error, BlobError::Unavailable { .. }) => {
                (ApiCode::Job(error.code()), "")
            }
            StoreError::Unavailable { .. } | StoreError::Send(_) | StoreError::Blob(_) => {
                (ApiCode::Unavailable, "see whether nats-server is well, then try again")
            }
        };
        ApiError::new(code, error.to_string(), hint)
    }
}
