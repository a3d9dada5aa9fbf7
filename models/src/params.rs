//! Named parameters: what is trained, exchanged in rounds, and averaged.
//!
//! As bytes they are one safetensors blob of little-endian `F32` tensors in name order, the same
//! bytes for the same parameters everywhere.

/// One named tensor of `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// The initializer's name in the ONNX graph.
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// All parameters and state (running statistics) of a model, ordered by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    items: Vec<Parameter>,
}

/// Why bytes or parameters do not fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParametersError {
    /// Not a safetensors blob, or not of `F32`.
    #[error("not parameters: {0}")]
    Format(String),
    /// A tensor that should be there is not.
    #[error("parameter {0:?} is missing")]
    Missing(String),
    /// A tensor that should not be there is.
    #[error("parameter {0:?} is not one of the model's")]
    Unexpected(String),
    /// Another shape than the model's.
    #[error("parameter {name:?} has shape {found:?}, the model has {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// The model's shape.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A value that is NaN or infinite.
    #[error("parameter {name:?} has the value {value} at index {index}")]
    NotFinite {
        /// Which.
        name: String,
        /// Where, counted in row-major order.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

impl Parameters {
    /// Orders parameters by name; a repeated name is an error.
    ///
    /// # Errors
    /// [`ParametersError::Unexpected`] for a name that is there twice.
    pub fn new(_items: Vec<Parameter>) -> Result<Self, ParametersError> {
        unimplemented!()
    }

    /// The parameters in name order.
    pub fn items(&self) -> &[Parameter] {
        &self.items
    }

    /// Parses a safetensors blob.
    ///
    /// # Errors
    /// [`ParametersError::Format`].
    pub fn from_safetensors(_bytes: &[u8]) -> Result<Self, ParametersError> {
        unimplemented!()
    }

    /// The safetensors blob; equal parameters give equal bytes.
    pub fn to_safetensors(&self) -> Vec<u8> {
        unimplemented!()
    }
}
