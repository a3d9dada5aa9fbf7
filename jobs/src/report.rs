//! What happened: reports of tasks, results, and the closed set of failures.

use serde::{Deserialize, Serialize};

use crate::device::Telemetry;
use crate::id::{BlobRef, Bytes, DeviceId, Millis, ModelRef};
use crate::spec::{TaskId, TensorHeader, is_default};

/// Examples that a device may speak of, at most: those of all devices of a round have a sum.
pub const EXAMPLES_MAX: u64 = 1 << 40;
/// The highest loss that a device may tell: it is computed as `f32`, and none is below 0.
pub const LOSS_MAX: f64 = f32::MAX as f64;

/// What a device says of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Which task.
    pub task: TaskId,
    /// Which device.
    pub device: DeviceId,
    /// What.
    pub body: ReportBody,
}

/// What became of a task. `Accepted` and `Progress` may repeat; exactly one of the others ends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ReportBody {
    /// The device works on it. Not told of a task of a round that ends soon after.
    Accepted,
    /// The device is on its way.
    Progress(Progress),
    /// The local update is in the object store, or held on the device.
    Trained(UpdateReport),
    /// What the device says at a stage of the secure aggregation is in the object store.
    Exchanged(ExchangeReport),
    /// The parameters were judged.
    Evaluated(EvaluationReport),
    /// The model answered; outputs travel in the binary part unless a client got them directly.
    Inferred(InferReport),
    /// The device was measured.
    Measured(Box<Telemetry>),
    /// The device does not take it.
    Declined(Failure),
    /// The device took it and could not do it.
    Failed(Failure),
    /// The device stopped because it was asked to.
    Cancelled,
}

impl ReportBody {
    /// Whether nothing follows.
    pub fn is_final(&self) -> bool {
        match self {
            ReportBody::Accepted | ReportBody::Progress(_) => false,
            ReportBody::Trained(_)
            | ReportBody::Exchanged(_)
            | ReportBody::Evaluated(_)
            | ReportBody::Inferred(_)
            | ReportBody::Measured(_)
            | ReportBody::Declined(_)
            | ReportBody::Failed(_)
            | ReportBody::Cancelled => true,
        }
    }
}

/// How far a training task is. What is optional older agents do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean loss since the last report.
    pub loss: f64,
    /// Training speed since the last report.
    pub examples_per_second: f64,
    /// Share of examples classified rightly since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The pass over the local examples that is going on, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// Time to the last step at the mean speed of this training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<Millis>,
}

/// What a device says at a stage of the secure aggregation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExchangeReport {
    /// Shares or their values (JSON), or the masked update (little-endian `u32`, behind the last
    /// parameter the weight).
    pub message: BlobRef,
}

/// A local update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateReport {
    /// The parameters after local training as safetensors, or an update as the task wants it; where
    /// updates are masked, the device's keys (JSON).
    pub parameters: BlobRef,
    /// Local examples: the weight in the mean.
    pub examples: u64,
    /// Mean loss over the last local epoch.
    pub loss: f64,
    /// Share of training examples classified rightly in the last local epoch.
    pub accuracy: f64,
    /// Steps taken.
    pub steps: u64,
    /// Time from the offer's arrival to the upload's end.
    pub duration_ms: Millis,
    /// Which engine trained.
    pub engine: String,
    /// Mean loss of the round's parameters on the local examples, where the task asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_loss: Option<f64>,
    /// By what the device's control variate changed (safetensors, as the parameters; 0 for what is
    /// not trained), where the task has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_change: Option<BlobRef>,
    /// Whether `parameters` are not in the object store but [held](crate::held) on the device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub held: bool,
    /// CRC-32 (IEEE 802.3) of held parameters: quicker to compare than their digest where whoever made
    /// them is asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<u32>,
    /// Whether the device had lost its control variate of the round that it was told of, and began with
    /// zero.
    #[serde(default, skip_serializing_if = "is_default")]
    pub control_anew: bool,
}

impl UpdateReport {
    /// Bytes that the device sends of it.
    pub fn sent(&self) -> Bytes {
        let change = self.control_change.as_ref().map_or(0, |change| change.size.0);
        Bytes(self.parameters.size.0.saturating_add(change))
    }

    /// Why nothing can be made of it, if nothing can: the name, the value, the limit.
    pub fn problem(&self) -> Option<String> {
        if self.examples == 0 {
            return Some("the update was made from 0 examples".to_owned());
        }
        examples_problem(self.examples).or_else(|| loss_problem("loss", self.loss))
    }
}

/// The judgement of one device on its test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Test examples.
    pub examples: u64,
    /// Mean loss.
    pub loss: f64,
    /// Share classified rightly.
    pub accuracy: f64,
    /// Time from the offer's arrival.
    pub duration_ms: Millis,
}

impl EvaluationReport {
    /// Why it is no judgement, if it is none: the name, the value, the limit.
    pub fn problem(&self) -> Option<String> {
        let Self { examples, loss, accuracy, .. } = *self;
        let share = (0.0..=1.0).contains(&accuracy);
        let no_share = || (!share).then(|| format!("accuracy {accuracy} is not a share"));
        examples_problem(examples).or_else(|| loss_problem("loss", loss)).or_else(no_share)
    }
}

fn examples_problem(examples: u64) -> Option<String> {
    let text = || format!("{examples} examples, expected at most {EXAMPLES_MAX}");
    (examples > EXAMPLES_MAX).then(text)
}

/// Why a loss of this name is none, if it is none.
fn loss_problem(name: &str, loss: f64) -> Option<String> {
    let text = || format!("{name} {loss:e}, expected 0 to {LOSS_MAX:e}");
    (!(0.0..=LOSS_MAX).contains(&loss)).then(text)
}

/// A model's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferReport {
    /// The model that answered.
    pub model: ModelRef,
    /// The engine that ran it.
    pub engine: String,
    /// The engine's own time, microseconds.
    pub engine_us: u64,
    /// Engines that could have been better and did not answer, with the reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_engines: Vec<RefusedEngine>,
    /// Raw outputs in the binary part, in this order.
    pub outputs: Vec<TensorHeader>,
    /// For classifiers: the best classes of each example of the batch.
    #[serde(default)]
    pub classes: Vec<Vec<Class>>,
}

/// An engine that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedEngine {
    /// Which.
    pub engine: String,
    /// Why.
    pub reason: String,
}

/// One class of a classifier's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Index in the output.
    pub index: u32,
    /// The label, if the model has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Probability after softmax.
    pub probability: f32,
}

/// Why something did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable word for it.
    pub code: FailureCode,
    /// What exactly, and what to do.
    pub message: String,
}

impl Failure {
    /// Puts the two together.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $transient:literal;)*) => {
        /// Every reason for which a task or a job can end without success.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum FailureCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl FailureCode {
            /// All of them.
            pub const ALL: &'static [FailureCode] = &[$(FailureCode::$name,)*];

            /// The stable word for this code.
            pub fn as_str(self) -> &'static str {
                match self { $(FailureCode::$name => $text,)* }
            }

            /// Whether the same work may succeed on another attempt or device.
            pub fn is_transient(self) -> bool {
                match self { $(FailureCode::$name => $transient,)* }
            }
        }
    };
}

failure_codes! {
    /// All slots are taken.
    Busy = "busy", true;
    /// No device matches, or none of them is online.
    NoDevice = "no_device", true;
    /// The device went silent.
    DeviceLost = "device_lost", true;
    /// The deadline passed.
    DeadlineExceeded = "deadline_exceeded", true;
    /// Stopped on request.
    Cancelled = "cancelled", false;
    /// The agent is ending.
    ShuttingDown = "shutting_down", true;
    /// The specification contradicts itself or the data.
    InvalidSpec = "invalid_spec", false;
    /// The broker has no such model.
    UnknownModel = "unknown_model", false;
    /// The device has no such data set.
    UnknownDataset = "unknown_dataset", false;
    /// The model file is not a usable ONNX model.
    InvalidModel = "invalid_model", false;
    /// The model has an operator outside the engine's set.
    UnsupportedOperator = "unsupported_operator", false;
    /// Shapes do not fit together.
    ShapeMismatch = "shape_mismatch", false;
    /// The data set cannot be read, is empty, or has labels out of range.
    InvalidDataset = "invalid_dataset", false;
    /// The request's input cannot be used.
    InvalidInput = "invalid_input", false;
    /// The loss became NaN or infinite.
    Diverged = "diverged", false;
    /// An update has wrong names, shapes, or values that are not finite.
    InvalidUpdate = "invalid_update", false;
    /// Another round would take more privacy than the job may.
    BudgetSpent = "budget_spent", false;
    /// Bytes cost where the device is, and nobody limited them.
    Metered = "metered", false;
    /// Too few updates arrived.
    NoQuorum = "no_quorum", true;
    /// A blob is missing, or its bytes do not match its digest.
    BlobUnavailable = "blob_unavailable", true;
    /// No space left on the device, or in the object store.
    DiskFull = "disk_full", true;
    /// None of the engines that the request allows can answer.
    EngineUnavailable = "engine_unavailable", true;
    /// Not enough memory.
    OutOfMemory = "out_of_memory", true;
    /// Larger than a limit allows.
    TooLarge = "too_large", false;
    /// The device was set not to train now: too hot, too little left, or not its time.
    Guarded = "guarded", false;
    /// Too many of the device's updates were refused in rounds before.
    Quarantined = "quarantined", false;
    /// More devices were there than a round has room for.
    NoRoom = "no_room", true;
    /// A round that would have invited the device began without it: it was offline, or outside of its
    /// window.
    NotThere = "not_there", true;
    /// A fault of the program; the message says where.
    Internal = "internal", true;
}
