//! The command line; each flag has an environment variable.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use jobs::hours::Hours;
use serde::Serialize;

use super::LogFormat;
use crate::bench::BenchArgs;
use crate::engines::table::ProbeArgs;
use crate::service::ServiceArgs;

/// What may be given when the agent is started.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "dunlin-agent",
    version,
    about = "One agent per device: joins a fleet over NATS, trains and answers for it",
    args_conflicts_with_subcommands = true,
    after_help = "Example: dunlin-agent --nats nats://broker:4222 --data digits=/srv/digits"
)]
pub struct Args {
    /// How it runs.
    #[command(flatten)]
    pub settings: Settings,

    /// What to do instead of joining a fleet
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// How the agent runs; a configuration file has the same names.
#[expect(clippy::doc_markdown, reason = "the comments are the text of --help")]
#[derive(Debug, Clone, Default, clap::Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// NATS server, such as nats://host:4222; several separated by commas
    #[arg(long, env = "DUNLIN_NATS", hide_env_values = true, value_name = "URL")]
    pub nats: Option<String>,

    /// Name of this device [default: the host name]
    #[arg(long, env = "DUNLIN_NAME")]
    pub name: Option<String>,

    /// Label for selectors, key=value; may be repeated
    #[arg(long = "label", env = "DUNLIN_LABELS", value_delimiter = ',', value_name = "KEY=VALUE")]
    #[serde(skip)]
    pub labels: Vec<String>,

    /// Group for commands and selectors; may be repeated
    #[arg(long = "group", env = "DUNLIN_GROUPS", value_delimiter = ',', value_name = "GROUP")]
    #[serde(skip)]
    pub groups: Vec<String>,

    /// Data set, name=folder or name=file; may be repeated
    #[arg(long = "data", env = "DUNLIN_DATA", value_delimiter = ',', value_name = "NAME=PATH")]
    #[serde(skip)]
    pub data: Vec<String>,

    /// Where caches and buffers are kept [default: $XDG_STATE_HOME/dunlin/NAME]
    #[arg(long, env = "DUNLIN_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Trainings at once [default: 1]
    #[arg(long, env = "DUNLIN_SLOTS", value_name = "N")]
    pub slots: Option<u32>,

    /// Threads that compute; 0 takes every processor [default: 0]
    #[arg(long, env = "DUNLIN_THREADS", value_name = "N")]
    pub threads: Option<usize>,

    /// How much training steps back behind other work, as nice does, 0 to 19 [default: 10]
    #[arg(long, env = "DUNLIN_NICE", value_name = "N")]
    pub nice: Option<u8>,

    /// Bytes of memory that a training or an evaluation may take, at most [default: what is free]
    #[arg(long, env = "DUNLIN_TRAINING_BYTES", value_name = "BYTES")]
    pub training_bytes: Option<u64>,

    /// Celsius: no training while a sensor shows more, and a training that makes it so stops
    #[arg(long, env = "DUNLIN_GUARD_TEMPERATURE_MAX", value_name = "CELSIUS")]
    pub guard_temperature_max: Option<f32>,

    /// No training while less memory is available
    #[arg(long, env = "DUNLIN_GUARD_MEMORY_MIN", value_name = "BYTES")]
    pub guard_memory_min: Option<u64>,

    /// No training while less is free on the disk that keeps the agent's state
    #[arg(long, env = "DUNLIN_GUARD_DISK_MIN", value_name = "BYTES")]
    pub guard_disk_min: Option<u64>,

    /// No training while a battery has less charge
    #[arg(long, env = "DUNLIN_GUARD_BATTERY_MIN", value_name = "PERCENT")]
    pub guard_battery_min: Option<u8>,

    /// No training outside of these hours, in UTC, such as 22-06
    #[arg(long, env = "DUNLIN_GUARD_HOURS", value_name = "FROM-TO")]
    pub guard_hours: Option<Hours>,

    /// Time between checkpoints of a training, 0 for none [default: 60000]
    #[arg(long, env = "DUNLIN_CHECKPOINT_MS", value_name = "MS")]
    pub checkpoint_ms: Option<u64>,

    /// Time between heartbeats [default: 2000]
    #[arg(long, env = "DUNLIN_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,

    /// Time between measurements [default: 10000]
    #[arg(long, env = "DUNLIN_TELEMETRY_MS", value_name = "MS")]
    pub telemetry_ms: Option<u64>,

    /// Bytes kept on disk, at most, of each of: downloaded models, checkpoints, parameters that stay
    /// here [default: 2000000000]
    #[arg(long, env = "DUNLIN_CACHE_BYTES", value_name = "BYTES")]
    pub cache_bytes: Option<u64>,

    /// Bytes of models kept ready in memory, at most [default: 512000000]
    #[arg(long, env = "DUNLIN_MODEL_BYTES", value_name = "BYTES")]
    pub model_bytes: Option<u64>,

    /// The program dunlin-accel, whose engines use GPUs [default: the one beside this program, or
    /// inside of it]
    #[arg(long, env = "DUNLIN_ACCEL", value_name = "FILE")]
    pub accel: Option<PathBuf>,

    /// The program dunlin-tract, whose engine takes models that this program's own does not
    /// [default: the one beside this program, or inside of it]
    #[arg(long, env = "DUNLIN_TRACT", value_name = "FILE")]
    pub tract: Option<PathBuf>,

    /// ONNX Runtime's library for ort-cpu and cuda, or the folder that it lies in [default: what
    /// ORT_DYLIB_PATH names, the usual places, pip's packages]
    #[arg(long, env = "DUNLIN_ONNXRUNTIME", value_name = "PATH")]
    pub onnxruntime: Option<PathBuf>,

    /// Engine that is not to be used: cuda, webgpu or ort-cpu; may be repeated
    #[arg(
        long = "forbid-engine",
        env = "DUNLIN_FORBID_ENGINES",
        value_delimiter = ',',
        value_name = "ENGINE"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forbid_engines: Vec<String>,

    /// Bytes of models and updates that travel in a second, at most, up and down together [default:
    /// no limit]
    #[arg(long, env = "DUNLIN_BYTES_PER_SECOND", value_name = "BYTES")]
    pub bytes_per_second: Option<u64>,

    /// The connection is paid for by bytes: no trainings, unless --bytes-per-second limits them
    #[arg(
        long,
        env = "DUNLIN_METERED",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub metered: Option<bool>,

    /// NATS credentials file
    #[arg(long, env = "DUNLIN_CREDS", value_name = "FILE")]
    pub creds: Option<PathBuf>,

    /// NATS authentication token
    #[arg(long, env = "DUNLIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// PEM file with the authority that signed the server's certificate
    #[arg(long, env = "DUNLIN_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Form of the log
    #[arg(long, env = "DUNLIN_LOG", value_enum)]
    pub log: Option<LogFormat>,

    /// What is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, env = "DUNLIN_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// TOML file with the same names as these flags
    #[arg(long, env = "DUNLIN_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// What the program does besides.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Measure how fast this device trains a built-in family
    Bench(BenchArgs),
    /// Tell which engines this device has, and why not the others
    Probe(ProbeArgs),
    /// Run the agent as a service of systemd, from boot on
    Service(ServiceArgs),
}
