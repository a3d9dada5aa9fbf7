//! Errors of the numerics as the closed set of failures.

use jobs::report::{Failure, FailureCode};
use models::engine::EngineError;
use models::engine::frames::Cause;
use models::graph::GraphError;
use models::params::ParametersError;
use models::train::TrainError;

use crate::engines::{HelperError, SessionError};

pub(super) fn of_graph(error: &GraphError) -> Failure {
    let code = match error {
        GraphError::Operator { .. } => FailureCode::UnsupportedOperator,
        GraphError::Shape { .. } => FailureCode::ShapeMismatch,
        GraphError::NotOnnx(_) | GraphError::Node { .. } | GraphError::Graph(_) => {
            FailureCode::InvalidModel
        }
    };
    Failure::new(code, error.to_string())
}

pub(super) fn of_parameters(error: &ParametersError) -> Failure {
    let code = match error {
        ParametersError::Shape { .. } => FailureCode::ShapeMismatch,
        ParametersError::Format(_)
        | ParametersError::Missing(_)
        | ParametersError::Unexpected(_)
        | ParametersError::NotFinite { .. } => FailureCode::InvalidUpdate,
    };
    Failure::new(code, error.to_string())
}

pub(super) fn of_training(error: &TrainError) -> Failure {
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

/// Of an engine of the CPU.
pub(super) fn of_session(error: &SessionError) -> Failure {
    let code = match error {
        SessionError::Own(error) => return of_engine(error),
        SessionError::Helped(HelperError::Refused { cause, .. }) => match cause {
            Cause::Operator => FailureCode::UnsupportedOperator,
            Cause::Shape => FailureCode::ShapeMismatch,
            Cause::Other => FailureCode::InvalidModel,
        },
        SessionError::Helped(HelperError::Failed(_) | HelperError::Gone(_))
        | SessionError::Absent(_) => FailureCode::EngineUnavailable,
    };
    Failure::new(code, error.to_string())
}

pub(super) fn of_engine(error: &EngineError) -> Failure {
    let code = match error {
        EngineError::Graph(error) => return of_graph(error),
        EngineError::Input { .. } => FailureCode::InvalidInput,
        EngineError::Run { .. } => FailureCode::Internal,
    };
    Failure::new(code, error.to_string())
}
