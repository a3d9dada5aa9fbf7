//! The `native` engine: trains and evaluates an ONNX graph on the CPU.

use crate::graph::GraphError;
use crate::params::{Parameters, ParametersError};

/// Stochastic gradient descent as PyTorch does it: `g += weight_decay * w`,
/// `v = momentum * v + g`, `w -= learning_rate * v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f32,
    /// 0 to below 1.
    pub momentum: f32,
    /// L2 penalty added to the gradient.
    pub weight_decay: f32,
}

/// What a step or an evaluation of one batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchResult {
    /// Mean loss of the batch.
    pub loss: f64,
    /// Examples classified rightly.
    pub correct: usize,
    /// Examples of the batch.
    pub examples: usize,
}

/// Why training cannot begin or go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// The graph cannot be trained.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The parameters are not this graph's.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// A label outside of the model's classes.
    #[error("label {label} is out of range: the model has {classes} classes")]
    Label {
        /// The label.
        label: u32,
        /// The model's classes.
        classes: usize,
    },
    /// The batch's shape is not the model's.
    #[error("batch: expected examples of shape {expected:?}, found {found}")]
    Batch {
        /// Shape of one example.
        expected: Vec<usize>,
        /// What was given.
        found: String,
    },
    /// The loss became NaN or infinite.
    #[error("loss is {loss} at step {step}: lower the learning rate")]
    Diverged {
        /// NaN or an infinity.
        loss: f64,
        /// Counted from 1.
        step: u64,
    },
}

/// A graph in training, with its parameters, gradients, optimizer state and buffers.
#[derive(Debug)]
pub struct Trainer {}

impl Trainer {
    /// Checks the graph and allocates what training needs.
    ///
    /// # Errors
    /// [`TrainError::Graph`] names the node that cannot be trained.
    pub fn new(_onnx: &[u8], _sgd: Sgd) -> Result<Self, TrainError> {
        unimplemented!()
    }

    /// Shape of one example, `[c, h, w]` or `[d]`.
    pub fn example_shape(&self) -> &[usize] {
        unimplemented!()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        unimplemented!()
    }

    /// The parameters and running statistics now.
    pub fn parameters(&self) -> Parameters {
        unimplemented!()
    }

    /// Replaces parameters and running statistics; the optimizer's state starts anew.
    ///
    /// # Errors
    /// [`TrainError::Parameters`] when names or shapes differ.
    pub fn set_parameters(&mut self, _parameters: &Parameters) -> Result<(), TrainError> {
        unimplemented!()
    }

    /// One optimizer step on a batch: `examples [n, ...example_shape]` row-major, `labels [n]`.
    ///
    /// # Errors
    /// [`TrainError::Label`], [`TrainError::Batch`], [`TrainError::Diverged`].
    pub fn step(&mut self, _examples: &[f32], _labels: &[u32]) -> Result<BatchResult, TrainError> {
        unimplemented!()
    }

    /// Loss and accuracy of a batch with running statistics, changing nothing.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate(
        &mut self,
        _examples: &[f32],
        _labels: &[u32],
    ) -> Result<BatchResult, TrainError> {
        unimplemented!()
    }

    /// The graph in training form with the parameters of now, as an ONNX file.
    pub fn to_training_onnx(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// The graph for inference with the parameters of now, as an ONNX file: batch
    /// normalisation uses its running statistics, training-only nodes are gone.
    pub fn to_inference_onnx(&self) -> Vec<u8> {
        unimplemented!()
    }
}
