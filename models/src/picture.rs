//! Pictures become input tensors: decode, convert, resize, normalise.

use serde::{Deserialize, Serialize};

use crate::tensor::Tensor;

/// How a picture becomes a model's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Channels first (`nchw`) or last (`nhwc`).
    #[serde(default)]
    pub layout: Layout,
    /// Pixel values 0 to 255 are divided by this first.
    #[serde(default = "default_divisor")]
    pub divisor: f32,
    /// Subtracted per channel after the division; one value serves all channels.
    #[serde(default)]
    pub mean: Vec<f32>,
    /// Divides per channel at the end; one value serves all channels.
    #[serde(default)]
    pub std: Vec<f32>,
}

fn default_divisor() -> f32 {
    255.0
}

/// Where the channels stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[n, c, h, w]`
    #[default]
    Nchw,
    /// `[n, h, w, c]`
    Nhwc,
}

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Neither JPEG nor PNG, or damaged.
    #[error("picture cannot be decoded (expected JPEG or PNG): {0}")]
    Decode(String),
    /// Larger than [`PIXELS_MAX`].
    #[error("picture has {pixels} pixels, at most {PIXELS_MAX} are accepted")]
    TooLarge {
        /// Width times height.
        pixels: u64,
    },
    /// The model's own description is wrong.
    #[error("preprocessing: {0}")]
    Preprocessing(String),
}

/// Pixels of a picture, at most: what a small device can hold decoded.
pub const PIXELS_MAX: u64 = 64 * 1024 * 1024;

/// Decodes a JPEG or PNG and makes the input tensor of a batch of one.
///
/// # Errors
/// [`PictureError`].
pub fn to_tensor(_bytes: &[u8], _preprocessing: &Preprocessing) -> Result<Tensor, PictureError> {
    unimplemented!()
}
