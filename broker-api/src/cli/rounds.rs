//! `dunlin rounds`: how each round of a training went, and why devices are missing from it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jobs::id::JobId;
use jobs::spec::WorkSpec;
use reqwest::Method;
use serde::Deserialize;

use super::client::Client;
use super::failure::CliError;
use super::output::Output;
use super::table::{self, Table};
use super::train::{self, rounds};
use crate::history::{MemberRecord, RoundRecord};
use crate::record::{JobRecord, Waiting};

/// `dunlin rounds`
#[derive(Debug, Args)]
pub(super) struct RoundsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The rounds that ended, with why devices are missing; or one of them, device by device.
    Show {
        /// The job's id.
        job: JobId,
        /// Only this round, with what every device did.
        #[arg(long, value_name = "N")]
        round: Option<u32>,
        /// Follow the job as 'dunlin train' does, until it ends.
        #[arg(long, short, conflicts_with = "round")]
        watch: bool,
    },
    /// Every round that ended, for programs: CSV with a line for each, or for each device in each,
    /// or JSON with both.
    Export {
        /// The job's id.
        job: JobId,
        /// How.
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// CSV with a line for each device in each round: examples, loss, accuracy, seconds, bytes,
        /// and why it is missing or left out.
        #[arg(long)]
        devices: bool,
        /// Where to; standard output when absent.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

#[derive(Debug, Deserialize)]
struct RoundList {
    rounds: Vec<RoundRecord>,
    #[serde(default)]
    waiting: Option<Waiting>,
}

/// Shows and exports.
pub(super) async fn run(
    args: RoundsArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match args.action {
        Action::Show { job, watch: true, .. } => watch(&job, client, output).await,
        Action::Show { job, round: None, .. } => {
            let path = format!("/v1/jobs/{job}/rounds");
            if output.json {
                let list: serde_json::Value = client.get(&path, &[]).await?;
                return Ok(output.document(&list["rounds"])?);
            }
            let RoundList { rounds, waiting } = client.get(&path, &[]).await?;
            if rounds.is_empty() {
                output.line("no round has ended yet")?;
            } else {
                output.line(all(&rounds))?;
            }
            if let Some(waiting) = waiting {
                output.line(rounds::waiting(&waiting, table::now()))?;
            }
            Ok(())
        }
        Action::Show { job, round: Some(round), .. } => {
            let round: RoundRecord =
                client.get(&format!("/v1/jobs/{job}/rounds/{round}"), &[]).await?;
            if output.json {
                return Ok(output.document(&round)?);
            }
            Ok(output.line(one(&round))?)
        }
        Action::Export { format: Format::Json, devices: true, .. } => Err(CliError::usage(
            "--devices is about CSV: JSON has what every device did",
            "leave one of both out",
        )),
        Action::Export { job, format, devices, output: file } => {
            let query: &[(&str, &str)] = match (format, devices) {
                (Format::Json, _) => &[("format", "json")],
                (Format::Csv, false) => &[("format", "csv")],
                (Format::Csv, true) => &[("format", "csv"), ("rows", "devices")],
            };
            export(client, output, &job, query, file).await
        }
    }
}

/// The rounds that ended, and those that follow.
async fn watch(job: &JobId, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let record: JobRecord = client.get(&format!("/v1/jobs/{job}"), &[]).await?;
    let WorkSpec::Train(spec) = &record.spec.work else {
        let hint = format!("follow it with: dunlin jobs events {job}");
        return Err(CliError::usage(format!("job {job} is no training"), hint));
    };
    let RoundList { rounds, .. } = client.get(&format!("/v1/jobs/{job}/rounds"), &[]).await?;
    train::watch(&record.id, spec.rounds, &rounds, client, output).await
}

async fn export(
    client: &Client,
    output: &mut Output,
    job: &JobId,
    query: &[(&str, &str)],
    file: Option<PathBuf>,
) -> Result<(), CliError> {
    let path = format!("/v1/jobs/{job}/rounds");
    let request = client.request(Method::GET, &path, query);
    let bytes = client.bytes(request).await?;
    match file {
        Some(file) => std::fs::write(&file, &bytes).map_err(|error| CliError::file(&file, &error)),
        None => Ok(output.bytes(&bytes)?),
    }
}

/// A table of rounds; below each, who is missing and why.
fn all(rounds: &[RoundRecord]) -> String {
    let mut lines = vec![rounds::HEADING.trim_end_matches("missing").trim_end().to_owned()];
    for round in rounds {
        lines.push(rounds::row(round));
        if let Some(failure) = &round.failure {
            lines.push(format!("       failed: {}: {}", failure.code.as_str(), failure.message));
        }
        if let Some(beside) = rounds::beside(round) {
            lines.push(format!("       {beside}"));
        }
        for member in round.missing() {
            lines.push(format!("       without {} ({})", member.device, member.why()));
        }
        if let Some(still) = rounds::at_work_still(round) {
            lines.push(format!("       {still}"));
        }
    }
    lines.join("\n")
}

/// A round, device by device.
fn one(round: &RoundRecord) -> String {
    let headings = [
        "DEVICE",
        "UPDATE",
        ">EXAMPLES",
        ">LOSS",
        ">ACCURACY",
        ">TEST LOSS",
        ">TEST ACCURACY",
        ">TRAINED",
        ">SENT",
        "WHY",
    ];
    let mut rows = Table::new(&headings);
    for member in &round.members {
        rows.row(cells(member));
    }
    format!("{}\n\n{rows}", rounds::sentence(round))
}

fn cells(member: &MemberRecord) -> Vec<String> {
    let MemberRecord { device, part, update, sent, evaluation, .. } = member;
    let mut cells = vec![device.to_string(), part.as_str().to_owned()];
    cells.extend(match update {
        Some(update) => {
            [update.examples.to_string(), table::loss(update.loss), table::percent(update.accuracy)]
        }
        None => Default::default(),
    });
    cells.extend(match evaluation {
        Some(judged) => [table::loss(judged.loss), table::percent(judged.accuracy)],
        None => Default::default(),
    });
    cells.extend(match update {
        Some(update) => {
            [table::duration(update.duration_ms.0.saturating_mul(1000)), table::bytes(sent.0)]
        }
        None => Default::default(),
    });
    cells.push(member.why());
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn round() -> RoundRecord {
        let blob = json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1000});
        let outcome = json!({
            "round": 2, "parameters": blob, "failure": {"code": "diverged", "message": "NaN"},
            "updates": [["a", {"parameters": blob, "examples": 300, "loss": 1.5, "accuracy": 0.5,
                "steps": 1, "duration_ms": 2500, "engine": "native"}]],
            "evaluations": [["a", {"examples": 100, "loss": 0.25, "accuracy": 0.75,
                "duration_ms": 1}]],
            "missing": [["b", {"code": "device_lost", "message": "silent for 6 s"}]],
            "started_at": 1000, "ended_at": 1250,
        });
        RoundRecord::of(&serde_json::from_value(outcome).unwrap())
    }

    #[test]
    fn who_is_missing_stands_below_the_round() {
        let text = all(&[round()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "round      loss  accuracy  devices      moved      time");
        assert_eq!(lines[1], "    2    0.2500    75.0 %      1/2     3.0 KB    250 ms");
        assert_eq!(lines[1].len(), lines[0].len());
        assert_eq!(lines[2].trim(), "failed: diverged: NaN");
        assert_eq!(lines[3].trim(), "without b (device_lost: silent for 6 s)");
    }

    #[test]
    fn one_round_is_shown_device_by_device() {
        let text = one(&round());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("round 2: failed: diverged: NaN"), "{text}");
        let a: Vec<&str> = lines[3].split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        assert_eq!(
            a,
            ["a", "counted", "300", "1.5000", "50.0 %", "0.2500", "75.0 %", "2.5 s", "1.0 KB"]
        );
        assert!(lines[4].starts_with("b       missing"), "{text}");
        assert!(lines[4].ends_with("device_lost: silent for 6 s"), "{text}");
    }
}
