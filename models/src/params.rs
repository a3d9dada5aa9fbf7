//! Named parameters: what is trained, exchanged in rounds, and averaged.
//!
//! As bytes they are one safetensors blob of little-endian `F32` tensors in name order, the same
//! bytes for the same parameters everywhere. [`Layout`] knows where in such a blob each tensor
//! lies, so that a blob can be checked and averaged in pieces while it arrives.

mod blob;
pub mod layout;
mod pattern;

pub use blob::ParametersBlob;
pub(crate) use layout::first_not_finite;
pub use layout::{Layout, Span, append_le_bytes, as_le_bytes, extend_from_le_bytes, from_le_bytes};
pub use pattern::is_named;

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
    /// Orders parameters by name.
    ///
    /// # Errors
    /// [`ParametersError::Unexpected`] for a name that is there twice,
    /// [`ParametersError::Format`] for values that do not fill their shape.
    pub fn new(mut items: Vec<Parameter>) -> Result<Self, ParametersError> {
        items.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = items.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(ParametersError::Unexpected(pair[0].name.clone()));
        }
        for item in &items {
            if layout::elements(&item.shape) != Some(item.values.len()) {
                return Err(ParametersError::Format(format!(
                    "parameter {:?} of shape {:?} has {} values",
                    item.name,
                    item.shape,
                    item.values.len()
                )));
            }
        }
        Ok(Self { items })
    }

    /// The parameters in name order.
    pub fn items(&self) -> &[Parameter] {
        &self.items
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<&Parameter> {
        let index = self.items.binary_search_by(|item| item.name.as_str().cmp(name)).ok()?;
        self.items.get(index)
    }

    /// A copy of those that one of these patterns names.
    #[must_use]
    pub fn named(&self, patterns: &[String]) -> Self {
        let items = self.items.iter().filter(|item| is_named(patterns, &item.name));
        Self { items: items.cloned().collect() }
    }

    /// Puts `others` in the place of those with the same names.
    ///
    /// # Errors
    /// [`ParametersError`] naming the first that is not here, or has another shape.
    pub fn replace(&mut self, others: Self) -> Result<(), ParametersError> {
        for other in others.items {
            let at = self.items.binary_search_by(|item| item.name.cmp(&other.name));
            let Ok(at) = at else { return Err(ParametersError::Unexpected(other.name)) };
            if self.items[at].shape != other.shape {
                return Err(ParametersError::Shape {
                    name: other.name,
                    expected: self.items[at].shape.clone(),
                    found: other.shape,
                });
            }
            self.items[at] = other;
        }
        Ok(())
    }

    /// All values in order, in parts.
    pub fn values_mut(&mut self) -> Vec<&mut [f32]> {
        self.items.iter_mut().map(|item| &mut item.values[..]).collect()
    }

    /// Number of values of all parameters together.
    pub fn total_len(&self) -> usize {
        self.items.iter().map(|item| item.values.len()).sum()
    }

    /// Whether these can take the place of `model`: the same names and shapes, all values finite.
    ///
    /// # Errors
    /// [`ParametersError`] naming the first parameter that is missing, unexpected, of another
    /// shape or not finite.
    pub fn check_like(&self, model: &Layout) -> Result<(), ParametersError> {
        let layout = Layout::of(self);
        layout.check_like(model)?;
        let mut offset = 0;
        for item in &self.items {
            layout.check_finite(offset, &item.values)?;
            offset += item.values.len();
        }
        Ok(())
    }

    /// Parses a safetensors blob; its tensors may lie in any order.
    ///
    /// # Errors
    /// [`ParametersError::Format`].
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ParametersError> {
        let layout = Layout::of_whole(bytes)?;
        let data = &bytes[layout.data_start()..];
        let read = |span: &Span| Parameter {
            name: span.name.clone(),
            shape: span.shape.clone(),
            values: layout::from_le_bytes(&data[span.elements.start * 4..span.elements.end * 4]),
        };
        Self::new(layout.spans().iter().map(read).collect())
    }

    /// The safetensors blob; equal parameters give equal bytes.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let mut bytes = Layout::of(self).header();
        bytes.reserve(self.total_len() * 4);
        for item in &self.items {
            append_le_bytes(&item.values, &mut bytes);
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
