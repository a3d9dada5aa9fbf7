//! What the broker keeps and shows: jobs, events, devices, models. Stored in JetStream as JSON.

use jobs::device::{Hello, Presence, Telemetry};
use jobs::id::{BlobRef, DeviceId, Digest, JobId, Millis, ModelRef, RoundNumber};
use jobs::job::JobState;
use jobs::report::{Failure, InferReport, Progress};
use jobs::round::Outcome;
use jobs::spec::JobSpec;
use jobs::training::Enough;
use models::artifact::ModelConfig;
use serde::{Deserialize, Serialize};

/// Devices that a record names, at most: a job that waits for a busy fleet is offered for weeks.
pub const DEVICES_SHOWN: usize = 16;

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which.
    pub id: JobId,
    /// What.
    pub spec: JobSpec,
    /// Where it is.
    pub state: JobState,
    /// Since the Unix epoch.
    pub accepted_at: Millis,
    /// Since the Unix epoch.
    pub ended_at: Option<Millis>,
    /// The last [`DEVICES_SHOWN`] devices that were given work, latest last.
    pub devices: Vec<DeviceId>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// What came out.
    pub result: Option<JobResult>,
    /// What a training waits for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// For training: what went otherwise than the plan lets expect, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// For training: rounds that ended, oldest first.
    #[serde(default)]
    pub rounds: Vec<Outcome>,
}

/// A part of the list of all jobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobPage {
    /// The newest first.
    pub jobs: Vec<JobRecord>,
    /// Where there may be more: ask for those that are older than this one.
    pub next: Option<JobId>,
}

impl JobRecord {
    /// Notes that a device is given the work.
    pub(crate) fn placed_on(&mut self, device: &DeviceId) {
        self.devices.retain(|other| other != device);
        self.devices.push(device.clone());
        let surplus = self.devices.len().saturating_sub(DEVICES_SHOWN);
        self.devices.drain(..surplus);
    }
}

/// What came out of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobResult {
    /// A model's answer; raw outputs are in the blob.
    Infer {
        /// Who answered.
        device: DeviceId,
        /// The answer.
        report: Box<InferReport>,
        /// Raw outputs one after another, as `report.outputs` says.
        outputs: Option<BlobRef>,
    },
    /// The trained model.
    Train {
        /// The registered version.
        model: ModelRef,
        /// The round whose parameters it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        round: Option<RoundNumber>,
        /// Why no further round followed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        enough: Option<Enough>,
    },
    /// Measurements by device.
    Telemetry {
        /// In order of device.
        devices: Vec<(DeviceId, Telemetry)>,
    },
}

/// Too few devices are there for a round to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Which round.
    pub round: u32,
    /// What is waited for, in words: how many devices could take part, and why others cannot.
    pub reason: String,
    /// When that began to be so, since the Unix epoch.
    pub since: Millis,
    /// Until when it is waited for, at the latest: the round fails then, or the job.
    pub until: Millis,
}

/// Something that happened to a job, as on `events.<job>.<event>` and in SSE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Place in the stream `EVENTS`: SSE's event id; 0 before it is stored.
    #[serde(default)]
    pub sequence: u64,
    /// Which job.
    pub job: JobId,
    /// When, since the Unix epoch.
    pub at: Millis,
    /// What.
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventBody {
    /// Stored; it will not be lost.
    Accepted,
    /// Offered to a device.
    Placed {
        /// Who.
        device: DeviceId,
    },
    /// A device of a round is on its way.
    Progress {
        /// Who.
        device: DeviceId,
        /// Which round.
        round: u32,
        /// How far.
        progress: Progress,
    },
    /// A round began.
    RoundStarted {
        /// Which.
        round: u32,
        /// Who was invited.
        devices: Vec<DeviceId>,
    },
    /// A round that is to begin waits for devices; told when it begins to, and when the reason changes.
    Waiting(Waiting),
    /// A round ended.
    RoundEnded(Box<Outcome>),
    /// The job is over; nothing follows.
    Ended {
        /// How.
        state: JobState,
        /// Why it did not succeed.
        failure: Option<Failure>,
        /// What came out.
        result: Option<JobResult>,
    },
}

impl EventBody {
    /// What fits into a message whatever the number of devices: of a round that ended without what
    /// became of each update, which the stored outcome tells.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        if let EventBody::RoundEnded(outcome) = &mut self {
            outcome.influences.clear();
        }
        self
    }

    /// The word in the subject and in SSE.
    pub fn name(&self) -> &'static str {
        match self {
            EventBody::Accepted => "accepted",
            EventBody::Placed { .. } => "placed",
            EventBody::Progress { .. } => "progress",
            EventBody::RoundStarted { .. } => "round_started",
            EventBody::Waiting(_) => "waiting",
            EventBody::RoundEnded(_) => "round_ended",
            EventBody::Ended { .. } => "ended",
        }
    }
}

/// A device as people see it; offline ones too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// What it said of itself last.
    pub hello: Hello,
    /// Whether it can be given work.
    pub presence: Presence,
    /// When it was last heard of, since the Unix epoch; the broker's clock. 0 for a device that was
    /// not heard of since the broker was started, and is known from before.
    pub last_seen: Millis,
    /// Its last measurements.
    pub telemetry: Option<Telemetry>,
    /// Tasks at work by its last heartbeat.
    pub tasks: usize,
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Name, version, and digest of the manifest.
    #[serde(flatten)]
    pub reference: ModelRef,
    /// The ONNX file.
    pub onnx: BlobRef,
    /// The same model as an ONNX graph in training form, when a training made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<BlobRef>,
    /// The engine that answers with it, where only this one has its operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How to use it.
    pub config: ModelConfig,
    /// When it was registered, since the Unix epoch.
    pub registered_at: Millis,
}

impl ModelRecord {
    /// The digests of its blobs, but for those that only the manifest names.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        let layers = std::iter::once(&self.onnx).chain(&self.training);
        layers.map(|layer| &layer.digest).chain([&self.reference.digest])
    }
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredJob {
    /// What people see.
    pub record: JobRecord,
    /// The binary part of an infer job.
    #[serde(default)]
    pub input: Option<BlobRef>,
    /// Whether someone asked it to stop.
    #[serde(default)]
    pub cancel: bool,
    /// The newest parameters of a training that did not succeed: another may go on from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BlobRef>,
    /// What the strategy of a training kept with those, or with its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_state: Option<BlobRef>,
    /// The parameters of the newest rounds of a training that keeps them, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_rounds: Vec<(RoundNumber, BlobRef)>,
    /// What the strategy kept with those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_states: Vec<(RoundNumber, BlobRef)>,
    /// What a training went on from, for those that go on from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went_on: Option<WentOn>,
}

/// The round of another job that a training went on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WentOn {
    /// Which job.
    pub job: JobId,
    /// Which of its rounds.
    pub round: RoundNumber,
    /// Rounds until then, those of all jobs before that job too.
    pub rounds_before: u32,
    /// Whether control variates of devices went along.
    pub controls: bool,
}

impl StoredJob {
    /// One that is accepted, with the binary part of an infer job.
    pub(crate) fn of(record: JobRecord, input: Option<BlobRef>) -> Self {
        Self {
            record,
            input,
            cancel: false,
            parameters: None,
            server_state: None,
            kept_rounds: Vec::new(),
            kept_states: Vec::new(),
            went_on: None,
        }
    }
}

/// What an idempotency key was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    /// The job that it made.
    pub job: JobId,
    /// The digest of what was asked.
    pub asked: Digest,
}
