//! Updates that stay on their devices until the broker asks for them.
//!
//! A request on `held.<device>` is answered by as many messages as its bytes take, each with
//! [`OFFSET_HEADER`], or by one with [`REFUSAL_HEADER`] and no bytes. When a job is over, all devices
//! are told by the command [`FORGET`] that nobody asks for its updates any more.

use serde::{Deserialize, Serialize};

use crate::id::{Bytes, JobId};

/// Where in the blob the bytes of a message begin.
pub const OFFSET_HEADER: &str = "Dunlin-Offset";
/// Why the device does not give what it was asked for.
pub const REFUSAL_HEADER: &str = "Dunlin-Refusal";
/// Bytes that one request may ask for.
pub const REQUEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The verb of a command with a [`Forget`].
pub const FORGET: &str = "forget";

/// Asks for a part of a blob that a device holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRequest {
    /// The blob's name, as the device reported it.
    pub name: String,
    /// Where the part begins.
    pub from: u64,
    /// How long it is; [`REQUEST_BYTES_MAX`] at most.
    pub bytes: Bytes,
}

/// Tells devices that they need not hold updates of a job any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// The job, which is over.
    pub job: JobId,
}
