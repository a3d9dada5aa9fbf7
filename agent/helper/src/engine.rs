//! What the helper asks of an engine: models are loaded from ONNX files and run on bytes.

use models::artifact::TensorInfo;
use models::engine::frames::{self, Cause, Header};
use models::graph::GraphError;

/// Why something cannot be done; the helper goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For people.
    pub reason: String,
    /// For programs.
    pub cause: Cause,
}

impl Refusal {
    /// From anything that says what went wrong, and may go right another time.
    pub fn of(reason: impl std::fmt::Display) -> Self {
        Self { reason: reason.to_string(), cause: Cause::Other }
    }

    /// The same for what the engine lacks for a model, now and later.
    pub fn lacking(reason: impl std::fmt::Display) -> Self {
        Self { reason: reason.to_string(), cause: Cause::Operator }
    }
}

impl From<GraphError> for Refusal {
    fn from(error: GraphError) -> Self {
        let cause = match error {
            GraphError::Operator { .. } => Cause::Operator,
            GraphError::Shape { .. } => Cause::Shape,
            GraphError::NotOnnx(_) | GraphError::Node { .. } | GraphError::Graph(_) => Cause::Other,
        };
        Self { cause, ..Self::of(error) }
    }
}

/// What is known about an engine that could be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The accelerator's name.
    pub device: Option<String>,
    /// Driver with its version.
    pub driver: Option<String>,
    /// The library that was loaded, with its version.
    pub library: Option<String>,
    /// The accelerator's own memory, bytes.
    pub memory: Option<u64>,
}

/// An engine that has found its library and its device.
pub trait Engine: std::fmt::Debug {
    /// What it found.
    fn about(&self) -> About;

    /// Prepares an ONNX file for running.
    ///
    /// # Errors
    /// [`Refusal`] says what stands in the way, with the node's name where there is one.
    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Model>, Refusal>;
}

/// A model that is ready to run.
pub trait Model: std::fmt::Debug {
    /// Declared inputs, in order.
    fn inputs(&self) -> &[TensorInfo];

    /// Declared outputs, in order.
    fn outputs(&self) -> &[TensorInfo];

    /// Runs the model on inputs that have the declared types and, but for the batch, shapes; adds
    /// the outputs' elements to `body` and says what they are.
    ///
    /// # Errors
    /// [`Refusal`] when the engine failed; `body` may hold anything then.
    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal>;
}

/// A tensor in a buffer that somebody else holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    /// As in Open Inference Protocol V2, such as `FP32`.
    pub datatype: &'a str,
    /// Extents, slowest first.
    pub shape: &'a [usize],
    /// Elements in row-major order, little-endian.
    pub bytes: &'a [u8],
}

/// The tensors of a body.
///
/// # Errors
/// [`Refusal`] when the body does not hold what the headers say.
pub fn views<'a>(headers: &'a [Header], body: &'a [u8]) -> Result<Vec<View<'a>>, Refusal> {
    let parts = frames::split(headers, body).map_err(Refusal::of)?;
    let view = |(header, bytes): (&'a Header, &'a [u8])| {
        let Header { datatype, shape } = header;
        View { datatype, shape, bytes }
    };
    Ok(headers.iter().zip(parts).map(view).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(datatype: &str, shape: &[usize]) -> Header {
        Header { datatype: datatype.to_owned(), shape: shape.to_vec() }
    }

    #[test]
    fn bodies_are_cut_as_their_headers_say() {
        let headers = [header("FP32", &[1, 2]), header("BOOL", &[3]), header("INT64", &[])];
        let body: Vec<u8> = (0..19).collect();
        let views = views(&headers, &body).unwrap();
        assert_eq!(views[0].bytes, &body[..8]);
        assert_eq!(views[1].bytes, &body[8..11]);
        assert_eq!((views[2].shape, views[2].bytes), (&[][..], &body[11..]));
    }

    #[test]
    fn bodies_that_do_not_fit_are_refused() {
        let refused =
            |header: Header, len: usize| views(&[header], &vec![0; len]).unwrap_err().to_string();
        assert!(refused(header("FP32", &[2]), 7).contains("FP32 of shape [2]"));
        assert!(refused(header("FP32", &[2]), 9).contains("1 bytes too many"));
        assert!(refused(header("FP32", &[usize::MAX, 2]), 8).contains("FP32"));
        assert!(refused(header("COMPLEX", &[1]), 8).contains("COMPLEX"));
    }
}
