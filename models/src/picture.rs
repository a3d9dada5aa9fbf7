//! Pictures become input tensors: decode, convert, resize, normalise.

use std::io::Cursor;

use image::{ImageFormat, ImageReader, RgbImage, imageops};
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
    /// So wide that bringing it to its height takes too much memory.
    #[error(
        "picture of {width} x {height} pixels cannot be brought to {to_width} x {to_height}: \
         cut it or make it narrower"
    )]
    TooWide {
        /// Of the picture.
        width: u32,
        /// Of the picture.
        height: u32,
        /// That is wanted.
        to_width: u32,
        /// That is wanted.
        to_height: u32,
    },
    /// The model's own description is wrong.
    #[error("preprocessing: {0}")]
    Preprocessing(String),
}

/// Pixels of a picture, at most: what a small device can hold decoded.
pub const PIXELS_MAX: u64 = 64 * 1024 * 1024;
/// Pixels between the two passes of resizing, which take 16 bytes each, at most.
const BETWEEN_MAX: u64 = PIXELS_MAX / 4;

impl Preprocessing {
    /// Whether the values can be used: extents above 0 and at most [`PIXELS_MAX`] pixels, 1 or 3
    /// channels, one `mean` and `std` or one per channel, divisors that are finite and not 0.
    ///
    /// # Errors
    /// [`PictureError::Preprocessing`] saying which is wrong.
    pub fn check(&self) -> Result<(), PictureError> {
        let refuse = |problem: String| Err(PictureError::Preprocessing(problem));
        let pixels = u64::from(self.width) * u64::from(self.height);
        if pixels == 0 || pixels > PIXELS_MAX {
            let (width, height) = (self.width, self.height);
            return refuse(format!("expected 1 to {PIXELS_MAX} pixels, found {width} x {height}"));
        }
        if self.channels != 1 && self.channels != 3 {
            return refuse(format!("expected 1 or 3 channels, found {}", self.channels));
        }
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if ![0, 1, self.channels as usize].contains(&values.len()) {
                let (channels, found) = (self.channels, values.len());
                return refuse(format!("expected 1 or {channels} values of {name}, found {found}"));
            }
        }
        let divides = |value: f32| value.is_finite() && value != 0.0;
        if !divides(self.divisor) || !self.std.iter().all(|std| divides(*std)) {
            return refuse("divisor and std must be finite and not 0".to_owned());
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return refuse("mean must be finite".to_owned());
        }
        Ok(())
    }
}

/// Decodes a JPEG or PNG and makes the input tensor of a batch of one: `[1, c, h, w]` or
/// `[1, h, w, c]`, `FP32`.
///
/// Transparency is dropped, 16 bits become 8 and an orientation in EXIF is left alone, as with
/// Pillow's `convert("RGB")`; grey is Pillow's `convert("L")` (ITU-R BT.601). A picture of another
/// size is stretched to the model's with a triangle filter as wide as the shrinking asks for
/// (Pillow's `BILINEAR`); one of the right size keeps its pixels.
///
/// # Errors
/// [`PictureError`]; the size is judged before anything is decoded.
pub fn to_tensor(bytes: &[u8], preprocessing: &Preprocessing) -> Result<Tensor, PictureError> {
    preprocessing.check()?;
    let (width, height) = (preprocessing.width, preprocessing.height);
    let planes = to_planes(bytes, width, height, preprocessing.channels == 1)?;
    Ok(arrange(&planes, preprocessing))
}

/// The pixels 0 to 255 of a JPEG or PNG at a size, as [`to_tensor`] has them before they are
/// normalised: one plane, `[height, width]`, if it is to be grey, else red, green and blue.
///
/// # Errors
/// [`PictureError`]; the size is judged before anything is decoded.
pub fn to_planes(
    bytes: &[u8],
    width: u32,
    height: u32,
    in_grey: bool,
) -> Result<Vec<Vec<u8>>, PictureError> {
    let (found_width, found_height) = dimensions(bytes)?;
    // First the height is changed, then the width.
    let between = u64::from(found_width) * u64::from(height);
    if (found_width, found_height) != (width, height) && between > BETWEEN_MAX {
        return Err(PictureError::TooWide {
            width: found_width,
            height: found_height,
            to_width: width,
            to_height: height,
        });
    }
    let picture = decode(bytes)?;
    let resized = if picture.dimensions() == (width, height) {
        picture
    } else {
        imageops::resize(&picture, width, height, imageops::FilterType::Triangle)
    };
    Ok(if in_grey {
        vec![resized.pixels().map(|pixel| grey(pixel.0)).collect()]
    } else {
        (0..3).map(|at| resized.pixels().map(|pixel| pixel.0[at]).collect()).collect()
    })
}

/// Width and height of a JPEG or PNG, without decoding it.
///
/// # Errors
/// [`PictureError::Decode`].
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), PictureError> {
    reader(bytes)?.into_dimensions().map_err(|error| PictureError::Decode(error.to_string()))
}

/// A reader of either format.
fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, PictureError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(|error| PictureError::Decode(error.to_string()))?;
    match reader.format() {
        Some(ImageFormat::Jpeg | ImageFormat::Png) => Ok(reader),
        other => {
            let found = other.map_or("another thing".to_owned(), |format| format!("{format:?}"));
            Err(PictureError::Decode(format!("found {found} of {} bytes", bytes.len())))
        }
    }
}

/// The decoded picture in red, green and blue.
fn decode(bytes: &[u8]) -> Result<RgbImage, PictureError> {
    let failed = |error: &dyn std::fmt::Display| PictureError::Decode(error.to_string());
    let (width, height) = dimensions(bytes)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > PIXELS_MAX {
        return Err(PictureError::TooLarge { pixels });
    }
    // Guarded, since the bytes are foreign and the decoders are not ours.
    let reader = reader(bytes)?;
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader.decode()));
    match decoded {
        Ok(Ok(picture)) => Ok(picture.into_rgb8()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(PictureError::Decode("the decoder gave up on damaged data".to_owned())),
    }
}

/// Luma as Pillow rounds it: weights 0.299, 0.587, 0.114 in 16-bit fixed point.
fn grey([red, green, blue]: [u8; 3]) -> u8 {
    let sum = u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471;
    u8::try_from((sum + 0x8000) >> 16).unwrap_or(u8::MAX)
}

/// Normalises planes of pixels and lays them out.
fn arrange(planes: &[Vec<u8>], preprocessing: &Preprocessing) -> Tensor {
    let (width, height) = (preprocessing.width as usize, preprocessing.height as usize);
    let pick = |values: &[f32], at: usize, without: f32| {
        values.get(at).or(values.first()).copied().unwrap_or(without)
    };
    let value = |plane: usize, at: usize| {
        let mean = pick(&preprocessing.mean, plane, 0.0);
        let std = pick(&preprocessing.std, plane, 1.0);
        (f32::from(planes[plane][at]) / preprocessing.divisor - mean) / std
    };
    let (count, size) = (planes.len(), width * height);
    let (shape, values) = match preprocessing.layout {
        Layout::Nchw => {
            let values = (0..count).flat_map(|plane| (0..size).map(move |at| (plane, at)));
            ([1, count, height, width], values.map(|(plane, at)| value(plane, at)).collect())
        }
        Layout::Nhwc => {
            let values = (0..size).flat_map(|at| (0..count).map(move |plane| (plane, at)));
            ([1, height, width, count], values.map(|(plane, at)| value(plane, at)).collect())
        }
    };
    Tensor::f32(&shape, values).expect("a value per pixel and plane")
}

#[cfg(test)]
mod tests;
