//! The graph that is trained and run: operators with shapes inferred and checked.
//!
//! Reads and writes [`crate::onnx`] models; knows nothing of kernels. An operator is added by an
//! [`Op`] variant, a reader below `graph/operators.rs`, and its kernel in `kernels.rs`.

use crate::onnx::ModelProto;

mod constants;
mod context;
mod export;
mod op;
mod operators;
mod random;
mod reader;
mod simplify;
mod tail;
mod window;

pub(crate) use export::{folded_model, inference_model, training_model, without_values};
pub(crate) use op::{Activation, Arithmetic, Op, Share};
pub(crate) use window::Window;

/// Most elements that one value may have per example: 1 GiB of `f32`.
const ELEMENTS_MAX: usize = 1 << 28;

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// The bytes are not an ONNX model; says what they look like.
    #[error("not an ONNX model: {0}")]
    NotOnnx(String),
    /// An operator outside the set.
    #[error("node {node:?}: operator {operator} is not supported for {purpose}: {advice}")]
    Operator {
        /// The node's name.
        node: String,
        /// The operator, with its domain if it is not ONNX's own.
        operator: String,
        /// `training`, for instance.
        purpose: &'static str,
        /// What to do.
        advice: String,
    },
    /// Shapes that do not fit.
    #[error("node {node:?}: expected {expected}, found {found}")]
    Shape {
        /// The node's name.
        node: String,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An attribute or input that is wrong.
    #[error("node {node:?}: {problem}")]
    Node {
        /// The node's name.
        node: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// The graph as a whole is wrong.
    #[error("graph: {0}")]
    Graph(String),
}

/// A value by its index in [`Graph::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ValueId(pub(crate) usize);

/// Extents of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Whether there is a batch axis `n` before `dims`.
    pub(crate) batched: bool,
    /// Extents without the batch axis.
    pub(crate) dims: Vec<usize>,
}

impl Shape {
    pub(crate) fn batched(dims: &[usize]) -> Self {
        Self { batched: true, dims: dims.to_vec() }
    }

    /// Elements, per example where batched; [`Graph::read`] has seen to it that this fits.
    pub(crate) fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Extents after the batch axis when broadcast to `rank` of them, as numpy aligns them;
    /// `None` when this cannot be.
    pub(crate) fn aligned(&self, rank: usize) -> Option<Vec<usize>> {
        let dims = match self.dims.split_first() {
            Some((1, rest)) if !self.batched && rest.len() == rank => rest,
            _ => &self.dims,
        };
        if self.batched && dims.len() != rank {
            return None;
        }
        let ones = rank.checked_sub(dims.len())?;
        Some(std::iter::repeat_n(1, ones).chain(dims.iter().copied()).collect())
    }

    /// Elements for a batch of `n`.
    pub(crate) fn len(&self, n: usize) -> usize {
        if self.batched { self.elements() * n } else { self.elements() }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The examples.
    Input,
    /// Computed by a node.
    Node,
    /// Trained.
    Weight,
    /// Running statistics: kept, not trained.
    State,
    /// A weight or running statistics that stay as they are.
    Frozen,
    /// Neither trained nor kept as a parameter.
    Constant,
}

impl Origin {
    /// Whether it is one of the model's parameters, trained or not.
    pub(crate) fn is_parameter(self) -> bool {
        match self {
            Self::Weight | Self::State | Self::Frozen => true,
            Self::Input | Self::Node | Self::Constant => false,
        }
    }
}

/// What flows between nodes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) origin: Origin,
    /// Initial values of weights, states and constants; empty for others.
    pub(crate) initial: Vec<f32>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// The node's name, or its operator and output where it has none.
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) states: Vec<ValueId>,
    pub(crate) output: ValueId,
}

/// A graph with one input and one output of logits, nodes in the order of computation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) input: ValueId,
    /// The logits: before a final softmax or sigmoid, if there is one.
    pub(crate) output: ValueId,
    /// The final softmax or sigmoid, which is not among `nodes`: most losses take logits.
    pub(crate) last: Option<Node>,
    /// The batch size that the model declares, if it is a number.
    pub(crate) fixed_batch: Option<usize>,
    /// Whether the model's only output is what `last` makes of the logits, or the logits where
    /// there is no `last`; else it makes more of them.
    pub(crate) exact: bool,
}

impl Graph {
    /// Reads a model for training: checks operators, attributes and shapes, tells weights from
    /// states and constants.
    ///
    /// # Errors
    /// [`GraphError`] names the node.
    pub(crate) fn read(model: &ModelProto) -> Result<Self, GraphError> {
        let mut graph = reader::read(model)?;
        simplify::simplify(&mut graph);
        Ok(graph)
    }

    /// Computes the final softmax or sigmoid too.
    pub(crate) fn with_last(&mut self) {
        if let Some(last) = self.last.take() {
            self.output = last.output;
            self.nodes.push(last);
        }
    }

    /// The same without initial values, but for constants.
    pub(crate) fn without_values(&self) -> Self {
        let bare = |value: &Value| {
            let (name, shape) = (value.name.clone(), value.shape.clone());
            let parameter = value.origin.is_parameter();
            let initial = if parameter { Vec::new() } else { value.initial.clone() };
            Value { name, shape, origin: value.origin, initial }
        };
        let values = self.values.iter().map(bare).collect();
        let nodes = self.nodes.clone();
        let (input, output, last) = (self.input, self.output, self.last.clone());
        let (fixed_batch, exact) = (self.fixed_batch, self.exact);
        Self { values, nodes, input, output, last, fixed_batch, exact }
    }

    /// Freezes the weights and running statistics with such names.
    pub(crate) fn freeze(&mut self, freezes: impl Fn(&str) -> bool) {
        let parameters = self.values.iter_mut().filter(|value| value.origin.is_parameter());
        for value in parameters.filter(|value| freezes(&value.name)) {
            value.origin = Origin::Frozen;
        }
    }

    pub(crate) fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }
}

#[cfg(test)]
mod tests;
