//! `dunlin models`: what the registry holds.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jobs::spec::ModelQuery;
use reqwest::{Method, header};
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::failure::CliError;
use super::output::Output;
use super::table::{self, Table};
use crate::record::ModelRecord;

mod zoo;

/// `dunlin models`
#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Every version of every model.
    List,
    /// One model: the newest version, or the one named.
    Show {
        /// NAME or NAME:VERSION.
        model: ModelQuery,
    },
    /// Register an ONNX file.
    Push {
        /// NAME for the next version, or NAME:VERSION.
        model: ModelQuery,
        /// The ONNX file.
        file: PathBuf,
        /// Class labels by index, separated by commas.
        #[arg(long, value_delimiter = ',', conflicts_with = "labels_file")]
        labels: Vec<String>,
        /// A file with one class label on each line.
        #[arg(long, value_name = "FILE")]
        labels_file: Option<PathBuf>,
        /// What it is, for people.
        #[arg(long)]
        description: Option<String>,
        /// A file with the whole model config in JSON (preprocessing and more).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Download an ONNX file.
    Pull {
        /// NAME for the newest version, or NAME:VERSION.
        model: ModelQuery,
        /// Where to; NAME-VERSION.onnx when absent, `-` is standard output.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The built-in families, with what they cost for examples of a shape.
    Zoo(zoo::ZooArgs),
    /// Remove a version.
    Rm {
        /// NAME:VERSION, or NAME with --all.
        model: ModelQuery,
        /// Remove every version.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Deserialize)]
struct ModelList {
    models: Vec<ModelRecord>,
}

#[derive(Debug, Deserialize)]
struct ModelVersions {
    versions: Vec<ModelRecord>,
}

/// Lists, shows, pushes, pulls, removes.
pub(super) async fn run(
    args: ModelsArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match args.action.unwrap_or(Action::List) {
        Action::List => {
            let ModelList { models } = client.get("/v1/models", &[]).await?;
            if output.json {
                return Ok(output.document(&models)?);
            }
            Ok(output.line(list(&models))?)
        }
        Action::Show { model } => {
            let record = find(client, &model).await?;
            if output.json {
                return Ok(output.document(&record)?);
            }
            Ok(output.line(details(&record))?)
        }
        Action::Push { model, file, labels, labels_file, description, config } => {
            let labels = match labels_file {
                Some(path) => {
                    read_text(&path)?.lines().map(|line| line.trim().to_owned()).collect()
                }
                None => labels,
            };
            let extras = Extras { labels, description, config };
            push(client, output, &model, &file, extras).await
        }
        Action::Pull { model, output: file } => pull(client, output, &model, file).await,
        Action::Zoo(args) => zoo::run(&args, output),
        Action::Rm { model, all } => {
            if model.version.is_none() && !all {
                return Err(CliError::usage(
                    format!("'{}' names every version", model.name),
                    format!("name one as {0}:VERSION, or add --all", model.name),
                ));
            }
            client.send(client.request(Method::DELETE, &path(&model), &[])).await?;
            if output.json {
                return Ok(());
            }
            Ok(output.line("removed")?)
        }
    }
}

fn path(model: &ModelQuery) -> String {
    match &model.version {
        None => format!("/v1/models/{}", model.name),
        Some(version) => format!("/v1/models/{}/versions/{version}", model.name),
    }
}

async fn find(client: &Client, model: &ModelQuery) -> Result<ModelRecord, CliError> {
    if model.version.is_some() {
        return client.get(&path(model), &[]).await;
    }
    let ModelVersions { versions } = client.get(&path(model), &[]).await?;
    versions.into_iter().next().ok_or_else(|| {
        CliError::usage(format!("model {} has no version", model.name), "push or train one")
    })
}

fn read_text(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| CliError::file(path, &error))
}

struct Extras {
    labels: Vec<String>,
    description: Option<String>,
    config: Option<PathBuf>,
}

async fn push(
    client: &Client,
    output: &mut Output,
    model: &ModelQuery,
    file: &Path,
    extras: Extras,
) -> Result<(), CliError> {
    let bytes = std::fs::read(file).map_err(|error| CliError::file(file, &error))?;
    let description = extras.description.iter().map(|text| ("description", text.as_str()));
    let query: Vec<_> = description.collect();
    let method = if model.version.is_some() { Method::PUT } else { Method::POST };
    let mut request = client
        .request(method, &path(model), &query)
        .header(header::CONTENT_TYPE, models::artifact::ONNX_MEDIA_TYPE)
        .body(bytes);
    let mut config = serde_json::Map::new();
    if let Some(path) = &extras.config {
        config = serde_json::from_str(&read_text(path)?).map_err(|error| {
            CliError::usage(format!("{}: {error}", path.display()), "give a JSON object")
        })?;
    }
    // As JSON, which has room for commas in them.
    if !extras.labels.is_empty() {
        config.insert("labels".to_owned(), json!(extras.labels));
    }
    if !config.is_empty() {
        request = request.header("Dunlin-Model-Config", json!(config).to_string());
    }
    let record: ModelRecord = client.json(request).await?;
    if output.json {
        return Ok(output.document(&record)?);
    }
    let (name, version) = (&record.reference.name, &record.reference.version);
    let size = table::bytes(record.onnx.size.0);
    Ok(output.line(format_args!("registered {name}:{version} ({size})"))?)
}

async fn pull(
    client: &Client,
    output: &mut Output,
    model: &ModelQuery,
    file: Option<PathBuf>,
) -> Result<(), CliError> {
    let record = find(client, model).await?;
    let (name, version) = (&record.reference.name, &record.reference.version);
    let target = format!("/v1/models/{name}/versions/{version}/onnx");
    let bytes = client.bytes(client.request(Method::GET, &target, &[])).await?;
    let found = models::digest::of(&bytes);
    if found != record.onnx.digest.as_str() {
        return Err(CliError::failed(
            "blob_unavailable",
            format!("the file is {found}, expected {}", record.onnx.digest),
            "pull again",
        ));
    }
    let file = file.unwrap_or_else(|| PathBuf::from(format!("{name}-{version}.onnx")));
    if file.as_os_str() == "-" {
        return Ok(output.bytes(&bytes)?);
    }
    std::fs::write(&file, &bytes).map_err(|error| CliError::file(&file, &error))?;
    if output.json {
        return Ok(output.document(&record)?);
    }
    let size = table::bytes(bytes.len() as u64);
    Ok(output.line(format_args!("{} ({size}, {name}:{version})", file.display()))?)
}

fn list(models: &[ModelRecord]) -> String {
    if models.is_empty() {
        return "no models yet; train one, or: dunlin models push NAME FILE.onnx".to_owned();
    }
    let now = table::now();
    let headings = ["MODEL", "VERSION", ">SIZE", ">PARAMETERS", ">ACCURACY", "REGISTERED", "FROM"];
    let mut rows = Table::new(&headings);
    for record in models {
        let lineage = record.config.lineage.as_ref();
        let accuracy = lineage.and_then(|lineage| lineage.accuracy);
        rows.row(vec![
            record.reference.name.to_string(),
            record.reference.version.to_string(),
            table::bytes(record.onnx.size.0),
            record.config.parameters.to_string(),
            accuracy.map_or_else(String::new, table::percent),
            table::ago(now, record.registered_at),
            lineage.map_or_else(
                || record.config.description.clone(),
                |lineage| {
                    let (rounds, devices) = (lineage.rounds, lineage.devices.len());
                    format!("{} rounds on {}, {devices} devices", rounds, lineage.dataset)
                },
            ),
        ]);
    }
    rows.to_string()
}

fn details(record: &ModelRecord) -> String {
    let config = &record.config;
    let title = format!("{}:{}", record.reference.name, record.reference.version);
    let mut rows = Table::new(&["model", &title]);
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.row(vec![name.to_owned(), value]);
        }
    };
    row("description", config.description.clone());
    row("digest", record.reference.digest.to_string());
    row("file", format!("{}, {}", table::bytes(record.onnx.size.0), record.onnx.digest));
    row("parameters", config.parameters.to_string());
    row("engine", record.engine.clone().unwrap_or_default());
    for (word, tensors) in [("input", &config.inputs), ("output", &config.outputs)] {
        for info in tensors {
            row(word, format!("{} {} {:?}", info.name, info.datatype, info.shape));
        }
    }
    row("labels", config.labels.join(", "));
    if let Some(p) = &config.preprocessing {
        row("pictures", format!("{} x {}, {} channels", p.width, p.height, p.channels));
    }
    if let Some(lineage) = &config.lineage {
        row("job", lineage.job.clone());
        row("data set", lineage.dataset.clone());
        row("began with", lineage.began_with.clone().unwrap_or_default());
        row("rounds", lineage.rounds.to_string());
        row("devices", lineage.devices.join(", "));
        row("accuracy", lineage.accuracy.map_or_else(String::new, table::percent));
    }
    row("registered", table::ago(table::now(), record.registered_at));
    rows.to_string()
}
