//! The graph that is trained and run: operators with shapes inferred and checked.
//!
//! Reads and writes [`crate::onnx`] models; knows nothing of kernels.

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// The bytes are not an ONNX model; says what they look like.
    #[error("not an ONNX model: {0}")]
    NotOnnx(String),
    /// An operator outside the set.
    #[error("node {node:?}: operator {operator} is not supported for {purpose}")]
    Operator {
        /// The node's name.
        node: String,
        /// The operator, with its domain if it is not ONNX's own.
        operator: String,
        /// `training`, for instance.
        purpose: &'static str,
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
