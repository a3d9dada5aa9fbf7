//! The broker's API as commands see it: JSON, problems, events.

use std::time::Duration;

use bytes::Bytes;
use jobs::id::JobId;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::de::DeserializeOwned;

use super::failure::CliError;
use crate::error::Problem;

/// Until a connection stands.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Between two pieces of an answer; longer than the pause between the comments of an event stream.
const READ_WITHIN: Duration = Duration::from_mins(1);

/// The word of an error where no broker answers.
pub(super) const UNREACHABLE: &str = "unreachable";

/// A broker's HTTP address.
#[derive(Debug, Clone)]
pub(super) struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// A client for the broker at `http://host:port`, or behind a path of a proxy.
    pub(super) fn new(server: &str) -> Result<Self, CliError> {
        let wrong = |problem: String| {
            let hint = "such as --server http://127.0.0.1:8080";
            CliError::usage(format!("server {server:?} is not an address: {problem}"), hint)
        };
        let base = Url::parse(server).map_err(|error| wrong(error.to_string()))?;
        if base.scheme() != "http" || base.host().is_none() {
            return Err(wrong("expected http://host:port".to_owned()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(wrong("expected http://host:port, and at most a path".to_owned()));
        }
        Ok(Self { base, http: http(READ_WITHIN)? })
    }

    /// The same for answers that may take so long to begin.
    pub(super) fn patient(&self, within: Duration) -> Result<Self, CliError> {
        let http = http(READ_WITHIN.saturating_add(within))?;
        Ok(Self { base: self.base.clone(), http })
    }

    /// The address, for messages.
    pub(super) fn server(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Begins a request; `query` are pairs to be encoded.
    pub(super) fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Sends a request; an error status is the problem that came with it.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.into(),
            Err(_) => CliError::usage(
                format!("{} answered {status}, which is no answer of a broker", self.server()),
                "check --server",
            ),
        })
    }

    /// Sends a request and parses the JSON of the answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, CliError> {
        let bytes = self.bytes(request).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            CliError::usage(
                format!("the answer of {} cannot be read: {error}", self.server()),
                "use the same version of dunlin on both sides, and check --server",
            )
        })
    }

    /// Sends a request; the bytes of the answer.
    pub(super) async fn bytes(&self, request: RequestBuilder) -> Result<Bytes, CliError> {
        let response = self.send(request).await?;
        response.bytes().await.map_err(|error| self.unreachable(&error))
    }

    /// `GET` as JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, CliError> {
        self.json(self.request(Method::GET, path, query)).await
    }

    /// The events of a job after one of them; `None` when there are no more.
    pub(super) async fn events(
        &self,
        job: &JobId,
        after: u64,
    ) -> Result<Option<Response>, CliError> {
        let mut request = self
            .request(Method::GET, &format!("/v1/jobs/{job}/events"), &[])
            .header(header::ACCEPT, "text/event-stream");
        if after > 0 {
            request = request.header("Last-Event-ID", after);
        }
        let response = self.send(request).await?;
        Ok((response.status() != StatusCode::NO_CONTENT).then_some(response))
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let server = self.server();
        if error.is_connect() {
            return CliError {
                word: UNREACHABLE.to_owned(),
                ..CliError::usage(
                    format!("no broker answers at {server}"),
                    "start one with 'dunlin up', or name another with --server URL",
                )
            };
        }
        let reason = if error.is_timeout() { "it took too long".to_owned() } else { chain(error) };
        CliError {
            word: UNREACHABLE.to_owned(),
            ..CliError::usage(format!("{server} did not answer: {reason}"), "try again")
        }
    }
}

fn http(read_within: Duration) -> Result<reqwest::Client, CliError> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(read_within)
        .no_proxy()
        .build()
        .map_err(|error| CliError::usage(error.to_string(), ""))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
