//! `dunlin jobs`: what was asked, and what became of it.

use clap::{Args, Subcommand};
use jobs::id::JobId;
use jobs::job::JobState;
use jobs::report::Failure;
use jobs::spec::WorkSpec;
use reqwest::Method;
use serde::Deserialize;

use super::client::Client;
use super::failure::CliError;
use super::follow;
use super::output::Output;
use super::table::{self, Table};
use super::train::rounds;
use crate::history::RoundRecord;
use crate::record::{EventBody, JobEvent, JobRecord, JobResult};

/// `dunlin jobs`
#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The newest jobs.
    List {
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Only jobs older than this one.
        #[arg(long, value_name = "ID")]
        before: Option<JobId>,
    },
    /// One job: its state, its rounds, its result.
    Show {
        /// The job's id.
        id: JobId,
    },
    /// Ask a job to stop.
    Cancel {
        /// The job's id.
        id: JobId,
    },
    /// Submit a job that did not succeed again, as a new job.
    Retry {
        /// The job's id.
        id: JobId,
    },
    /// Everything that happens to a job, until it ends.
    Events {
        /// The job's id.
        id: JobId,
        /// Only events after this one.
        #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
        after: u64,
    },
    /// What came out of a job, as JSON.
    Result {
        /// The job's id.
        id: JobId,
    },
}

#[derive(Debug, Deserialize)]
struct JobList {
    jobs: Vec<JobRecord>,
}

/// Shows, follows, cancels, retries.
pub(super) async fn run(
    args: JobsArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match args.action.unwrap_or(Action::List { limit: 20, before: None }) {
        Action::List { limit, before } => list(client, output, limit, before).await,
        Action::Show { id } => {
            let job: JobRecord = client.get(&format!("/v1/jobs/{id}"), &[]).await?;
            print(output, &job, details)
        }
        Action::Cancel { id } => {
            let request = client.request(Method::POST, &format!("/v1/jobs/{id}:cancel"), &[]);
            let job: JobRecord = client.json(request).await?;
            let ended = job.state.is_final();
            let now = if ended { state(job.state) } else { "still at work and was asked to stop" };
            print(output, &job, |job| format!("job {} is {now}", job.id))
        }
        Action::Retry { id } => {
            let request = client.request(Method::POST, &format!("/v1/jobs/{id}:retry"), &[]);
            let job: JobRecord = client.json(request).await?;
            print(output, &job, |job| {
                format!("job {0} runs; follow it with: dunlin rounds show {0} --watch", job.id)
            })
        }
        Action::Events { id, after } => {
            follow::follow(client, &id, after, |event| {
                if output.json {
                    Ok(output.document(event)?)
                } else {
                    Ok(output.line(event_line(event))?)
                }
            })
            .await?;
            Ok(())
        }
        Action::Result { id } => {
            let result: serde_json::Value =
                client.get(&format!("/v1/jobs/{id}/result"), &[]).await?;
            Ok(output.document(&result)?)
        }
    }
}

fn print(
    output: &mut Output,
    job: &JobRecord,
    text: impl FnOnce(&JobRecord) -> String,
) -> Result<(), CliError> {
    if output.json {
        return Ok(output.document(job)?);
    }
    Ok(output.line(text(job))?)
}

async fn list(
    client: &Client,
    output: &mut Output,
    limit: usize,
    before: Option<JobId>,
) -> Result<(), CliError> {
    let limit = limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(before.iter().map(|id| ("before", id.as_str())));
    let JobList { jobs } = client.get("/v1/jobs", &query).await?;
    if output.json {
        return Ok(output.document(&jobs)?);
    }
    if jobs.is_empty() {
        return Ok(output.line("no jobs yet")?);
    }
    let now = table::now();
    let mut rows = Table::new(&["JOB", "WHAT", "STATE", "BEGAN", ">TOOK", "OUTCOME"]);
    for job in &jobs {
        let took = job.ended_at.unwrap_or(now).since(job.accepted_at).0;
        rows.row(vec![
            job.id.to_string(),
            what(job),
            state(job.state).to_owned(),
            table::ago(now, job.accepted_at),
            table::duration(took.saturating_mul(1000)),
            outcome(job),
        ]);
    }
    Ok(output.line(rows)?)
}

/// The state's word.
pub(super) fn state(state: JobState) -> &'static str {
    match state {
        JobState::Accepted => "accepted",
        JobState::Placed => "placed",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

fn what(job: &JobRecord) -> String {
    match &job.spec.work {
        WorkSpec::Infer(spec) => format!("infer {}", spec.model.name),
        WorkSpec::Train(spec) => {
            format!("train {} on {}, {} rounds", spec.model.name, spec.dataset, spec.rounds)
        }
        WorkSpec::Telemetry => "telemetry".to_owned(),
    }
}

fn outcome(job: &JobRecord) -> String {
    if let Some(failure) = &job.failure {
        return failed(failure);
    }
    match &job.result {
        Some(JobResult::Infer { device, report, .. }) => {
            let best = report.classes.first().and_then(|classes| classes.first());
            let best = best.map_or_else(|| "answered".to_owned(), super::infer::class);
            format!("{best} by {device}")
        }
        Some(JobResult::Train { model, .. }) => format!("{}:{}", model.name, model.version),
        Some(JobResult::Telemetry { devices }) => format!("{} devices", devices.len()),
        None if job.rounds.is_empty() => String::new(),
        None => format!("{} rounds so far", job.rounds.len()),
    }
}

fn failed(failure: &Failure) -> String {
    format!("{}: {}", failure.code.as_str(), failure.message)
}

fn details(job: &JobRecord) -> String {
    let now = table::now();
    let mut rows = Table::new(&["job", job.id.as_str()]);
    let mut row = |name: &str, value: String| rows.row(vec![name.to_owned(), value]);
    row("what", what(job));
    row("state", state(job.state).to_owned());
    row("began", table::ago(now, job.accepted_at));
    if let Some(ended) = job.ended_at {
        let took = ended.since(job.accepted_at).0.saturating_mul(1000);
        row("took", table::duration(took));
    }
    if !job.devices.is_empty() {
        let devices: Vec<&str> = job.devices.iter().map(jobs::id::DeviceId::as_str).collect();
        row("devices", devices.join(", "));
    }
    let outcome = outcome(job);
    if !outcome.is_empty() {
        row("outcome", outcome);
    }
    if let Some(waiting) = &job.waiting {
        row("waits", rounds::waiting(waiting, now));
    }
    for note in &job.notes {
        row("note", note.clone());
    }
    let mut text = rows.to_string();
    if !job.rounds.is_empty() {
        text = format!("{text}\n\n{}", rounds::HEADING);
        for round in &job.rounds {
            text = format!("{text}\n{}", rounds::line(&RoundRecord::of(round)));
        }
    }
    text
}

/// An event on one line.
fn event_line(event: &JobEvent) -> String {
    let what = match &event.body {
        EventBody::Accepted => String::new(),
        EventBody::Placed { device } => device.to_string(),
        EventBody::Progress { device, round, progress } => {
            format!("round {round}, {device}: {}", rounds::progress(progress))
        }
        EventBody::RoundStarted { round, devices } => {
            let names: Vec<&str> = devices.iter().map(jobs::id::DeviceId::as_str).collect();
            format!("round {round}: {}", names.join(", "))
        }
        EventBody::Waiting(waiting) => rounds::waiting(waiting, event.at),
        EventBody::RoundEnded(outcome) => rounds::sentence(&RoundRecord::of(outcome)),
        EventBody::Ended { state: ended, failure, .. } => {
            failure.as_ref().map_or_else(|| state(*ended).to_owned(), failed)
        }
    };
    format!("{:>8}  {:<13}  {what}", event.sequence, event.body.name()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_lines() {
        let event = |body: serde_json::Value| -> JobEvent {
            let mut value = json!({"sequence": 12, "job": "j1", "at": 5});
            value["body"] = body;
            serde_json::from_value(value).unwrap()
        };
        let cases = [
            (json!({"event": "accepted"}), "      12  accepted"),
            (json!({"event": "placed", "device": "pi-1"}), "      12  placed         pi-1"),
            (
                json!({"event": "round_started", "round": 2, "devices": ["a", "b"]}),
                "      12  round_started  round 2: a, b",
            ),
            (
                json!({"event": "waiting", "round": 2, "reason": "waiting for devices: 1 of quorum 2",
                    "since": 5, "until": 60_005}),
                "      12  waiting        round 2: waiting for devices: 1 of quorum 2, 60.0 s at most",
            ),
            (
                json!({"event": "ended", "state": "failed",
                    "failure": {"code": "no_quorum", "message": "1 of 2 updates"}}),
                "      12  ended          no_quorum: 1 of 2 updates",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(event_line(&event(body)), expected);
        }
    }
}
