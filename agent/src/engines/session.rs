//! A model in an engine, wherever the engine lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use models::artifact::TensorInfo;
use models::engine::{EngineError, Session};
use models::tensor::Tensor;

use super::helper::{HelperError, HelperSession};

/// A model that is ready to run; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum AnySession {
    /// In this program.
    Own(Arc<dyn Session>),
    /// In a helper.
    Helped(Arc<HelperSession>),
}

/// What an engine gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) outputs: Vec<Tensor>,
    /// The engine's own time.
    pub(crate) took: Duration,
    /// The same with the ways to a helper and back, without the wait for others there.
    pub(crate) whole: Duration,
}

/// Why an engine did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// One of this program.
    #[error(transparent)]
    Own(#[from] EngineError),
    /// One of a helper.
    #[error(transparent)]
    Helped(#[from] HelperError),
    /// It is not to be had on this device.
    #[error("{0}")]
    Absent(String),
}

impl AnySession {
    /// Declared inputs, in order.
    pub(crate) fn inputs(&self) -> &[TensorInfo] {
        match self {
            Self::Own(session) => session.inputs(),
            Self::Helped(session) => session.inputs(),
        }
    }

    /// Declared outputs, in order.
    pub(crate) fn outputs(&self) -> &[TensorInfo] {
        match self {
            Self::Own(session) => session.outputs(),
            Self::Helped(session) => session.outputs(),
        }
    }

    /// Runs the model. An engine of this program cannot be stopped at the limit.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) fn run(&self, inputs: &[Tensor], limit: Duration) -> Result<Ran, SessionError> {
        match self {
            Self::Own(session) => {
                let began = Instant::now();
                let outputs = session.run(inputs)?;
                let took = began.elapsed();
                Ok(Ran { outputs, took, whole: took })
            }
            Self::Helped(session) => Ok(session.run_timed(inputs, limit)?),
        }
    }

    /// Gives its process up, if it has one of its own that still runs: the next model is loaded
    /// into a new one.
    pub(crate) fn retire(&self, reason: &str) {
        match self {
            Self::Own(_) => {}
            Self::Helped(session) => session.retire(reason),
        }
    }

    /// Whether both are the same model in the same process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own(one), Self::Own(other)) => Arc::ptr_eq(one, other),
            (Self::Helped(one), Self::Helped(other)) => Arc::ptr_eq(one, other),
            (Self::Own(_), Self::Helped(_)) | (Self::Helped(_), Self::Own(_)) => false,
        }
    }
}
