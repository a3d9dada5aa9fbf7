//! What goes wrong at the broker's edge: a stable code, what happened, and what to do.

use jobs::report::{Failure, FailureCode};
use serde::{Deserialize, Serialize};

/// The stable codes of the API, with their HTTP status in [`ApiCode::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiCode {
    /// The body is not JSON, or not in the form that is asked for.
    InvalidBody,
    /// The specification cannot be carried out.
    InvalidSpec,
    /// No such job.
    UnknownJob,
    /// No such round, or it has not ended.
    UnknownRound,
    /// No such device.
    UnknownDevice,
    /// No such model or version.
    UnknownModel,
    /// No device declares such a data set.
    UnknownDataset,
    /// No such path.
    UnknownPath,
    /// A page of another site asks for a change through somebody's browser.
    CrossSite,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The same id or key was used for something else.
    Conflict,
    /// The job has no result yet.
    NotEnded,
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
            ApiCode::UnknownRound => "unknown_round",
            ApiCode::UnknownDevice => "unknown_device",
            ApiCode::UnknownModel => "unknown_model",
            ApiCode::UnknownDataset => "unknown_dataset",
            ApiCode::UnknownPath => "unknown_path",
            ApiCode::CrossSite => "cross_site",
            ApiCode::MethodNotAllowed => "method_not_allowed",
            ApiCode::Conflict => "conflict",
            ApiCode::NotEnded => "not_ended",
            ApiCode::TooLarge => "too_large",
            ApiCode::UnsupportedMediaType => "unsupported_media_type",
            ApiCode::Unavailable => "unavailable",
            ApiCode::Overloaded => "overloaded",
            ApiCode::Internal => "internal",
            ApiCode::Job(code) => code.as_str(),
        }
    }

    /// The stable word as a title for people: `Unknown job`.
    pub fn title(self) -> String {
        let words = self.as_str().replace('_', " ");
        let (first, rest) = words.split_at(1);
        first.to_ascii_uppercase() + rest
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            ApiCode::InvalidBody | ApiCode::InvalidSpec => 400,
            ApiCode::UnknownJob
            | ApiCode::UnknownRound
            | ApiCode::UnknownDevice
            | ApiCode::UnknownModel
            | ApiCode::UnknownDataset
            | ApiCode::UnknownPath => 404,
            ApiCode::CrossSite => 403,
            ApiCode::MethodNotAllowed => 405,
            ApiCode::Conflict | ApiCode::NotEnded => 409,
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
        | FailureCode::Diverged
        | FailureCode::BudgetSpent => 422,
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
        | FailureCode::EngineUnavailable
        | FailureCode::OutOfMemory
        | FailureCode::Metered
        | FailureCode::Guarded
        | FailureCode::NotThere
        | FailureCode::Quarantined
        | FailureCode::NoRoom => 503,
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
    /// Everything that is wrong, one text each, where it is told at once; `detail` has it too.
    pub errors: Vec<String>,
}

impl ApiError {
    /// Puts the three together.
    pub fn new(code: ApiCode, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), hint: hint.into(), errors: Vec::new() }
    }

    /// Several in one, with the code of the first and the hints of all; none when there are none.
    pub(crate) fn all(errors: Vec<Self>) -> Option<Self> {
        let texts = errors.iter().flat_map(|error| match &error.errors[..] {
            [] => std::slice::from_ref(&error.detail),
            errors => errors,
        });
        let texts: Vec<String> = texts.cloned().collect();
        let detail = texts.join("; ");
        let mut hints: Vec<&str> = Vec::new();
        for error in errors.iter().filter(|error| !error.hint.is_empty()) {
            if !hints.contains(&error.hint.as_str()) {
                hints.push(&error.hint);
            }
        }
        let hint = hints.join("; ");
        let first = errors.into_iter().next()?;
        Some(Self { detail, hint, errors: texts, ..first })
    }

    /// The body in which people get it.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: format!("urn:dunlin:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status(),
            detail: self.detail.clone(),
            code: self.code.as_str().to_owned(),
            hint: self.hint.clone(),
            error: self.detail.clone(),
            errors: self.errors.clone(),
        }
    }
}

/// Media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A problem as it travels (RFC 9457), with the `error` member of the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:dunlin:problem:<code>`
    #[serde(rename = "type")]
    pub kind: String,
    /// The code for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, with the values that matter.
    pub detail: String,
    /// The stable code.
    pub code: String,
    /// What to do about it.
    pub hint: String,
    /// The same as `detail`, where Open Inference Protocol clients look for it.
    pub error: String,
    /// Everything that is wrong, one text each, where it is told at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

impl Problem {
    /// The JSON text.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem is text and numbers")
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let placing = [FailureCode::NoDevice, FailureCode::EngineUnavailable];
        let hint = if placing.contains(&failure.code) {
            "see which devices are there with 'dunlin devices', and the engines of one with \
             'dunlin devices NAME'"
        } else {
            ""
        };
        Self::new(ApiCode::Job(failure.code), failure.message, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_carry_the_code_in_every_form() {
        let error = ApiError::new(ApiCode::UnknownJob, "no job x", "list them");
        let problem: Problem = serde_json::from_slice(&error.problem().to_json()).unwrap();
        assert_eq!(problem.kind, "urn:dunlin:problem:unknown_job");
        assert_eq!((problem.title.as_str(), problem.status), ("Unknown job", 404));
        assert_eq!((problem.detail, problem.error), ("no job x".into(), "no job x".into()));
    }

    #[test]
    fn several_errors_are_one_with_each_of_their_texts() {
        let error = |code, detail: &str| ApiError::new(code, detail, detail.to_uppercase());
        assert_eq!(ApiError::all(Vec::new()), None);
        let both = vec![error(ApiCode::InvalidSpec, "a; b"), error(ApiCode::UnknownModel, "c")];
        let both = ApiError::all(both).unwrap();
        let again = ApiError::all(vec![both, error(ApiCode::UnknownDataset, "d")]).unwrap();
        let problem = again.problem();
        assert_eq!((problem.code.as_str(), problem.hint.as_str()), ("invalid_spec", "A; B; C; D"));
        assert_eq!(problem.detail, "a; b; c; d");
        assert_eq!(problem.errors, ["a; b", "c", "d"]);
    }

    #[test]
    fn a_failed_job_has_an_error_status() {
        for code in FailureCode::ALL {
            assert!((400..600).contains(&ApiCode::Job(*code).status()), "{code:?}");
        }
    }
}
