//! What to do: job specifications as people write them, and the tasks that devices get.

use serde::{Deserialize, Serialize};

use crate::engine::EnginePolicy;
use crate::id::{BlobRef, Bytes, DatasetName, Millis, ModelName, ModelRef, ObjectId, RoundNumber};
use crate::selector::Selector;

mod begin;
mod download;
mod evaluate;
mod examples;
mod late;
mod local;
mod model;
mod privacy;
mod quarantine;
mod rule;
mod schedule;
mod secure;
mod selection;
mod settings;
mod stopping;
mod strategy;
mod task_id;
mod transfer;
mod update;
mod validate;

pub use self::begin::{KEEP_ROUNDS_MAX, RoundOf};
pub use self::download::{Download, DownloadError};
pub use self::evaluate::{Evaluate, EvaluateError};
pub use self::examples::{Augment, AugmentError, Normalization, NormalizationError};
pub use self::late::{LateUpdates, LateUpdatesError, Staleness};
pub(crate) use self::local::is_default;
pub use self::local::{
    LocalTraining, Loss, LossError, Noised, Optimizer, OptimizerError, PATTERNS_MAX,
};
pub use self::model::ModelQuery;
pub use self::privacy::{AdaptiveClip, Clip, Privacy, PrivacyError, PrivacyMode};
pub use self::quarantine::{Quarantine, QuarantineError};
pub use self::schedule::{Schedule, ScheduleError};
pub use self::secure::{
    Levels, MaskedTrainTask, Rounding, SecureAggregation, SecureAggregationError,
};
pub use self::selection::{Selection, SelectionError};
pub use self::stopping::{EarlyStopping, Keep, Metric, StoppingError};
pub use self::strategy::{
    Byzantine, CentredClipping, ControlVariates, FedAdagrad, FedAdam, FedAvgM, FedBuff,
    FedTrimmedAvg, FedYogi, Keeps, MultiKrum, NormBound, QFedAvg, Scaffold, Strategy,
    StrategyError,
};
pub use self::task_id::TaskId;
pub use self::transfer::{Transfer, TransferError};
pub use self::update::{
    Coder, Exact, Int8, Rounded, TopK, UpdateEncoding, UpdateEncodingError, ValueFormat,
};
pub use self::validate::{Problem, validate};

/// The kinds of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// One answer of a model.
    Infer,
    /// Federated training over several rounds.
    Train,
    /// Measurements of the devices that match, now.
    Telemetry,
}

impl JobKind {
    /// The word for this kind in subjects, JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Infer => "infer",
            JobKind::Train => "train",
            JobKind::Telemetry => "telemetry",
        }
    }
}

/// A job as it was accepted: complete, with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Devices that may take part.
    #[serde(default)]
    pub selector: Selector,
    /// From acceptance to the end, at most; expiry is a failure with a reason.
    pub deadline_ms: Millis,
    /// What to do.
    pub work: WorkSpec,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkSpec {
    /// See [`InferSpec`].
    Infer(InferSpec),
    /// See [`TrainSpec`].
    Train(Box<TrainSpec>),
    /// See [`JobKind::Telemetry`].
    Telemetry,
}

impl WorkSpec {
    /// The kind of this work.
    pub fn kind(&self) -> JobKind {
        match self {
            WorkSpec::Infer(_) => JobKind::Infer,
            WorkSpec::Train(_) => JobKind::Train,
            WorkSpec::Telemetry => JobKind::Telemetry,
        }
    }
}

/// One request to a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferSpec {
    /// Which model answers.
    pub model: ModelQuery,
    /// What the binary part of the message holds.
    pub input: InferInput,
    /// How many classes to name, the best first.
    #[serde(default = "default_top")]
    pub top: u32,
    /// Engines that may answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: EnginePolicy,
}

fn default_top() -> u32 {
    5
}

/// What the binary part of an inference request holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InferInput {
    /// A picture (JPEG or PNG); the model's manifest says how it becomes a tensor.
    Picture,
    /// Tensors one after another, little-endian, rows first, in this order.
    Tensors {
        /// What each tensor is.
        tensors: Vec<TensorHeader>,
    },
}

/// Describes a tensor that travels in a binary part; names as in Open Inference Protocol V2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorHeader {
    /// The input's or output's name; empty means the only one.
    pub name: String,
    /// `FP32`, `FP64`, `INT64`, `INT32`, `INT8`, `UINT8` or `BOOL`.
    pub datatype: String,
    /// Extents, slowest first.
    pub shape: Vec<u64>,
    /// Length in the binary part.
    pub size: Bytes,
}

/// A federated training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// A registered model to go on from, or a built-in family such as `resnet8`.
    pub model: ModelQuery,
    /// Begins with the parameters of a round of another job instead of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_from: Option<RoundOf>,
    /// What devices train on; a device without it is not selected.
    pub dataset: DatasetName,
    /// Rounds to run.
    pub rounds: u32,
    /// What each device does in a round.
    #[serde(default)]
    pub local: LocalTraining,
    /// Who takes part in a round.
    #[serde(default)]
    pub participation: Participation,
    /// How the updates of a round become new parameters.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strategy: Strategy,
    /// With a server optimizer: what takes the place of the mean, so that some devices' updates may
    /// be wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Strategy>,
    /// What is promised of the devices' data; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// How updates travel.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdateEncoding,
    /// How a round's parameters travel to devices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub download: Download,
    /// Where updates are until the broker has read them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub transfer: Transfer,
    /// Hides each update from the broker, which learns their sum; off when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_aggregation: Option<SecureAggregation>,
    /// Who judges the new parameters on a test split after each round.
    #[serde(default, skip_serializing_if = "is_default")]
    pub evaluate: Evaluate,
    /// Ends the job early when the evaluation reaches it, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_accuracy: Option<f64>,
    /// Ends the job early when the evaluation does not improve any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Which round's parameters are the result.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep: Keep,
    /// Keeps the parameters of so many of the newest rounds until the job is forgotten, so that others
    /// can go on from each; absent means no longer than the job needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_rounds: Option<u32>,
    /// Registers the result under this name; the model's own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub register_as: Option<ModelName>,
    /// Seeds selection, initial weights and the order of examples.
    #[serde(default)]
    pub seed: u64,
}

/// Who takes part in a round, and when it is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Participation {
    /// Updates to collect; absent means every eligible device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<u32>,
    /// Share of devices invited beyond `devices`, so that stragglers do not hold a round up.
    pub over_selection: f64,
    /// Updates without which a round fails.
    pub quorum: u32,
    /// From the offers to the close of collecting.
    pub deadline_ms: Millis,
    /// Failed rounds in a row after which the job fails.
    pub failed_rounds_max: u32,
    /// Which of the eligible devices.
    #[serde(skip_serializing_if = "is_default")]
    pub selection: Selection,
    /// Keeps devices out whose updates are refused; off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// What becomes of updates that come when their round is over.
    #[serde(skip_serializing_if = "is_default")]
    pub late_updates: LateUpdates,
}

impl Default for Participation {
    fn default() -> Self {
        Self {
            devices: None,
            over_selection: 0.0,
            quorum: 1,
            deadline_ms: Millis(600_000),
            failed_rounds_max: 3,
            selection: Selection::default(),
            quarantine: None,
            late_updates: LateUpdates::default(),
        }
    }
}

/// Why a device works on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Train on the local data set.
    Train,
    /// Evaluate on the local data set.
    Evaluate,
    /// Give neighbours shares of the secrets behind this device's masks.
    Share,
    /// Send the update that was trained, masked.
    Mask,
    /// Give shares that unmask the sum.
    Unmask,
    /// Answer a request.
    Infer,
    /// Measure the device.
    Telemetry,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Purpose; 7] = [
        Purpose::Train,
        Purpose::Evaluate,
        Purpose::Share,
        Purpose::Mask,
        Purpose::Unmask,
        Purpose::Infer,
        Purpose::Telemetry,
    ];

    /// The word for this purpose in task ids, JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Train => "train",
            Purpose::Evaluate => "evaluate",
            Purpose::Share => "share",
            Purpose::Mask => "mask",
            Purpose::Unmask => "unmask",
            Purpose::Infer => "infer",
            Purpose::Telemetry => "telemetry",
        }
    }
}

/// What a broker says on `offer.<device>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Offer {
    /// Do this.
    Task(Box<Task>),
    /// Stop doing this; unknown tasks are ignored.
    Cancel {
        /// Which task.
        task: TaskId,
        /// Why, for the log.
        reason: String,
        /// What the task gave cannot be used, and that is the reason: there is nothing to stop.
        #[serde(default, skip_serializing_if = "is_default")]
        refused: bool,
    },
}

/// One piece of work for one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Which.
    pub id: TaskId,
    /// How long the answer is of use, from the arrival of the offer.
    pub timeout_ms: Millis,
    /// What.
    pub work: TaskWork,
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a task is one value at a time")]
pub enum TaskWork {
    /// Start from `parameters`, train, upload the result, report it on `report.<job>.<device>`.
    Train(TrainTask),
    /// The same, but what is uploaded are keys; the result is sent masked when it is asked for.
    TrainMasked(Box<MaskedTrainTask>),
    /// Answer a stage of the secure aggregation, which the purpose names: what neighbours said is
    /// the binary part of the message. Upload the answer, report it on `report.<job>.<device>`.
    Exchange,
    /// Evaluate `parameters` on the test split, report on `report.<job>.<device>`.
    Evaluate(EvaluateTask),
    /// Answer to the offer's reply subject, and to `answer_to` if present.
    Infer(InferTask),
    /// Answer with telemetry to the offer's reply subject.
    Telemetry,
}

/// Parameters of so many bytes may be listened to while they are uploaded, at most.
pub const LISTENED_MAX: Bytes = Bytes(2 * 1024 * 1024);

/// Local training of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainTask {
    /// The ONNX graph in training form; its weights are only placeholders.
    pub graph: BlobRef,
    /// The global parameters (safetensors) to start from.
    pub parameters: BlobRef,
    /// What to train on.
    pub dataset: DatasetName,
    /// How.
    pub local: LocalTraining,
    /// Seeds the order of examples on this device in this round.
    pub seed: u64,
    /// Rounds of the job that gave new parameters before this one; not told where the step size
    /// is constant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rounds_done: u32,
    /// Rounds of the job in all; not told where the step size is constant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rounds: u32,
    /// Whether to tell the loss of `parameters` on the training examples.
    #[serde(default, skip_serializing_if = "is_default")]
    pub initial_loss: bool,
    /// Control variates that correct the gradients, with [`Strategy::Scaffold`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlVariates>,
    /// How the update is to be written.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdateEncoding,
    /// With [`UpdateEncoding::TopK`], the last round in which an update of the device counted: what
    /// that one left out belongs to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<RoundNumber>,
    /// Encoded parameters to fetch and start from in place of `parameters`, which may be these
    /// with more bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
    /// Whether the device may hold the update until the broker asks for it, in place of storing it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hold: bool,
    /// Where the next round's parameters are going to be uploaded, if they are small and the device may
    /// listen to the upload in place of fetching them afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ObjectId>,
    /// Whether it is to be told at once that the task was accepted: late updates count, of those that
    /// are known to be at work when their round closes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub accept_at_once: bool,
}

/// Evaluation of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateTask {
    /// The ONNX graph in training form.
    pub graph: BlobRef,
    /// The parameters (safetensors) to judge.
    pub parameters: BlobRef,
    /// Whose test split to use.
    pub dataset: DatasetName,
    /// Examples per step.
    pub batch_size: u32,
    /// How values become inputs, as in the training.
    #[serde(default, skip_serializing_if = "is_default")]
    pub normalization: Normalization,
    /// What is reported as the loss.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: Loss,
    /// Names of parameters of which the device takes its own, as in the training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_local: Vec<String>,
    /// Encoded parameters to fetch and judge in place of `parameters`, as in the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
}

/// One request to a model, placed on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferTask {
    /// The model, exactly.
    pub model: ModelRef,
    /// What the binary part of the message holds.
    pub input: InferInput,
    /// How many classes to name.
    pub top: u32,
    /// Engines that may answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: EnginePolicy,
    /// The inbox of a waiting NATS client, as the broker itself received it; the whole answer
    /// goes there, and only the report to the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_to: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Attempt, JobId};

    #[test]
    fn task_ids_are_one_token_and_parse_back() {
        for job in ["01job", "a-1-train-2", "x_y"] {
            for purpose in Purpose::ALL {
                let id = TaskId {
                    job: JobId::parse(job).unwrap(),
                    round: RoundNumber(12),
                    purpose,
                    attempt: Attempt(u32::MAX),
                };
                assert!(!id.to_string().contains('.'));
                assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
        for bad in ["", "a-1-train", "a-1-tran-1", "a-01-train-1", "a-1-train-+1", "A-1-train-1"] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad:?}");
        }
    }
}
