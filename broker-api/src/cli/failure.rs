//! How commands fail: what happened, what to do, and the exit code.

use std::io::Write as _;

use serde_json::json;

use crate::error::Problem;

/// Exit code when a job, or the broker, did not do what was asked.
pub(super) const FAILED: u8 = 1;
/// Exit code for wrong usage and for a broker that cannot be reached.
pub(super) const USAGE: u8 = 2;

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(super) struct CliError {
    /// The exit code.
    pub(super) code: u8,
    /// The stable word, if the broker gave one.
    pub(super) word: String,
    /// What happened.
    pub(super) detail: String,
    /// What to do about it.
    pub(super) hint: String,
    /// Everything that is wrong, where the broker tells it at once; `detail` has it too.
    pub(super) errors: Vec<String>,
}

impl CliError {
    /// The command was used wrongly, or something outside of the job stands in the way.
    pub(super) fn usage(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: USAGE, ..Self::failed("usage", detail, hint) }
    }

    /// The job failed.
    pub(super) fn failed(word: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        let word = word.to_owned();
        let (detail, hint, errors) = (detail.into(), hint.into(), Vec::new());
        Self { code: FAILED, word, detail, hint, errors }
    }

    /// A file that cannot be read or written.
    pub(super) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::usage(format!("{}: {error}", path.display()), "")
    }

    /// Prints `error: ...` and `hint: ...`, or one JSON document, on standard error.
    pub(super) fn print(&self, json: bool) {
        if self.detail.is_empty() {
            return;
        }
        let mut to = std::io::stderr().lock();
        // Nothing is left to be done when even this cannot be written.
        let _ = if json {
            let mut value = json!({ "code": self.word, "detail": self.detail, "hint": self.hint });
            if !self.errors.is_empty() {
                value["errors"] = json!(self.errors);
            }
            writeln!(to, "{value}")
        } else if self.hint.is_empty() {
            writeln!(to, "error: {}", self.detail)
        } else {
            writeln!(to, "error: {}\nhint: {}", self.detail, self.hint)
        };
    }
}

/// Prints `warning: ...` on standard error.
pub(super) fn warn(text: &str) {
    // Nothing is left to be done when even this cannot be written.
    let _ = writeln!(std::io::stderr().lock(), "warning: {text}");
}

/// Problems one below the other; one alone is itself.
pub(super) fn listed(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        problems => format!("{} mistakes:\n  {}", problems.len(), problems.join("\n  ")),
    }
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        // The request was wrong, or the broker cannot work: nothing was tried.
        let usage =
            matches!(problem.status, 400 | 404 | 405 | 413 | 415) || problem.code == "unavailable";
        let code = if usage { USAGE } else { FAILED };
        let Problem { code: word, hint, errors, .. } = problem;
        let detail = if errors.len() > 1 { listed(&errors) } else { problem.detail };
        Self { code, word, detail, hint, errors }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever reads has enough, as in `dunlin devices | head`.
            return Self {
                code: 0,
                word: String::new(),
                detail: String::new(),
                hint: String::new(),
                errors: Vec::new(),
            };
        }
        Self::usage(format!("output: {error}"), "")
    }
}
