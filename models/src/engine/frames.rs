//! What an agent and a helper, which holds engines in a process of its own, say to each other.
//!
//! A helper serves one engine. It begins with [`Reply::Hello`]; then each request is answered by
//! one reply, in order. A message is a frame: the length of its header (`u32`) and of its body
//! (`u64`), little-endian, the header as JSON, the body as bytes: an ONNX file, or the elements of
//! tensors one after another, little-endian, rows first.
//!
//! A long body may lie at the beginning of memory that both share, instead of following its header:
//! the highest bit of its length says so. A request's header is sent before its body is copied, so
//! that the helper wakes up meanwhile; one byte after it says when the body is in place,
//! [`IN_PLACE`], or that there was no memory left and the body [`FOLLOWS`]. The agent makes that
//! memory, a file that [`MEMORY`] names, and the helper's hello says whether it has opened it. Whose
//! turn it is may write to it: the agent until its request is sent, then the helper until its reply
//! is.
//!
//! Only bytes here: pipes, memory and processes are the shells'.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::artifact::TensorInfo;
use crate::tensor::{Tensor, width};

/// Changes when older helpers would not understand.
pub const PROTOCOL: u32 = 2;
/// Bytes before the header.
pub const PREFIX: usize = 12;
/// Longest header, bytes.
pub const HEADER_MAX: u32 = 1 << 20;
/// Longest body, bytes.
pub const BODY_MAX: u64 = 1 << 31;
/// Longest body that follows its header where there is shared memory, bytes.
pub const PIPED_MAX: usize = 16 << 10;
/// Length of the shared memory, bytes; longer bodies follow their headers.
pub const SHARED_MAX: usize = 64 << 20;
/// After the header of a request whose body is in the shared memory now.
pub const IN_PLACE: u8 = 1;
/// After the header of a request whose body comes next in the pipe.
pub const FOLLOWS: u8 = 0;
/// The variable of a helper's environment that names the file of the shared memory.
pub const MEMORY: &str = "DUNLIN_MEMORY";

/// In the length of a body that lies in the shared memory.
const SHARED: u64 = 1 << 63;

/// What an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Load the ONNX file of the body; answered by [`Reply::Loaded`].
    Load {
        /// What the session is called from then on.
        session: u64,
    },
    /// Run a model on the tensors of the body, in the order of its inputs; answered by
    /// [`Reply::Answered`].
    Run {
        /// Which model.
        session: u64,
        /// What the body holds.
        inputs: Vec<Header>,
    },
    /// Forget a model; answered by [`Reply::Unloaded`], also when there is none of this name.
    Unload {
        /// Which.
        session: u64,
    },
}

/// What a helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// The helper is ready.
    Hello {
        /// See [`PROTOCOL`].
        protocol: u32,
        /// The engine that it serves.
        engine: String,
        /// Whether it has opened the shared memory.
        #[serde(default)]
        memory: bool,
    },
    /// The model is ready.
    Loaded {
        /// Its inputs, in order.
        inputs: Vec<TensorInfo>,
        /// Its outputs, in order.
        outputs: Vec<TensorInfo>,
    },
    /// The model's outputs.
    Answered {
        /// The engine's own time, microseconds.
        engine_us: u64,
        /// What the body holds.
        outputs: Vec<Header>,
    },
    /// The model is forgotten.
    Unloaded,
    /// It cannot be done; the helper goes on.
    Refused {
        /// Why, for people.
        reason: String,
        /// Why, for programs.
        #[serde(default)]
        cause: Cause,
    },
}

/// What stands in the way of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The model has an operator, or a form of it, that the engine lacks.
    Operator,
    /// Shapes in the model do not fit each other.
    Shape,
    /// Anything else, which may pass: memory that lacked, a driver that was in a bad state.
    #[default]
    Other,
}

/// A tensor of a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// As in Open Inference Protocol V2, such as `FP32`.
    pub datatype: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

impl Header {
    /// That of a tensor.
    pub fn of(tensor: &Tensor) -> Self {
        Self { datatype: tensor.data().datatype().to_owned(), shape: tensor.shape().to_vec() }
    }
}

/// What a helper found out about an engine, as `dunlin-accel probe ENGINE` prints it in JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// Which engine.
    pub engine: String,
    /// Why it cannot be used; `None` where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
    /// The accelerator, such as `NVIDIA GeForce RTX 3080 Ti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Driver with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The library that was loaded, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// The accelerator's own memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Floating-point operations per second, in 10^9, of a known model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Lengths beyond [`HEADER_MAX`] and [`BODY_MAX`].
    #[error("a frame of {header} + {body} bytes: expected at most {HEADER_MAX} + {BODY_MAX}")]
    TooLarge {
        /// Length of the header.
        header: u32,
        /// Length of the body.
        body: u64,
    },
    /// A header that is no message.
    #[error("a frame's header is no message: {0}")]
    Header(String),
    /// A body in shared memory, where there is none.
    #[error("a frame's body is in memory that is not shared")]
    NotShared,
    /// Neither [`IN_PLACE`] nor [`FOLLOWS`] after a request's header.
    #[error("byte {0} after a request's header: expected {FOLLOWS} or {IN_PLACE}")]
    Place(u8),
    /// A body that does not hold what its header says.
    #[error("a frame's body: {0}")]
    Body(String),
}

/// Lengths that a prefix announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Of the header, bytes.
    pub header: usize,
    /// Of the body, bytes.
    pub body: usize,
    /// Whether the body lies in the shared memory; else it follows the header.
    pub shared: bool,
}

/// Prefix and header of a frame whose body, `body` bytes, follows.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode<M: Serialize>(message: &M, body: usize) -> Result<Vec<u8>, FrameError> {
    encode_with(message, body, 0)
}

/// Prefix and header of a frame whose body, `body` bytes, lies in the shared memory; a request's are
/// followed by [`IN_PLACE`] or [`FOLLOWS`].
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode_shared<M: Serialize>(message: &M, body: usize) -> Result<Vec<u8>, FrameError> {
    encode_with(message, body, SHARED)
}

fn encode_with<M: Serialize>(message: &M, body: usize, place: u64) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; PREFIX];
    serde_json::to_writer(&mut bytes, message).map_err(|e| FrameError::Header(e.to_string()))?;
    let header = u32::try_from(bytes.len() - PREFIX).unwrap_or(u32::MAX);
    let body = body as u64;
    if header > HEADER_MAX || body > BODY_MAX {
        return Err(FrameError::TooLarge { header, body });
    }
    bytes[..4].copy_from_slice(&header.to_le_bytes());
    bytes[4..PREFIX].copy_from_slice(&(body | place).to_le_bytes());
    Ok(bytes)
}

/// Reads a prefix.
///
/// # Errors
/// [`FrameError::TooLarge`], as foreign bytes mostly are.
pub fn lengths(prefix: [u8; PREFIX]) -> Result<Lengths, FrameError> {
    let [a, b, c, d, rest @ ..] = prefix;
    let (header, body) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(rest));
    let (shared, body) = (body & SHARED != 0, body & !SHARED);
    let too_large = FrameError::TooLarge { header, body };
    if header > HEADER_MAX || body > BODY_MAX {
        return Err(too_large);
    }
    match (usize::try_from(header), usize::try_from(body)) {
        (Ok(header), Ok(body)) => Ok(Lengths { header, body, shared }),
        _ => Err(too_large),
    }
}

/// Reads a header.
///
/// # Errors
/// [`FrameError::Header`].
pub fn decode<M: DeserializeOwned>(header: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(header).map_err(|error| FrameError::Header(error.to_string()))
}

/// Headers of tensors, and the parts of the body that travels with them.
pub fn pack(tensors: &[Tensor]) -> (Vec<Header>, Vec<&[u8]>) {
    tensors.iter().map(|tensor| (Header::of(tensor), tensor.le_bytes())).unzip()
}

/// The elements of each tensor of a body.
///
/// # Errors
/// [`FrameError::Body`] when the body does not hold what the headers say.
pub fn split<'a>(headers: &[Header], mut body: &'a [u8]) -> Result<Vec<&'a [u8]>, FrameError> {
    let mut parts = Vec::with_capacity(headers.len());
    for Header { datatype, shape } in headers {
        let width = width(datatype).ok_or_else(|| {
            FrameError::Body(format!("datatype {datatype:?} is not known to this program"))
        })?;
        let len = shape.iter().try_fold(width, |len, extent| len.checked_mul(*extent));
        let part = len.and_then(|len| body.split_at_checked(len));
        let (part, rest) = part.ok_or_else(|| {
            FrameError::Body(format!("{} bytes for {datatype} of shape {shape:?}", body.len()))
        })?;
        body = rest;
        parts.push(part);
    }
    if body.is_empty() {
        Ok(parts)
    } else {
        Err(FrameError::Body(format!("{} bytes too many", body.len())))
    }
}

/// The tensors of a body.
///
/// # Errors
/// [`FrameError::Body`].
pub fn unpack(headers: &[Header], body: &[u8]) -> Result<Vec<Tensor>, FrameError> {
    let parts = split(headers, body)?.into_iter();
    let tensor = |(header, part): (&Header, &[u8])| {
        let tensor = Tensor::from_le_bytes(&header.datatype, &header.shape, part);
        tensor.map_err(|error| FrameError::Body(error.to_string()))
    };
    headers.iter().zip(parts).map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::Data;

    fn split(bytes: &[u8]) -> (Lengths, &[u8]) {
        let (prefix, rest) = bytes.split_at(PREFIX);
        (lengths(prefix.try_into().unwrap()).unwrap(), rest)
    }

    #[test]
    fn messages_come_back() {
        let tensors = [
            Tensor::f32(&[2, 1], vec![1.5, -0.0]).unwrap(),
            Tensor::new(&[3], Data::I64(vec![1, -2, i64::MAX])).unwrap(),
            Tensor::new(&[2], Data::Bool(vec![true, false])).unwrap(),
            Tensor::f32(&[0, 4], vec![]).unwrap(),
        ];
        let (inputs, parts) = pack(&tensors);
        let body = parts.concat();
        let request = Request::Run { session: 7, inputs };
        let bytes = encode(&request, body.len()).unwrap();
        let (lengths, header) = split(&bytes);
        assert_eq!(lengths, Lengths { header: header.len(), body: body.len(), shared: false });
        let Request::Run { inputs, .. } = decode(header).unwrap() else { panic!() };
        assert_eq!(unpack(&inputs, &body).unwrap(), tensors);
        let reply = Reply::Refused { reason: "operator Mod".into(), cause: Cause::Operator };
        assert_eq!(decode::<Reply>(&encode(&reply, 0).unwrap()[PREFIX..]), Ok(reply));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        assert!(matches!(lengths(*b"Segmentation"), Err(FrameError::TooLarge { .. })));
        assert!(matches!(decode::<Reply>(b"{}"), Err(FrameError::Header(_))));
        let header = |shape: &[usize]| Header { datatype: "FP32".into(), shape: shape.to_vec() };
        for (shape, len) in [([1, 2], 7), ([1, 2], 9), ([usize::MAX, 2], 8)] {
            let refused = unpack(&[header(&shape)], &vec![0; len]);
            assert!(matches!(refused, Err(FrameError::Body(_))), "{shape:?} {len}: {refused:?}");
        }
        let odd = Header { datatype: "COMPLEX".into(), shape: vec![1] };
        assert!(unpack(&[odd], &[0]).unwrap_err().to_string().contains("COMPLEX"));
    }

    proptest! {
        #[test]
        fn prefixes_say_how_long_a_body_is_and_where(
            body in 0..=usize::try_from(BODY_MAX).unwrap(),
            shared: bool,
        ) {
            let encode = if shared { encode_shared } else { encode };
            let bytes = encode(&Reply::Unloaded, body).unwrap();
            let header = bytes.len() - PREFIX;
            prop_assert_eq!(split(&bytes).0, Lengths { header, body, shared });
        }

        #[test]
        fn foreign_headers_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<Request>(&bytes);
            if let Some(prefix) = bytes.first_chunk() {
                let _ = lengths(*prefix);
            }
        }
    }
}
