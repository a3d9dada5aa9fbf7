//! Engines run models for inference: one trait, and the engines that live in this crate.

use crate::graph::GraphError;
use crate::tensor::Tensor;

pub mod choice;
pub mod classify;
pub mod declared;
#[cfg(feature = "tract")]
mod describe;
pub mod frames;
pub mod native;
mod pieces;
pub mod plain;
#[cfg(test)]
mod testing;
#[cfg(feature = "tract")]
pub mod tract;

#[cfg(feature = "tract")]
pub use describe::{Description, describe};

/// Prepares models for running.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// The name in reports and facts, such as `tract`.
    fn name(&self) -> &'static str;

    /// Loads an ONNX file.
    ///
    /// # Errors
    /// [`EngineError`] naming the node that stands in the way.
    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError>;
}

/// A model that is ready to run; calls need no lock, so a session can serve several threads.
pub trait Session: Send + Sync + std::fmt::Debug {
    /// Declared inputs, in order.
    fn inputs(&self) -> &[crate::artifact::TensorInfo];

    /// Declared outputs, in order.
    fn outputs(&self) -> &[crate::artifact::TensorInfo];

    /// Runs the model; inputs in the order of [`Session::inputs`].
    ///
    /// A batch larger than a model's fixed batch is run in pieces and joined; a smaller one is
    /// filled up with its last example. Where such a model takes one example and its output
    /// leaves out the batch, the joined output has it in front.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the inputs do not fit.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError>;
}

/// Why an engine cannot do it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be used at all.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The inputs do not fit the model.
    #[error("input {name:?}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        name: String,
        /// What would fit.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The engine failed while running.
    #[error("engine {engine} failed: {message}")]
    Run {
        /// Which engine.
        engine: &'static str,
        /// What it said.
        message: String,
    },
}
