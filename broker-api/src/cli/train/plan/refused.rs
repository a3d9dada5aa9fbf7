//! Why a plan is not asked for: its mistakes, with those that only the broker knows of.

use std::path::PathBuf;

use reqwest::Method;

use super::named::named;
use super::{Request, wrong};
use crate::cli::client::Client;
use crate::cli::failure::CliError;
use crate::cli::train::Given;
use crate::request::training::in_body;

/// What is wrong with a plan, and the plan as far as it can be read.
#[derive(Debug)]
pub(in crate::cli::train) struct Mistakes {
    /// One text each.
    pub(super) problems: Vec<String>,
    /// None where no part of it makes sense to the broker.
    pub(super) request: Option<Box<Request>>,
}

/// Why nothing is asked for.
#[derive(Debug)]
pub(in crate::cli::train) enum Refused {
    /// There is no plan.
    Unread(CliError),
    /// It has mistakes; without a name the flags alone have.
    Mistaken(Option<PathBuf>, Mistakes),
}

impl From<CliError> for Refused {
    fn from(error: CliError) -> Self {
        Self::Unread(error)
    }
}

impl Refused {
    /// All mistakes, with those that only the broker knows of, if it answers; it accepts nothing.
    pub(in crate::cli::train) async fn told(self, client: &Client, given: &Given) -> CliError {
        let (of, Mistakes { mut problems, request }) = match self {
            Self::Unread(error) => return error,
            Self::Mistaken(of, mistakes) => (of, mistakes),
        };
        if let Some(request) = request {
            let check = client.request(Method::POST, "/v1/jobs", &[("dry_run", "true")]);
            let refused = client.send(check.json(&request.body())).await.err();
            for problem in refused.into_iter().flat_map(|error| error.errors) {
                let problem = in_body(problem);
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        let problems: Vec<String> =
            problems.into_iter().map(|problem| named(problem, given)).collect();
        wrong(of.as_deref(), &problems)
    }
}
