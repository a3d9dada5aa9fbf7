//! What the registry stores: an OCI image manifest with a config and layers, each by digest.
//!
//! A model version is a manifest; its config blob is a [`ModelConfig`]; its layers are
//! the ONNX file and, where there is one, the graph in training form. The shape follows the OCI image specification 1.1, so that a registry face can
//! serve the same blobs unchanged.

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::picture::{PictureError, Preprocessing};

/// Media type of the manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Artifact type of a model version.
pub const ARTIFACT_TYPE: &str = "application/vnd.dunlin.model.v1";
/// Media type of the config blob.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.dunlin.model.config.v1+json";
/// Media type of an ONNX layer.
pub const ONNX_MEDIA_TYPE: &str = "application/vnd.onnx";
/// Media type of a second layer: the same model as an ONNX graph in training form.
pub const ONNX_TRAINING_MEDIA_TYPE: &str = "application/vnd.dunlin.model.training.v1+onnx";

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
    /// The ONNX file; behind it the graph in training form, when a training made the model.
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
    /// What it began with, in words: a model and its version, a round of another job, or a built-in
    /// family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_with: Option<String>,
    /// Rounds that led to it.
    pub rounds: u32,
    /// Everyone whose update is in it.
    pub devices: Vec<String>,
    /// The last evaluation, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// Bytes of a manifest or a config, at most; what OCI registries accept.
pub const DOCUMENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a document is not a model version.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not JSON of the right form.
    #[error("{document} is not what it should be: {source}")]
    Json {
        /// `manifest` or `config`.
        document: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Larger than [`DOCUMENT_BYTES_MAX`].
    #[error("{document} has {len} bytes, at most {DOCUMENT_BYTES_MAX} are accepted")]
    TooLarge {
        /// `manifest` or `config`.
        document: &'static str,
        /// Its length.
        len: usize,
    },
    /// A field with a value that is not a model version's.
    #[error("manifest: {field} is {found:?}, expected {expected}")]
    Field {
        /// Which, as in JSON.
        field: &'static str,
        /// The value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The config's preprocessing cannot be used.
    #[error("config: {0}")]
    Preprocessing(#[from] PictureError),
}

impl Descriptor {
    /// Describes a blob.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        let (media_type, digest) = (media_type.to_owned(), digest::of(bytes));
        Self { media_type, digest, size: bytes.len() as u64 }
    }

    fn check(&self, field: &'static str, media_type: &str) -> Result<(), ArtifactError> {
        expect(field, &self.media_type, media_type)?;
        let hex = self.digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(());
        }
        let expected = "sha256: and 64 lower-case hexadecimal digits".to_owned();
        Err(ArtifactError::Field { field, found: self.digest.clone(), expected })
    }
}

impl Manifest {
    /// The manifest of a config blob and an ONNX file.
    pub fn of(config: &[u8], onnx: &[u8]) -> Self {
        Self {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.to_owned(),
            artifact_type: ARTIFACT_TYPE.to_owned(),
            config: Descriptor::of(CONFIG_MEDIA_TYPE, config),
            layers: vec![Descriptor::of(ONNX_MEDIA_TYPE, onnx)],
        }
    }

    /// The manifest as it is stored: JSON without spaces, fields in the order of this type. The
    /// digest of these bytes ([`digest::of`]) is the model version's.
    pub fn to_bytes(&self) -> Vec<u8> {
        stored(self)
    }

    /// Parses a stored manifest; members that are not known are left alone.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the field that is not a model version's.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let manifest: Self = json("manifest", bytes)?;
        expect("schemaVersion", &manifest.schema_version.to_string(), "2")?;
        expect("mediaType", &manifest.media_type, MANIFEST_MEDIA_TYPE)?;
        expect("artifactType", &manifest.artifact_type, ARTIFACT_TYPE)?;
        manifest.config.check("config", CONFIG_MEDIA_TYPE)?;
        match manifest.layers.as_slice() {
            [layer] => layer.check("layers", ONNX_MEDIA_TYPE)?,
            [layer, training] => {
                layer.check("layers", ONNX_MEDIA_TYPE)?;
                training.check("layers", ONNX_TRAINING_MEDIA_TYPE)?;
            }
            layers => expect("layers", &layers.len().to_string(), "1 or 2")?,
        }
        Ok(manifest)
    }

    /// The ONNX file.
    ///
    /// # Panics
    /// When the manifest was neither made by [`Manifest::of`] nor by [`Manifest::parse`] and has
    /// no layers.
    pub fn onnx(&self) -> &Descriptor {
        &self.layers[0]
    }
}

impl ModelConfig {
    /// Fills in what the ONNX file itself says: inputs, outputs and the number of parameters.
    ///
    /// # Errors
    /// [`GraphError`](crate::graph::GraphError) when the bytes are no model.
    #[cfg(feature = "tract")]
    pub fn describe(&mut self, onnx: &bytes::Bytes) -> Result<(), crate::graph::GraphError> {
        let description = crate::engine::describe(onnx)?;
        self.inputs = description.inputs;
        self.outputs = description.outputs;
        self.parameters = description.parameters;
        Ok(())
    }

    /// The config as it is stored: JSON without spaces, fields in the order of this type.
    pub fn to_bytes(&self) -> Vec<u8> {
        stored(self)
    }

    /// Parses a stored config.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let config: Self = json("config", bytes)?;
        if let Some(preprocessing) = &config.preprocessing {
            preprocessing.check()?;
        }
        Ok(config)
    }
}

fn stored(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("names, text and numbers make JSON")
}

fn json<T: for<'de> Deserialize<'de>>(
    document: &'static str,
    bytes: &[u8],
) -> Result<T, ArtifactError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(ArtifactError::TooLarge { document, len: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|source| ArtifactError::Json { document, source })
}

fn expect(field: &'static str, found: &str, expected: &str) -> Result<(), ArtifactError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_owned(), expected.to_owned());
    Err(ArtifactError::Field { field, found, expected })
}

#[cfg(test)]
mod tests;
