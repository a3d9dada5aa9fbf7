//! A device: what it says of itself, and its life as a broker sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::EngineFacts;
use crate::id::{Bytes, DatasetName, DeviceId, Digest, GroupName, JobId, Millis, RoundNumber};
use crate::spec::{TaskId, is_default};

/// What a device is: sent on joining (`fleet.<device>.hello`) and kept while it is offline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The device.
    pub device: DeviceId,
    /// Changes with every start of the agent; two at once mean two agents under one name.
    pub instance: String,
    /// When the agent started, since the Unix epoch.
    pub started_at: Millis,
    /// How often a heartbeat follows.
    pub heartbeat_ms: Millis,
    /// The agent's version.
    pub agent_version: String,
    /// Groups for `cmd.group.<group>` subjects and selectors.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    /// Free labels, `label.<key>` in selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Data sets the device trains and evaluates on.
    #[serde(default)]
    pub datasets: Vec<DatasetFacts>,
    /// Engines that can run, the best one first.
    #[serde(default)]
    pub engines: Vec<String>,
    /// What is known of each engine, usable or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_facts: Vec<EngineFacts>,
    /// Hardware and system.
    pub facts: Facts,
    /// Tasks at work at the same time, at most.
    pub slots: u32,
    /// Whether it can mask updates; older agents cannot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub masks: bool,
    /// Whether it can say in a masked update that this was not longer than the norm; older agents
    /// cannot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub masks_within: bool,
}

/// Hardware and operating system, as far as they can be known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// `x86_64`, `aarch64`, `arm`.
    pub arch: String,
    /// `linux`, `macos`.
    pub os: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default)]
    pub os_version: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// Host name.
    #[serde(default)]
    pub host_name: String,
    /// Board or product, such as `Raspberry Pi 4 Model B Rev 1.4`.
    #[serde(default)]
    pub model: String,
    /// CPU brand.
    #[serde(default)]
    pub cpu: String,
    /// Logical processors.
    pub cpus: u32,
    /// Main memory.
    pub memory: Bytes,
    /// Space of the file system that holds the agent's state.
    #[serde(default)]
    pub disk: Bytes,
}

/// A data set as a device holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// The name that jobs use.
    pub name: DatasetName,
    /// The file format: `cifar10`, `cifar100`, `idx`, `image_folder`, `csv` or `text`.
    pub format: String,
    /// Shape of one example: `[c, h, w]` of pictures, `[d]` of others.
    pub shape: Vec<u32>,
    /// Number of classes.
    pub classes: u32,
    /// Examples in the training split.
    pub train_examples: u64,
    /// Examples in the test split.
    pub test_examples: u64,
    /// Training examples of each class, so that skew can be seen.
    #[serde(default)]
    pub train_class_counts: Vec<u64>,
    /// Class names by index; empty when they are not known.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Names of a table's columns but the label, in order; empty when they have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// How pixels become model inputs, `(pixel / 255 - mean) / std` per channel; one value serves
    /// all channels.
    #[serde(default)]
    pub mean: Vec<f32>,
    /// See `mean`.
    #[serde(default)]
    pub std: Vec<f32>,
    /// Mean of each channel over the training examples, pixels being 0 to 1; each column of a
    /// table is a channel. Empty when there are no channels or too many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_mean: Vec<f32>,
    /// Standard deviation of each channel over the training examples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_std: Vec<f32>,
}

/// Alive: sent every `heartbeat_ms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The device.
    pub device: DeviceId,
    /// The agent's instance, see [`Hello::instance`].
    pub instance: String,
    /// Counts up from 0 within an instance.
    pub sequence: u64,
    /// Tasks at work.
    #[serde(default)]
    pub tasks: Vec<TaskId>,
    /// Manifests of models that are loaded and can answer at once.
    #[serde(default)]
    pub models: Vec<Digest>,
}

/// The agent ends in order: the device is offline from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The device.
    pub device: DeviceId,
    /// The agent's instance; one that is not the device's last one changes nothing.
    pub instance: String,
}

/// Measurements of a device at one time; what cannot be measured is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// When, since the Unix epoch; the device's clock.
    pub at: Millis,
    /// Seconds since boot.
    pub uptime_s: u64,
    /// Busy share of all processors, 0 to 100.
    pub cpu_percent: f32,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Main memory.
    pub memory_total: Bytes,
    /// Main memory in use.
    pub memory_used: Bytes,
    /// Main memory that programs can still take.
    pub memory_available: Bytes,
    /// Swap space.
    pub swap_total: Bytes,
    /// Swap space in use.
    pub swap_used: Bytes,
    /// File systems.
    #[serde(default)]
    pub disks: Vec<DiskUse>,
    /// Network interfaces.
    #[serde(default)]
    pub networks: Vec<NetworkUse>,
    /// Temperatures in degrees Celsius by sensor.
    #[serde(default)]
    pub temperatures: BTreeMap<String, f32>,
    /// Resident memory of the agent itself.
    #[serde(default)]
    pub agent_memory: Bytes,
    /// The device's updates that were not used, the newest last; a few since the agent started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

/// An update of a device that was not used because of what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Of which job.
    pub job: JobId,
    /// Of which round.
    pub round: RoundNumber,
    /// When the device was told, since the Unix epoch; the device's clock.
    pub at: Millis,
    /// Why.
    pub reason: String,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Mount point.
    pub mount: String,
    /// Size.
    pub total: Bytes,
    /// Free for ordinary users.
    pub available: Bytes,
}

/// One network interface, counted since boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// Name, such as `eth0`.
    pub interface: String,
    /// Bytes received.
    pub received: Bytes,
    /// Bytes sent.
    pub sent: Bytes,
}

/// Whether a device can be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Heard of within [`STALE_AFTER_BEATS`] heartbeats.
    Online,
    /// Silent for longer than that, not yet given up.
    Stale,
    /// Silent for [`OFFLINE_AFTER_HALF_BEATS`], or it said goodbye.
    Offline,
}

/// Missed heartbeats after which a device gets no new work.
pub const STALE_AFTER_BEATS: u64 = 2;
/// Halves of the time between two heartbeats after which a silent device's tasks are placed
/// elsewhere: two were missed. Within three it is known, however soon after a heartbeat it died.
pub const OFFLINE_AFTER_HALF_BEATS: u64 = 5;

/// Judges a device's presence by when it was last heard of.
pub fn presence(now: Millis, last_seen: Millis, heartbeat_ms: Millis) -> Presence {
    let silence = now.since(last_seen).0;
    let beat = heartbeat_ms.0.max(1);
    if silence <= beat.saturating_mul(STALE_AFTER_BEATS) {
        Presence::Online
    } else if silence <= beat.saturating_mul(OFFLINE_AFTER_HALF_BEATS) / 2 {
        Presence::Stale
    } else {
        Presence::Offline
    }
}
