//! Why a plan is not asked for: its mistakes, with those that only the broker knows of.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::named::named;
use super::wrong;
use crate::cli::client::{Client, UNREACHABLE};
use crate::cli::failure::CliError;
use crate::cli::train::Given;
use crate::request::training::{Unread, field_of, in_body};

/// A broker that takes longer is not waited for: what is known without it is told.
pub(in crate::cli::train) const BROKER_WITHIN: Duration = Duration::from_secs(3);

/// What is wrong with a plan, and the plan as it is written.
#[derive(Debug)]
pub(in crate::cli::train) struct Mistakes {
    /// One text each.
    pub(super) problems: Vec<String>,
    /// The body that would be asked for; none where no part of it makes sense to the broker.
    pub(super) asked: Option<Value>,
    /// Fields of which a problem tells already that they cannot be read.
    pub(super) told: Unread,
}

impl Mistakes {
    /// Adds what the broker says of the same body, but for what is told already.
    fn add(&mut self, said: Vec<String>) {
        for problem in said.into_iter().map(in_body) {
            if !self.told.has(field_of(&problem)) && !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
    }
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
        let (of, mut mistakes) = match self {
            Self::Unread(error) => return beside_flags(error, given),
            Self::Mistaken(of, mistakes) => (of, mistakes),
        };
        if let Some(asked) = mistakes.asked.take() {
            let check = client.request(Method::POST, "/v1/jobs", &[("dry_run", "true")]);
            let check = check.timeout(BROKER_WITHIN).json(&asked);
            if let Err(refused) = client.send(check).await {
                mistakes.add(refused.errors);
            }
        }
        let problems = mistakes.problems.into_iter().map(|problem| named(problem, given));
        wrong(of.as_deref(), &problems.collect::<Vec<_>>())
    }
}

/// Why there is no plan, with the flags that cannot be read.
fn beside_flags(error: CliError, given: &Given) -> CliError {
    let mut mistakes = given.mistakes();
    if mistakes.is_empty() {
        return error;
    }
    // Where no broker answers, that is no mistake of what was typed.
    if error.word != UNREACHABLE {
        mistakes.push(error.detail);
    }
    wrong(None, &mistakes)
}

#[cfg(test)]
mod tests {
    use super::super::complete;
    use super::super::tests::given;

    #[test]
    fn what_the_broker_says_again_is_told_once() {
        let plan = "[spec]\nmodel = \"mlp\"\nseed = -1\n[spec.local]\nmomentum = 2\nepohcs = 3";
        let plan = toml::from_str(plan).unwrap();
        let mut mistakes = complete(plan, &given("--plan x")).unwrap_err();
        let own = mistakes.problems.clone();
        assert_eq!(own.len(), 4, "{own:?}");
        let body = mistakes.asked.as_ref().unwrap().to_string();
        let said = crate::request::training::of_body(body.as_bytes()).problems;
        assert_eq!(said.len(), own.len(), "{said:?}");
        mistakes.add(said);
        mistakes.add(vec!["work.local.momentum is 2: expected 0 to below 1".to_owned()]);
        assert_eq!(mistakes.problems, own);
        mistakes.add(vec!["no model mlp".to_owned()]);
        assert_eq!(mistakes.problems[4..], ["no model mlp"]);
    }
}
