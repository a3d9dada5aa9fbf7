//! Errors of the numerics as the closed set of failures.

pub(super) use datasets::failures::{of_graph, of_parameters, of_training};
use jobs::report::{Failure, FailureCode};
use models::engine::EngineError;
use models::engine::frames::Cause;

use crate::engines::{HelperError, SessionError};

/// Of an engine of the CPU.
pub(super) fn of_session(error: &SessionError) -> Failure {
    let code = match error {
        SessionError::Own(error) => return of_engine(error),
        SessionError::Helped(HelperError::Refused { cause, .. }) => match cause {
            Cause::Operator => FailureCode::UnsupportedOperator,
            Cause::Shape => FailureCode::ShapeMismatch,
            Cause::Other => FailureCode::InvalidModel,
        },
        SessionError::Helped(HelperError::Busy(_)) => FailureCode::Busy,
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
