//! What is stored of a training, so that another broker can go on.

use jobs::id::{BlobRef, Bytes, JobId, RoundNumber};
use jobs::spec::Normalization;
use jobs::training::Training;
use link::secret::Secret;
use models::picture::Preprocessing;
use serde::{Deserialize, Serialize};

/// A training: who owns it, where it is, and what it works with. One value, one revision: a
/// broker that lost its lease cannot write any more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredTraining {
    /// The broker that may go on with it; none when the last one let go of it.
    pub owner: Option<String>,
    /// Counts changes of the owner.
    pub term: u64,
    /// Counts writes of the owner.
    pub write: u64,
    /// What was prepared before the first round.
    #[serde(default)]
    pub prepared: Option<Prepared>,
    /// The machine.
    #[serde(default)]
    pub machine: Option<Training>,
    /// The place in the stream `REPORTS` of the last report that the machine knows.
    #[serde(default)]
    pub sequence: u64,
    /// Updates that were reported for the round at work, used or not.
    #[serde(default)]
    pub updates: Vec<BlobRef>,
    /// Parameters of the newest rounds that the job keeps, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<(RoundNumber, BlobRef)>,
    /// What the strategy kept with those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_states: Vec<(RoundNumber, BlobRef)>,
    /// What a private training's noise is made of; stored before the first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// Blobs of rounds that are over, the oldest round first.
    #[serde(default)]
    pub garbage: Vec<Vec<BlobRef>>,
    /// The last round of which they are.
    #[serde(default)]
    pub forgotten: RoundNumber,
}

/// What a training works with from its first round to its last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// The ONNX graph in training form.
    pub graph: BlobRef,
    /// What the first parameters are, in words.
    #[serde(default)]
    pub began_with: Option<String>,
    /// Shape of one example, `[c, h, w]` or `[d]`.
    pub shape: Vec<u32>,
    /// Number of classes.
    pub classes: u32,
    /// Class names, as the devices declare them.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Names of a table's columns, as the devices declare them.
    #[serde(default)]
    pub columns: Vec<String>,
    /// How pictures become inputs.
    #[serde(default)]
    pub preprocessing: Option<Preprocessing>,
    /// How values become inputs on every device; never `dataset`, but the values it stands for.
    #[serde(default)]
    pub normalization: Normalization,
}

/// The name of the global parameters after a round in the object store. It has the owner's term,
/// so that one that has lost the training overwrites nothing.
pub fn parameters_name(job: &JobId, round: u32, term: u64) -> String {
    format!("parameters/{job}/{round}/{term}")
}

/// The same of what the server optimizer keeps with them.
pub(super) fn server_state_name(job: &JobId, round: u32, term: u64) -> String {
    format!("server-state/{job}/{round}/{term}")
}

/// The same of the parameters as they travel to devices.
pub(super) fn encoded_name(job: &JobId, round: u32, term: u64) -> String {
    format!("encoded/{job}/{round}/{term}")
}

/// The same of a mean that a server optimizer goes a step against, where it is stored.
fn mean_name(job: &JobId, round: u32, term: u64) -> String {
    mean_beside(&parameters_name(job, round, term))
}

/// The name of a mean, by that of the parameters that are made of it.
pub(super) fn mean_beside(parameters: &str) -> String {
    format!("{parameters}/mean")
}

/// What the owner of a term may have written of a round that the state does not name: names, with
/// the digest of nothing.
pub(super) fn unknown(job: &JobId, round: u32, term: u64) -> Vec<BlobRef> {
    let nothing = BlobRef::by_digest(link::digest::of(b""), Bytes(0));
    let names = [parameters_name, server_state_name, encoded_name, mean_name];
    let blobs = names.map(|name| BlobRef { name: Some(name(job, round, term)), ..nothing.clone() });
    blobs.to_vec()
}

/// Whether a blob is named as one that only this job uses.
pub fn is_of(job: &JobId, blob: &BlobRef) -> bool {
    job_of(blob.object_name()).as_ref() == Some(job)
}

/// The job that alone uses a blob of this name: an update, a message of the secure aggregation, global
/// parameters, or what the server optimizer keeps.
pub fn job_of(name: &str) -> Option<JobId> {
    let mut parts = name.split('/');
    let kinds = ["update", "exchange", "parameters", "encoded", "server-state"];
    parts.next().filter(|kind| kinds.contains(kind))?;
    JobId::parse(parts.next()?).ok()
}

/// The key of a round's outcome in the bucket `trainings`.
pub fn round_key(job: &JobId, round: u32) -> String {
    format!("{job}.{round}")
}

/// The keys of all its rounds.
pub fn rounds_of(job: &JobId) -> String {
    format!("{job}.*")
}
