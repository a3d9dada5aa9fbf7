//! Updates as they travel where bytes are dear: a file that describes itself, written and read in
//! frames, so that neither side holds more than one.
//!
//! ```text
//! "dunlinup"  length u32  header  frame  frame  ...
//! frame:  length u32  [count, gaps of indices]  planes of the values
//! ```
//!
//! - The [`Header`] is JSON, as in safetensors: version, format, number of values, digest of the
//!   model's [layout](layout_digest), and the digest of the parameters that the values are
//!   differences from, if they are. Integers are little-endian.
//! - A frame has [`FRAME_VALUES`] values, the last one fewer. Values are the model's parameters
//!   in the order of its layout, [elements](element) of a [`Format`] taken apart into planes: all
//!   first bytes, all second bytes. A plane is [coded](Coder) where that makes it shorter: of
//!   floats the exponents, of integers nearly all; the lower bits of a mantissa are noise.
//! - A sparse file has only some values of a frame, by index; the others are 0.
//! - Of [`Format::Int8`] each block has a scale of its own, and values are rounded up or down at
//!   random so that their expectation is right.
//!
//! Nothing in a file is trusted: [`Decoder`] knows how many values there have to be, so no file
//! makes it hold or give more.

use serde::{Deserialize, Serialize};

pub use self::coder::Coder;
pub use self::decoder::{Decoder, decode_parameters};
pub use self::encoder::Encoder;
pub use self::largest::{Largest, encode_largest};
use crate::params::{Layout, ParametersError};

mod coder;
mod decoder;
mod element;
mod encoder;
mod frame;
mod largest;
mod rans;

/// How a file begins. Read as the length of a safetensors header it is out of range.
pub const MAGIC: &[u8; 8] = b"dunlinup";
/// The version of the format that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Values of a frame: enough to outweigh the tables of its planes, and few where the updates of
/// hundreds of devices are read side by side.
pub const FRAME_VALUES: usize = 16 * 1024;
/// Values with a scale of their own, at least and at most.
pub const BLOCK_VALUES: std::ops::RangeInclusive<usize> = 256..=4096;
/// Bytes of a header, at most.
const HEADER_BYTES_MAX: usize = 4096;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE 754 binary32: exact.
    Float32,
    /// IEEE 754 binary16, to nearest: an error of 2^-11 of the value, or 2^-25 if that is more;
    /// values up to 65,519.
    Float16,
    /// The upper half of binary32, to nearest: an error of 2^-8 of the value.
    BFloat16,
    /// Integers of -127 to 127 times a scale, the largest magnitude of a block divided by 127; at
    /// random up or down, with the right expectation: an error below the scale (QSGD, Alistarh et
    /// al. 2017).
    Int8 {
        /// Values that share a scale, within [`BLOCK_VALUES`].
        block: usize,
    },
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How a value is written.
    pub format: Format,
    /// What codes the values.
    pub coder: Coder,
    /// Whether values that are not there are 0.
    pub sparse: bool,
    /// Values of the model.
    pub values: usize,
    /// [`layout_digest`] of the model.
    pub layout: String,
    /// The digest of the parameters from which the values are differences; parameters themselves
    /// without one.
    pub base: Option<String>,
}

/// Why values cannot be encoded, or a file cannot be decoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodingError {
    /// The beginning is not that of an encoded update.
    #[error("not an encoded update: {0}")]
    Header(String),
    /// A program that is newer wrote it.
    #[error("an encoded update of version {found}, this program reads up to {VERSION}")]
    Version {
        /// The header's version.
        found: u32,
    },
    /// The update is another model's.
    #[error(
        "the update is of a model of {found} values, expected {expected} of other names or shapes"
    )]
    Layout {
        /// Values of the model.
        expected: usize,
        /// Values that the header announces.
        found: usize,
    },
    /// The update cannot be told apart from these parameters.
    #[error("the update holds {found}, expected {expected}")]
    Base {
        /// What was asked for.
        expected: String,
        /// What the header says.
        found: String,
    },
    /// A frame is not what the header announces.
    #[error("values from {offset} on: {problem}")]
    Frame {
        /// Where the frame begins.
        offset: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A value is NaN or infinite, or the format has no finite one for it.
    #[error("value {index} is {value}, which {format} cannot hold: expected a finite number{hint}", hint = hint(*value))]
    NotFinite {
        /// Counted from the first of the model.
        index: usize,
        /// The value.
        value: f32,
        /// The name of the format.
        format: &'static str,
    },
    /// More or fewer values than the header announces.
    #[error("{found} values, expected {expected}")]
    Length {
        /// As the header says.
        expected: usize,
        /// Found.
        found: usize,
    },
    /// Parameters do not begin with their layout.
    #[error("encoded parameters: {0}")]
    Parameters(#[from] ParametersError),
    /// The bytes go on behind the last value.
    #[error("more bytes than the header announces")]
    TooLong,
}

fn hint(value: f32) -> &'static str {
    if value.is_finite() { " of its range; bfloat16 has that of float32" } else { "" }
}

impl Format {
    /// The word for it in headers and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Int8 { .. } => "int8",
        }
    }

    fn parse(word: &str, block: Option<usize>) -> Option<Self> {
        match (word, block) {
            ("float32", None) => Some(Self::Float32),
            ("float16", None) => Some(Self::Float16),
            ("bfloat16", None) => Some(Self::BFloat16),
            ("int8", Some(block)) if BLOCK_VALUES.contains(&block) => Some(Self::Int8 { block }),
            _ => None,
        }
    }
}

/// Stands for names, shapes and order of a model's parameters: the digest of a safetensors
/// header.
pub fn layout_digest(layout: &Layout) -> String {
    crate::digest::of(&layout.header())
}

/// A header as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    version: u32,
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<usize>,
    #[serde(default, skip_serializing_if = "Coder::is_default")]
    coder: Coder,
    #[serde(default)]
    sparse: bool,
    values: usize,
    layout: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<String>,
}

/// Only this much is read of a header of another version.
#[derive(Debug, Deserialize)]
struct Versioned {
    version: u32,
}

impl Header {
    /// The file's bytes before the first frame.
    fn to_bytes(&self) -> Vec<u8> {
        let block = match self.format {
            Format::Int8 { block } => Some(block),
            Format::Float32 | Format::Float16 | Format::BFloat16 => None,
        };
        let described = Described {
            version: VERSION,
            format: self.format.as_str().to_owned(),
            block,
            coder: self.coder,
            sparse: self.sparse,
            values: self.values,
            layout: self.layout.clone(),
            base: self.base.clone(),
        };
        let json = serde_json::to_vec(&described).expect("names and numbers are JSON");
        let length = u32::try_from(json.len()).expect("a header is short");
        [&MAGIC[..], &length.to_le_bytes(), &json].concat()
    }

    /// The header and its length in bytes; `None` while the bytes do not hold all of it.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, EncodingError> {
        let wrong = |problem: String| EncodingError::Header(problem);
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(wrong("it does not begin with \"dunlinup\"".to_owned()));
        }
        let Some((length, rest)) = bytes.get(MAGIC.len()..).and_then(<[u8]>::split_first_chunk)
        else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > HEADER_BYTES_MAX {
            return Err(wrong(format!(
                "its header has {length} bytes, expected at most {HEADER_BYTES_MAX}"
            )));
        }
        let Some(json) = rest.get(..length) else { return Ok(None) };
        let json_error = |error: serde_json::Error| wrong(format!("its header: {error}"));
        let Versioned { version } = serde_json::from_slice(json).map_err(json_error)?;
        if version != VERSION {
            return Err(EncodingError::Version { found: version });
        }
        let Described { format, block, coder, sparse, values, layout, base, .. } =
            serde_json::from_slice(json).map_err(json_error)?;
        let Some(format) = Format::parse(&format, block) else {
            return Err(wrong(format!("format {format:?} with block {block:?} is not known")));
        };
        let header = Self { format, coder, sparse, values, layout, base };
        Ok(Some((header, MAGIC.len() + 4 + length)))
    }
}

#[cfg(test)]
mod tests;
