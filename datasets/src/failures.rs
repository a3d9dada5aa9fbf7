//! Errors of the numerics as the closed set of failures.

use jobs::report::{Failure, FailureCode};
use models::graph::GraphError;
use models::params::ParametersError;
use models::train::TrainError;

/// Of a graph that cannot be used.
pub fn of_graph(error: &GraphError) -> Failure {
    let code = match error {
        GraphError::Operator { .. } => FailureCode::UnsupportedOperator,
        GraphError::Shape { .. } => FailureCode::ShapeMismatch,
        GraphError::NotOnnx(_) | GraphError::Node { .. } | GraphError::Graph(_) => {
            FailureCode::InvalidModel
        }
    };
    Failure::new(code, error.to_string())
}

/// Of parameters that are not a model's.
pub fn of_parameters(error: &ParametersError) -> Failure {
    let code = match error {
        ParametersError::Shape { .. } => FailureCode::ShapeMismatch,
        ParametersError::Format(_)
        | ParametersError::Missing(_)
        | ParametersError::Unexpected(_)
        | ParametersError::NotFinite { .. } => FailureCode::InvalidUpdate,
    };
    Failure::new(code, error.to_string())
}

/// Of training or evaluation.
pub fn of_training(error: &TrainError) -> Failure {
    let code = match error {
        TrainError::Graph(error) => return of_graph(error),
        TrainError::Parameters(error) => return of_parameters(error),
        TrainError::Label { .. } => FailureCode::InvalidDataset,
        TrainError::Batch { .. } => FailureCode::ShapeMismatch,
        TrainError::Diverged { .. } => FailureCode::Diverged,
        TrainError::State(_) => FailureCode::Internal,
    };
    Failure::new(code, error.to_string())
}
