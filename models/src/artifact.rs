//! What the registry stores: an OCI image manifest with a config and layers, each by digest.
//!
//! A model version is a manifest; its config blob is a [`ModelConfig`]; its one layer so far is
//! the ONNX file. The shape follows the OCI image specification 1.1, so that a registry face can
//! serve the same blobs unchanged.

use serde::{Deserialize, Serialize};

use crate::picture::Preprocessing;

/// Media type of the manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Artifact type of a model version.
pub const ARTIFACT_TYPE: &str = "application/vnd.dunlin.model.v1";
/// Media type of the config blob.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.dunlin.model.config.v1+json";
/// Media type of an ONNX layer.
pub const ONNX_MEDIA_TYPE: &str = "application/vnd.onnx";

/// A blob by digest, as in OCI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: String,
    /// `sha256:<hex>`
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
}

/// A model version: an OCI image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST_MEDIA_TYPE`]
    pub media_type: String,
    /// [`ARTIFACT_TYPE`]
    pub artifact_type: String,
    /// The [`ModelConfig`] blob.
    pub config: Descriptor,
    /// The ONNX file.
    pub layers: Vec<Descriptor>,
}

/// How to use a model, and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What it is, for people.
    #[serde(default)]
    pub description: String,
    /// Inputs by name, as the ONNX file declares them.
    #[serde(default)]
    pub inputs: Vec<TensorInfo>,
    /// Outputs by name.
    #[serde(default)]
    pub outputs: Vec<TensorInfo>,
    /// Class labels by index; empty when the model is not a classifier or they are unknown.
    #[serde(default)]
    pub labels: Vec<String>,
    /// How pictures become inputs; absent when the model takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessing: Option<Preprocessing>,
    /// Number of trained values.
    #[serde(default)]
    pub parameters: u64,
    /// The training that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
}

/// A declared input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// The name in the graph.
    pub name: String,
    /// As in Open Inference Protocol V2, such as `FP32`.
    pub datatype: String,
    /// Extents; -1 where the graph leaves one open (the batch).
    pub shape: Vec<i64>,
}

/// The training that made a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The job.
    pub job: String,
    /// The data set's name.
    pub dataset: String,
    /// Rounds that led to it.
    pub rounds: u32,
    /// Everyone whose update is in it.
    pub devices: Vec<String>,
    /// The last evaluation, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}
