//! The broker as a handle: all that its HTTP and NATS faces may ask of it.

use bytes::Bytes;
use futures::stream::BoxStream;
use jobs::id::{DeviceId, Digest, JobId, Millis, ModelName, ModelVersion};
use jobs::report::InferReport;
use jobs::selector::Selector;
use jobs::spec::{InferSpec, JobSpec, ModelQuery};
use models::artifact::ModelConfig;

use crate::error::ApiError;
use crate::record::{DeviceRecord, JobEvent, JobRecord, ModelRecord};

/// How a broker is run.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `nats://host:port`, several separated by commas.
    pub nats: String,
    /// Bytes of a request body or a registered model, at most.
    pub body_bytes_max: usize,
}

/// A cheap handle to the running broker.
#[derive(Debug, Clone)]
pub struct Broker {}

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

impl Broker {
    /// Connects, makes the streams and buckets that are missing, resumes what was under way.
    ///
    /// # Errors
    /// When NATS cannot be reached within 10 s, or is older than 2.11, or has no JetStream.
    pub async fn start(_config: BrokerConfig) -> anyhow::Result<Self> {
        unimplemented!()
    }

    /// Stops taking work and waits for tasks to store what they hold.
    pub async fn stop(self) {
        unimplemented!()
    }

    /// Checks a job without accepting it; the devices that match now.
    pub async fn check(&self, _spec: &JobSpec) -> Result<Vec<DeviceId>, ApiError> {
        unimplemented!()
    }

    /// Accepts a job: when this returns it is stored and will end exactly once.
    ///
    /// The same `id` (or the same `idempotency_key`) with the same spec gives the same job; with
    /// another spec it is a conflict. `binary` is the binary part of an infer job.
    pub async fn submit(
        &self,
        _spec: JobSpec,
        _binary: Bytes,
        _id: Option<JobId>,
        _idempotency_key: Option<String>,
    ) -> Result<JobRecord, ApiError> {
        unimplemented!()
    }

    /// A job.
    pub async fn job(&self, _id: &JobId) -> Result<JobRecord, ApiError> {
        unimplemented!()
    }

    /// Jobs, the newest first, `limit` at most, older than `before` if given.
    pub async fn jobs(
        &self,
        _limit: usize,
        _before: Option<JobId>,
    ) -> Result<Vec<JobRecord>, ApiError> {
        unimplemented!()
    }

    /// Asks a job to stop; its record afterwards.
    pub async fn cancel(&self, _id: &JobId) -> Result<JobRecord, ApiError> {
        unimplemented!()
    }

    /// Submits a job that did not succeed again, as a new job.
    pub async fn retry(&self, _id: &JobId) -> Result<JobRecord, ApiError> {
        unimplemented!()
    }

    /// Waits until a job ends, at most so long; its record then.
    pub async fn wait(&self, _id: &JobId, _timeout: Millis) -> Result<JobRecord, ApiError> {
        unimplemented!()
    }

    /// Events of a job after a sequence, those to come too; ends with the job.
    pub async fn events(
        &self,
        _id: &JobId,
        _after: u64,
    ) -> Result<BoxStream<'static, JobEvent>, ApiError> {
        unimplemented!()
    }

    /// One request, answered now or not at all: nothing is stored.
    pub async fn infer(
        &self,
        _spec: InferSpec,
        _binary: Bytes,
        _selector: Selector,
        _deadline: Millis,
    ) -> Result<Answer, ApiError> {
        unimplemented!()
    }

    /// Every device that ever joined, by id.
    pub fn devices(&self) -> Vec<DeviceRecord> {
        unimplemented!()
    }

    /// Registers a model version; without a version, the next number. Checks the ONNX file.
    pub async fn register(
        &self,
        _name: &ModelName,
        _version: Option<ModelVersion>,
        _onnx: Bytes,
        _config: ModelConfig,
    ) -> Result<ModelRecord, ApiError> {
        unimplemented!()
    }

    /// A model version; the newest when the query names none.
    pub async fn model(&self, _query: &ModelQuery) -> Result<ModelRecord, ApiError> {
        unimplemented!()
    }

    /// Every version of every model, by name, the newest first.
    pub async fn models(&self) -> Result<Vec<ModelRecord>, ApiError> {
        unimplemented!()
    }

    /// Removes a version from the registry; blobs stay until nothing refers to them.
    pub async fn remove_model(&self, _query: &ModelQuery) -> Result<(), ApiError> {
        unimplemented!()
    }

    /// A blob by digest.
    pub async fn blob(&self, _digest: &Digest) -> Result<Bytes, ApiError> {
        unimplemented!()
    }

    /// Asks NATS and JetStream whether they are there.
    pub async fn ready(&self) -> Result<(), ApiError> {
        unimplemented!()
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        unimplemented!()
    }
}
