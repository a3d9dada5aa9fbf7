//! What goes wrong at the broker's edge: a stable code, what happened, and what to do.

use jobs::report::{Failure, FailureCode};

/// The stable codes of the API, with their HTTP status in [`ApiCode::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiCode {
    /// The body is not JSON, or not in the form that is asked for.
    InvalidBody,
    /// The specification cannot be carried out.
    InvalidSpec,
    /// No such job.
    UnknownJob,
    /// No such device.
    UnknownDevice,
    /// No such model or version.
    UnknownModel,
    /// No device declares such a data set.
    UnknownDataset,
    /// No such path.
    UnknownPath,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The same id or key was used for something else.
    Conflict,
    /// Larger than the limit.
    TooLarge,
    /// The media type is not one of those accepted here.
    UnsupportedMediaType,
    /// NATS or JetStream does not answer.
    Unavailable,
    /// Too much at once; try again.
    Overloaded,
    /// A fault of the program.
    Internal,
    /// A job ended without success.
    Job(FailureCode),
}

impl ApiCode {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiCode::InvalidBody => "invalid_body",
            ApiCode::InvalidSpec => "invalid_spec",
            ApiCode::UnknownJob => "unknown_job",
            ApiCode::UnknownDevice => "unknown_device",
            ApiCode::UnknownModel => "unknown_model",
            ApiCode::UnknownDataset => "unknown_dataset",
            ApiCode::UnknownPath => "unknown_path",
            ApiCode::MethodNotAllowed => "method_not_allowed",
            ApiCode::Conflict => "conflict",
            ApiCode::TooLarge => "too_large",
            ApiCode::UnsupportedMediaType => "unsupported_media_type",
            ApiCode::Unavailable => "unavailable",
            ApiCode::Overloaded => "overloaded",
            ApiCode::Internal => "internal",
            ApiCode::Job(code) => code.as_str(),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            ApiCode::InvalidBody | ApiCode::InvalidSpec => 400,
            ApiCode::UnknownJob
            | ApiCode::UnknownDevice
            | ApiCode::UnknownModel
            | ApiCode::UnknownDataset
            | ApiCode::UnknownPath => 404,
            ApiCode::MethodNotAllowed => 405,
            ApiCode::Conflict => 409,
            ApiCode::TooLarge => 413,
            ApiCode::UnsupportedMediaType => 415,
            ApiCode::Unavailable | ApiCode::Overloaded => 503,
            ApiCode::Internal => 500,
            ApiCode::Job(code) => job_status(code),
        }
    }
}

fn job_status(code: FailureCode) -> u16 {
    match code {
        FailureCode::InvalidSpec
        | FailureCode::InvalidInput
        | FailureCode::InvalidModel
        | FailureCode::UnsupportedOperator
        | FailureCode::ShapeMismatch
        | FailureCode::InvalidDataset
        | FailureCode::InvalidUpdate
        | FailureCode::Diverged => 422,
        FailureCode::UnknownModel | FailureCode::UnknownDataset => 404,
        FailureCode::TooLarge => 413,
        FailureCode::Cancelled => 409,
        FailureCode::DeadlineExceeded => 504,
        FailureCode::Busy
        | FailureCode::NoDevice
        | FailureCode::DeviceLost
        | FailureCode::ShuttingDown
        | FailureCode::NoQuorum
        | FailureCode::BlobUnavailable
        | FailureCode::DiskFull
        | FailureCode::OutOfMemory => 503,
        FailureCode::Internal => 500,
    }
}

/// An error as people get it, over HTTP and NATS alike (RFC 9457 problem+json).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    /// The stable code.
    pub code: ApiCode,
    /// What happened, with the values that matter.
    pub detail: String,
    /// What to do about it.
    pub hint: String,
}

impl ApiError {
    /// Puts the three together.
    pub fn new(code: ApiCode, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), hint: hint.into() }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::new(ApiCode::Job(failure.code), failure.message, "")
    }
}
