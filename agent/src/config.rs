//! How an agent is run: flags, then environment, then a TOML file, then defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::hours::Hours;
use jobs::id::{DatasetName, DeviceId, GroupName, IdError};
use serde::{Deserialize, Serialize};

use crate::engines::HELPED;
use crate::guards::Guards;

pub use args::{Args, Command, Settings};

mod args;

/// A complete configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where NATS is, and with which credentials.
    pub link: link::connect::Options,
    /// The device's name.
    pub device: DeviceId,
    /// Free labels for selectors.
    pub labels: BTreeMap<String, String>,
    /// Groups for commands and selectors.
    pub groups: Vec<GroupName>,
    /// Data sets: a folder or one file each.
    pub data: BTreeMap<DatasetName, PathBuf>,
    /// Where caches and buffers are kept; for one agent alone.
    pub state_dir: PathBuf,
    /// Trainings and evaluations at once; inference has a bound of its own.
    pub slots: u32,
    /// Threads that compute; 0 takes every processor.
    pub threads: usize,
    /// How much a training steps back behind other work, 0 to 19 as in `nice`.
    pub nice: u8,
    /// Bytes of memory that a training may take beside its parameters, at most; what the device
    /// has free when absent.
    pub training_bytes: Option<u64>,
    /// When it takes no part in trainings.
    pub guards: Guards,
    /// Time between two checkpoints of a training, at least; zero writes none.
    pub checkpoint: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Time between measurements.
    pub telemetry: Duration,
    /// Bytes of downloaded blobs kept on disk, at most.
    pub cache_bytes: u64,
    /// Bytes of model files that are kept ready to answer, at most.
    pub model_bytes: u64,
    /// Bytes of blobs that travel in a second, at most; no limit when absent.
    pub bytes_per_second: Option<u64>,
    /// Whether the connection is paid for by bytes: trainings are then declined where there is no
    /// limit.
    pub metered: bool,
    /// The program `dunlin-accel`, which holds the engines that load libraries; the usual places
    /// when absent.
    pub accel: Option<PathBuf>,
    /// The program `dunlin-tract`, which holds the engine of that name; the usual places when
    /// absent.
    pub tract: Option<PathBuf>,
    /// ONNX Runtime's library or its folder; the usual places when absent.
    pub onnxruntime: Option<PathBuf>,
    /// Engines that are not to be used.
    pub forbidden_engines: Vec<String>,
    /// This program, which measures the processor's engines in a process of its own; they are not
    /// measured when absent.
    pub program: Option<PathBuf>,
    /// Form of the log.
    pub log: LogFormat,
    /// What is logged, such as `info` or `agent=debug`.
    pub log_level: String,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Why a configuration cannot be used; the message names the option.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No server.
    #[error("no NATS server: give --nats nats://host:4222, DUNLIN_NATS, or `nats` in the file")]
    NoServer,
    /// The address or a file of credentials.
    #[error(transparent)]
    Link(#[from] link::connect::LinkError),
    /// The file cannot be read.
    #[error("--config {path}: {source}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The file says something else than a configuration.
    #[error("--config {path}: {problem}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its line.
        problem: String,
    },
    /// A name that is not one.
    #[error("{option}: {source}")]
    Name {
        /// Where it was given.
        option: &'static str,
        /// What would be accepted.
        source: IdError,
    },
    /// A value that is out of range or badly formed.
    #[error("{option} {value:?}: expected {expected}")]
    Value {
        /// Where it was given.
        option: &'static str,
        /// The value.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A data set that is not there.
    #[error("--data {name}={path}: {source}", path = path.display())]
    Data {
        /// The data set.
        name: DatasetName,
        /// Where it should be.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
}

/// What a file may say; the same names as the flags.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    nats: Option<String>,
    name: Option<String>,
    labels: BTreeMap<String, String>,
    groups: Vec<String>,
    data: BTreeMap<String, PathBuf>,
    state_dir: Option<PathBuf>,
    slots: Option<u32>,
    threads: Option<usize>,
    nice: Option<u8>,
    training_bytes: Option<u64>,
    guard_temperature_max: Option<f32>,
    guard_memory_min: Option<u64>,
    guard_disk_min: Option<u64>,
    guard_battery_min: Option<u8>,
    guard_hours: Option<Hours>,
    checkpoint_ms: Option<u64>,
    heartbeat_ms: Option<u64>,
    telemetry_ms: Option<u64>,
    cache_bytes: Option<u64>,
    model_bytes: Option<u64>,
    bytes_per_second: Option<u64>,
    metered: Option<bool>,
    accel: Option<PathBuf>,
    tract: Option<PathBuf>,
    onnxruntime: Option<PathBuf>,
    forbid_engines: Vec<String>,
    creds: Option<PathBuf>,
    token: Option<String>,
    tls_ca: Option<PathBuf>,
    log: Option<LogFormat>,
    log_level: Option<String>,
}

impl Config {
    /// The defaults for a device at a server.
    pub fn new(servers: &str, device: DeviceId, state_dir: PathBuf) -> Self {
        let link = link::connect::Options {
            servers: servers.to_owned(),
            name: format!("dunlin-agent {device}"),
            ..Default::default()
        };
        Self {
            link,
            device,
            labels: BTreeMap::new(),
            groups: Vec::new(),
            data: BTreeMap::new(),
            state_dir,
            slots: 1,
            threads: 0,
            nice: 10,
            training_bytes: None,
            guards: Guards::default(),
            checkpoint: Duration::from_mins(1),
            heartbeat: Duration::from_secs(2),
            telemetry: Duration::from_secs(10),
            cache_bytes: 2_000_000_000,
            model_bytes: 512_000_000,
            bytes_per_second: None,
            metered: false,
            accel: None,
            tract: None,
            onnxruntime: None,
            forbidden_engines: Vec::new(),
            program: None,
            log: LogFormat::Human,
            log_level: "info".to_owned(),
        }
    }

    /// Puts flags, environment and file together and checks all of it.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn resolve(args: Settings) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        Self::put_together(args, file)
    }

    /// What a file with this text says, alone.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::put_together(Settings::default(), parse(path, text)?)
    }

    fn put_together(args: Settings, file: File) -> Result<Self, ConfigError> {
        let guards = guards(&args, &file)?;
        let servers = args.nats.or(file.nats).ok_or(ConfigError::NoServer)?;
        link::connect::parse_servers(&servers)?;
        let device = device(args.name.or(file.name))?;
        let state_dir = match args.state_dir.or(file.state_dir) {
            Some(dir) => dir,
            None => default_state_dir(&device),
        };
        let defaults = Self::new(&servers, device, state_dir);
        let beat = millis("--heartbeat-ms", args.heartbeat_ms.or(file.heartbeat_ms), 100)?;
        let measure = millis("--telemetry-ms", args.telemetry_ms.or(file.telemetry_ms), 100)?;
        let config = Self {
            labels: labels(file.labels, &args.labels)?,
            groups: groups(if args.groups.is_empty() { &file.groups } else { &args.groups })?,
            data: data(file.data, &args.data)?,
            slots: range("--slots", args.slots.or(file.slots), defaults.slots, 1..=64)?,
            threads: range("--threads", args.threads.or(file.threads), defaults.threads, 0..=1024)?,
            nice: range("--nice", args.nice.or(file.nice), defaults.nice, 0..=19)?,
            training_bytes: args.training_bytes.or(file.training_bytes),
            guards,
            checkpoint: match args.checkpoint_ms.or(file.checkpoint_ms) {
                Some(0) => Duration::ZERO,
                every => millis("--checkpoint-ms", every, 1)?.unwrap_or(defaults.checkpoint),
            },
            heartbeat: beat.unwrap_or(defaults.heartbeat),
            telemetry: measure.unwrap_or(defaults.telemetry),
            cache_bytes: args.cache_bytes.or(file.cache_bytes).unwrap_or(defaults.cache_bytes),
            model_bytes: args.model_bytes.or(file.model_bytes).unwrap_or(defaults.model_bytes),
            bytes_per_second: bytes_per_second(args.bytes_per_second.or(file.bytes_per_second))?,
            metered: args.metered.or(file.metered).unwrap_or(defaults.metered),
            accel: args.accel.or(file.accel),
            tract: args.tract.or(file.tract),
            onnxruntime: args.onnxruntime.or(file.onnxruntime),
            forbidden_engines: forbidden(if args.forbid_engines.is_empty() {
                file.forbid_engines
            } else {
                args.forbid_engines
            })?,
            program: None,
            log: args.log.or(file.log).unwrap_or_default(),
            log_level: args.log_level.or(file.log_level).unwrap_or(defaults.log_level),
            link: link::connect::Options {
                credentials: args.creds.or(file.creds),
                token: args.token.or(file.token),
                tls_ca: args.tls_ca.or(file.tls_ca),
                ..defaults.link
            },
            device: defaults.device,
            state_dir: defaults.state_dir,
        };
        Ok(config)
    }

    /// The data sets are there; their contents are read later.
    ///
    /// # Errors
    /// [`ConfigError::Data`] for the first that is not.
    pub fn check_data(&self) -> Result<(), ConfigError> {
        for (name, path) in &self.data {
            datasets::check(path).map_err(|source| ConfigError::Data {
                name: name.clone(),
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::File {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })
}

fn device(name: Option<String>) -> Result<DeviceId, ConfigError> {
    match name {
        Some(name) => {
            DeviceId::parse(&name).map_err(|source| ConfigError::Name { option: "--name", source })
        }
        None => Ok(DeviceId::from_host_name(&sysinfo::System::host_name().unwrap_or_default())),
    }
}

/// `$XDG_STATE_HOME/dunlin/<name>`, `~/.local/state/dunlin/<name>`, or `/var/lib/dunlin/<name>`.
fn default_state_dir(device: &DeviceId) -> PathBuf {
    state_base().join("dunlin").join(device.as_str())
}

/// `$XDG_STATE_HOME`, `~/.local/state`, or `/var/lib`.
pub(crate) fn state_base() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => PathBuf::from(state),
        (None, Some(home)) => PathBuf::from(home).join(".local/state"),
        (None, None) => PathBuf::from("/var/lib"),
    }
}

fn labels(
    mut labels: BTreeMap<String, String>,
    flags: &[String],
) -> Result<BTreeMap<String, String>, ConfigError> {
    for flag in flags {
        let (key, value) = pair("--label", flag)?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    for key in labels.keys() {
        let valid =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || key.len() > 64 || !key.chars().all(valid) {
            return Err(ConfigError::Value {
                option: "--label",
                value: key.clone(),
                expected: "key=value with a key of a-z, 0-9, '-', '_' and '.'",
            });
        }
    }
    Ok(labels)
}

fn groups(names: &[String]) -> Result<Vec<GroupName>, ConfigError> {
    let parse = |name: &String| {
        GroupName::parse(name).map_err(|source| ConfigError::Name { option: "--group", source })
    };
    names.iter().map(parse).collect()
}

fn guards(args: &Settings, file: &File) -> Result<Guards, ConfigError> {
    let guards = Guards {
        temperature_max: args.guard_temperature_max.or(file.guard_temperature_max),
        memory_min: args.guard_memory_min.or(file.guard_memory_min),
        disk_min: args.guard_disk_min.or(file.guard_disk_min),
        battery_min: args.guard_battery_min.or(file.guard_battery_min),
        hours: args.guard_hours.or(file.guard_hours),
        ..Guards::default()
    };
    if let Some(celsius) = guards.temperature_max.filter(|celsius| !celsius.is_finite()) {
        return Err(ConfigError::Value {
            option: "--guard-temperature-max",
            value: celsius.to_string(),
            expected: "Celsius such as 75",
        });
    }
    match guards.battery_min.filter(|percent| *percent > 100) {
        Some(percent) => Err(ConfigError::Value {
            option: "--guard-battery-min",
            value: percent.to_string(),
            expected: "percent, 0 to 100",
        }),
        None => Ok(guards),
    }
}

fn forbidden(engines: Vec<String>) -> Result<Vec<String>, ConfigError> {
    match engines.iter().find(|engine| !HELPED.contains(&engine.as_str())) {
        None => Ok(engines),
        Some(odd) => Err(ConfigError::Value {
            option: "--forbid-engine",
            value: odd.clone(),
            expected: "cuda, webgpu or ort-cpu",
        }),
    }
}

fn data(
    file: BTreeMap<String, PathBuf>,
    flags: &[String],
) -> Result<BTreeMap<DatasetName, PathBuf>, ConfigError> {
    let mut sets = BTreeMap::new();
    let mut add = |name: &str, path: PathBuf| {
        let name = DatasetName::parse(name)
            .map_err(|source| ConfigError::Name { option: "--data", source })?;
        sets.insert(name, path);
        Ok::<_, ConfigError>(())
    };
    for (name, path) in file {
        add(&name, path)?;
    }
    for flag in flags {
        let (name, path) = pair("--data", flag)?;
        add(name, path.into())?;
    }
    Ok(sets)
}

/// Parts `name=value`.
pub(crate) fn pair<'a>(
    option: &'static str,
    text: &'a str,
) -> Result<(&'a str, &'a str), ConfigError> {
    text.split_once('=').ok_or_else(|| ConfigError::Value {
        option,
        value: text.to_owned(),
        expected: "name=value",
    })
}

fn millis(
    option: &'static str,
    value: Option<u64>,
    min: u64,
) -> Result<Option<Duration>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    if (min..=86_400_000).contains(&value) {
        return Ok(Some(Duration::from_millis(value)));
    }
    let expected = if min < 100 {
        "milliseconds up to 86400000 (a day)"
    } else {
        "milliseconds from 100 to 86400000 (a day)"
    };
    Err(ConfigError::Value { option, value: value.to_string(), expected })
}

/// A chunk of a blob travels within two minutes.
fn bytes_per_second(value: Option<u64>) -> Result<Option<u64>, ConfigError> {
    match value {
        Some(value @ 0..1000) => Err(ConfigError::Value {
            option: "--bytes-per-second",
            value: value.to_string(),
            expected: "1000 or more",
        }),
        value => Ok(value),
    }
}

fn range<T: PartialOrd + ToString + Copy>(
    option: &'static str,
    value: Option<T>,
    default: T,
    allowed: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError> {
    let value = value.unwrap_or(default);
    if allowed.contains(&value) {
        return Ok(value);
    }
    let expected = match option {
        "--slots" => "1 to 64",
        "--threads" => "0 to 1024",
        _ => "0 to 19",
    };
    Err(ConfigError::Value { option, value: value.to_string(), expected })
}

#[cfg(test)]
mod tests;
