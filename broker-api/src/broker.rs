//! The broker as a handle: all that its HTTP and NATS faces may ask of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jobs::id::{DatasetName, DeviceId, Digest, JobId, Millis, ModelName, ModelVersion};
use jobs::report::InferReport;
use jobs::selector::Selector;
use jobs::spec::{InferSpec, JobSpec, ModelQuery};
use link::blobs::BlobError;
use link::connect::{self, Options};
use models::artifact::ModelConfig;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::coordinator::Trainings;
use crate::coordinator::state::round_key;
use crate::coordinator::waiting::Checked;
use crate::error::ApiError;
use crate::fleet::Fleet;
use crate::gateway::{self, Gateway};
use crate::history::RoundRecord;
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::nats_server;
use crate::record::{DeviceRecord, JobEvent, JobPage, JobRecord, ModelRecord, Waiting};
use crate::room::Room;
use crate::store::{Store, StoreError};

pub(crate) mod durable;
mod index;
mod mending;
pub(crate) mod register;
pub(crate) mod registry;
mod sweep;
pub(crate) mod trial;
mod unreferenced;
pub(crate) mod work;

use index::Index;
use registry::Registry;
use trial::Trials;

pub(crate) use durable::JobEnd;
pub(crate) use index::Signal;

/// How long NATS may take to be reached when a broker starts.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long tasks may take to store what they hold when a broker stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Messages of one subscription that may wait, at most: a burst of a large fleet.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// How a broker is run.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `nats://host:port`, several separated by commas.
    pub nats: String,
    /// Bytes of a request body or a registered model, at most.
    pub body_bytes_max: usize,
    /// NATS servers that hold each stream: 1, or 3 or 5 in a cluster.
    pub replicas: usize,
    /// Data sets on which this broker judges models.
    pub data: BTreeMap<DatasetName, PathBuf>,
    /// The program `dunlin`, which loads models before they are registered, each in a process of its
    /// own; without one they are loaded in this process.
    pub tried_by: Option<PathBuf>,
}

/// A cheap handle to the running broker. When the last one is dropped, the broker ends at once,
/// as if it were killed; [`Broker::stop`] ends it in good order.
#[derive(Debug, Clone)]
pub struct Broker {
    pub(crate) core: Arc<Core>,
    _guard: Arc<DropGuard>,
}

/// Rounds of a training that ended, as they are read.
pub type Rounds = BoxStream<'static, Result<RoundRecord, StoreError>>;

/// Everything that the broker's tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    /// Names this broker, anew with each start.
    pub(crate) name: String,
    pub(crate) config: BrokerConfig,
    pub(crate) store: Store,
    pub(crate) fleet: Fleet,
    pub(crate) registry: Registry,
    pub(crate) gateway: Gateway,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) index: Index,
    pub(crate) trainings: Trainings,
    pub(crate) judge: Judge,
    /// For the bodies of requests, however they come.
    pub(crate) room: Room,
    /// For one plan at a time whose model is looked into: its memory is that of two models.
    pub(crate) plans: Semaphore,
    pub(crate) trials: Trials,
    /// Cancelled when nothing new is to be begun.
    pub(crate) closing: CancellationToken,
    /// Cancelled when everything is to end where it is.
    killed: CancellationToken,
    tasks: TaskTracker,
}

/// An answer and who gave it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who answered.
    pub device: DeviceId,
    /// What.
    pub report: InferReport,
    /// Raw outputs one after another, as `report.outputs` says.
    pub outputs: Bytes,
}

/// A job id that was never used: time-ordered (ULID, lower case).
///
/// # Panics
/// Never: letters and digits are an id.
pub fn new_job_id() -> JobId {
    let text = ulid::Ulid::generate().to_string().to_ascii_lowercase();
    JobId::parse(&text).expect("letters and digits are an id")
}

impl Core {
    /// Runs a task until it ends or the broker is killed; [`Broker::stop`] waits for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // What is around it has room for all of it more than once.
        let task = Box::pin(task);
        self.tasks.spawn(self.killed.clone().run_until_cancelled_owned(task));
    }
}

impl Broker {
    /// Connects, makes the streams and buckets that are missing, resumes what was under way.
    ///
    /// # Errors
    /// When NATS cannot be reached within 10 s, or is older than 2.11, or has no JetStream; when a
    /// data set cannot be read.
    pub async fn start(config: BrokerConfig) -> anyhow::Result<Self> {
        Box::pin(Self::begin(config)).await
    }

    async fn begin(config: BrokerConfig) -> anyhow::Result<Self> {
        let name = new_job_id().to_string();
        let judge = Judge::start(config.data.clone()).await?;
        let store = Box::pin(open_store(&config, &name)).await?;
        Box::pin(Self::begin_with(config, name, judge, store)).await
    }

    async fn begin_with(
        config: BrokerConfig,
        name: String,
        judge: Judge,
        store: Store,
    ) -> anyhow::Result<Self> {
        let killed = CancellationToken::new();
        let guard = killed.clone().drop_guard();
        let fleet = Box::pin(Fleet::start(store.clone(), killed.clone())).await?;
        let registry = Box::pin(Registry::start(store.clone(), killed.clone())).await;
        let metrics = Arc::new(Metrics::default());
        let gateway = Box::pin(Gateway::start(
            store.clone(),
            fleet.clone(),
            registry.clone(),
            metrics.clone(),
            killed.clone(),
        ))
        .await?;
        let index = Box::pin(Index::start(&store, killed.clone())).await;
        let (trainings, begun) = Trainings::new(store.clone(), name.clone());
        let core = Arc::new(Core {
            name,
            room: Room::new(config.body_bytes_max),
            plans: Semaphore::new(1),
            trials: Trials::by(config.tried_by.clone()),
            config,
            store,
            fleet,
            registry,
            gateway,
            metrics,
            index,
            trainings,
            judge,
            closing: killed.child_token(),
            killed,
            tasks: TaskTracker::new(),
        });
        gateway::front::serve(core.clone(), core.closing.clone()).await?;
        core.spawn(work::run(core.clone()));
        core.spawn(sweep::run(core.clone()));
        core.spawn(mending::run(core.clone()));
        core.spawn(unreferenced::run(core.clone()));
        core.spawn(crate::coordinator::run(core.clone(), begun));
        Ok(Self { core, _guard: Arc::new(guard) })
    }

    /// A broker that moves so many bytes of blobs a second, at most.
    #[cfg(test)]
    pub(crate) async fn start_slow(config: BrokerConfig, bytes: u64) -> anyhow::Result<Self> {
        let name = new_job_id().to_string();
        let judge = Judge::start(config.data.clone()).await?;
        let mut store = Box::pin(open_store(&config, &name)).await?;
        store.blobs = store.blobs.limited_to(bytes);
        Box::pin(Self::begin_with(config, name, judge, store)).await
    }

    /// Stops taking work and waits for tasks to store what they hold.
    pub async fn stop(self) {
        self.core.closing.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(STOP_WITHIN, self.core.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end within {STOP_WITHIN:?}");
        }
        if let Err(error) = self.core.store.client().flush().await {
            tracing::warn!(%error, "the last messages may not have been sent");
        }
        self.core.killed.cancel();
    }

    /// Checks a job without accepting it; the devices that match now.
    ///
    /// # Errors
    /// What [`Broker::submit`] would refuse.
    pub async fn check(&self, spec: &JobSpec) -> Result<Checked, ApiError> {
        self.core.check(spec).await
    }

    /// Accepts a job: when this returns it is stored and will end exactly once.
    ///
    /// The same `id` (or the same `idempotency_key`) with the same spec gives the same job; with
    /// another spec it is a conflict. `binary` is the binary part of an infer job.
    ///
    /// # Errors
    /// A spec that cannot be carried out, a conflict, or NATS that does not answer.
    pub async fn submit(
        &self,
        spec: JobSpec,
        binary: Bytes,
        id: Option<JobId>,
        idempotency_key: Option<String>,
    ) -> Result<JobRecord, ApiError> {
        self.core.submit(spec, binary, id, idempotency_key).await
    }

    /// A job.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn job(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        self.core.job(id).await
    }

    /// Jobs, the newest first, `limit` at most, older than `before` if given; without their
    /// rounds.
    ///
    /// # Errors
    /// An unknown job to begin behind, or NATS that does not answer.
    pub async fn jobs(&self, limit: usize, before: Option<JobId>) -> Result<JobPage, ApiError> {
        self.core.jobs(limit, before.as_ref()).await
    }

    /// Asks a job to stop; its record afterwards.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn cancel(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        self.core.cancel(id).await
    }

    /// Submits a job that did not succeed again, as a new job.
    ///
    /// # Errors
    /// A conflict when it succeeded or is not over.
    pub async fn retry(&self, id: &JobId) -> Result<JobRecord, ApiError> {
        self.core.retry(id).await
    }

    /// Waits until a job ends, at most so long; its record then.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn wait(&self, id: &JobId, timeout: Millis) -> Result<JobRecord, ApiError> {
        self.core.wait(id, timeout).await
    }

    /// Events of a job after a sequence, those to come too; ends with the job.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn events(
        &self,
        id: &JobId,
        after: u64,
    ) -> Result<BoxStream<'static, JobEvent>, ApiError> {
        self.core.events(id, after).await
    }

    /// Rounds of a training that ended, the oldest first, as they are read; and what it waits for.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn rounds(&self, id: &JobId) -> Result<(Rounds, Option<Waiting>), ApiError> {
        let stored = self.core.stored(id).await?;
        let outcomes = self.core.outcomes(id);
        let rounds = outcomes.map(|outcome| Ok(RoundRecord::of(&outcome?))).boxed();
        Ok((rounds, stored.record.waiting))
    }

    /// A round of a training, if it ended.
    ///
    /// # Errors
    /// An unknown job, or NATS that does not answer.
    pub async fn round(&self, id: &JobId, round: u32) -> Result<Option<RoundRecord>, ApiError> {
        self.core.stored(id).await?;
        let found = self.core.store.rounds.get(&round_key(id, round)).await?;
        Ok(found.map(|found| RoundRecord::of(&found.value)))
    }

    /// One request, answered now or not at all: nothing is stored.
    ///
    /// # Errors
    /// Why no device answered within the deadline; at once when no device that matches is online.
    pub async fn infer(
        &self,
        spec: InferSpec,
        binary: Bytes,
        selector: Selector,
        deadline: Millis,
    ) -> Result<Answer, ApiError> {
        self.core.gateway.infer(spec, binary, selector, deadline, None).await
    }

    /// Every device that ever joined, by id.
    pub fn devices(&self) -> Vec<DeviceRecord> {
        self.core.fleet.records()
    }

    /// Registers a model version; without a version, the next number. Checks the ONNX file.
    ///
    /// # Errors
    /// An ONNX file that cannot be used, a version that has other bytes, NATS that does not answer.
    pub async fn register(
        &self,
        name: &ModelName,
        version: Option<ModelVersion>,
        onnx: Bytes,
        config: ModelConfig,
    ) -> Result<ModelRecord, ApiError> {
        self.core.register(name, version, onnx, config).await
    }

    /// A model version; the newest when the query names none.
    ///
    /// # Errors
    /// An unknown model or version.
    pub async fn model(&self, query: &ModelQuery) -> Result<ModelRecord, ApiError> {
        Ok((*self.core.registry.find(query).await?).clone())
    }

    /// Every version of every model, by name, the newest first.
    pub fn models(&self) -> Vec<ModelRecord> {
        self.core.registry.list()
    }

    /// Removes a version from the registry; its blobs stay for an hour, and while anything refers to
    /// them.
    ///
    /// # Errors
    /// An unknown model or version, or NATS that does not answer.
    pub async fn remove_model(&self, query: &ModelQuery) -> Result<(), ApiError> {
        self.core.registry.remove(query).await
    }

    /// A blob by digest.
    ///
    /// # Errors
    /// An unknown blob, or NATS that does not answer.
    pub async fn blob(&self, digest: &Digest) -> Result<Bytes, ApiError> {
        match self.core.store.blobs.get_by_digest(digest).await {
            Ok(bytes) => Ok(bytes),
            Err(BlobError::NotFound { .. }) => Err(registry::blob_error(digest)),
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// Bytes of a NATS message, at most.
    pub(crate) fn max_payload(&self) -> usize {
        link::publish::max_payload(self.core.store.client())
    }

    /// Asks NATS and JetStream whether they are there.
    ///
    /// # Errors
    /// [`crate::error::ApiCode::Unavailable`], saying which does not answer.
    pub async fn ready(&self) -> Result<(), ApiError> {
        Ok(self.core.store.ready().await?)
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        self.core.metrics.text(&self.core.fleet.records())
    }
}

async fn open_store(config: &BrokerConfig, name: &str) -> anyhow::Result<Store> {
    let options = Options {
        servers: config.nats.clone(),
        name: format!("dunlin {name}"),
        subscription_capacity: SUBSCRIPTION_CAPACITY,
        ..Options::default()
    };
    let waiting = |error: &connect::LinkError| tracing::info!(%error, "waiting for NATS");
    let connecting = connect::connect_patiently(&options, waiting);
    let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
    let shown = connect::without_password(&config.nats);
    let (client, _) = connected.with_context(|| {
        format!(
            "NATS at {shown} was not reached within {CONNECT_WITHIN:?}: is nats-server running?"
        )
    })??;
    let version = client.server_info().version;
    let (major, minor) = nats_server::VERSION_MIN;
    anyhow::ensure!(
        nats_server::parse_version(&version) >= Some(nats_server::VERSION_MIN),
        "NATS at {shown} is nats-server {version}, expected {major}.{minor} or newer"
    );
    Box::pin(Store::open(client, config.replicas)).await
}

#[cfg(test)]
mod tests;
