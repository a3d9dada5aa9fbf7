//! Following a job over its events, through breaks of the connection.

use std::time::Duration;

use futures::StreamExt;
use jobs::id::JobId;
use reqwest::Response;

use super::client::Client;
use super::failure::CliError;
use super::sse::SseParser;
use crate::record::{EventBody, JobEvent};

/// Between two attempts to connect again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Attempts in a row that bring nothing, at most.
const ATTEMPTS_MAX: u32 = 60;

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// The job is over.
    Ended,
    /// The person went away; the job goes on.
    Interrupted,
}

/// Hands each event on, once and in order, until the job ends or Ctrl-C.
pub(super) async fn follow(
    client: &Client,
    job: &JobId,
    after: u64,
    mut on_event: impl FnMut(&JobEvent) -> Result<(), CliError>,
) -> Result<Followed, CliError> {
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut after = after;
    let mut attempts = 0;
    loop {
        let before = after;
        let pass = async {
            match client.events(job, after).await {
                Ok(None) => Ok(true),
                Ok(Some(response)) => read(response, &mut after, &mut on_event).await,
                Err(error) if passing(&error) && attempts > 0 => Ok(false),
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            ended = pass => if ended? { return Ok(Followed::Ended) },
            _ = &mut interrupted => return Ok(Followed::Interrupted),
        }
        attempts = if after > before { 1 } else { attempts + 1 };
        if attempts > ATTEMPTS_MAX {
            return Err(CliError::usage(
                format!("the broker at {} is gone", client.server()),
                format!("the job goes on without you; see it with: dunlin jobs show {job}"),
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            _ = &mut interrupted => return Ok(Followed::Interrupted),
        }
    }
}

/// Whether a broker that was there may be back soon: it, or its NATS, is being restarted.
fn passing(error: &CliError) -> bool {
    matches!(error.word.as_str(), "unreachable" | "unavailable" | "overloaded")
}

/// Reads one connection to its end; whether the job has ended.
async fn read(
    response: Response,
    after: &mut u64,
    on_event: &mut impl FnMut(&JobEvent) -> Result<(), CliError>,
) -> Result<bool, CliError> {
    let mut parser = SseParser::default();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        for event in parser.feed(&piece) {
            let event: JobEvent = serde_json::from_str(&event.data).map_err(|error| {
                CliError::usage(
                    format!("an event cannot be read: {error}"),
                    "use the same version of dunlin on both sides",
                )
            })?;
            // Events that are not stored carry no place in the stream.
            if event.sequence != 0 && event.sequence <= *after {
                continue;
            }
            *after = (*after).max(event.sequence);
            on_event(&event)?;
            if matches!(event.body, EventBody::Ended { .. }) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
