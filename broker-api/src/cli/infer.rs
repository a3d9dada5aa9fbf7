//! `dunlin infer`: ask a model.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt, stream};
use jobs::engine::EnginePolicy;
use jobs::report::{Class, RefusedEngine};
use jobs::spec::ModelQuery;
use reqwest::{Method, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::failure::CliError;
use super::output::Output;
use super::{picture, table};

/// Requests under way at the same time.
const AT_ONCE: usize = 8;
/// How often a job that is waited for is asked for again.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// Between two times.
const PAUSE: Duration = Duration::from_millis(250);
/// How long after its deadline a job says how it ended.
const OVER_WITHIN: Duration = Duration::from_secs(2);
/// So many pictures are drawn, at most.
const DRAWN_MAX: usize = 3;

/// `dunlin infer`
#[derive(Debug, Args)]
pub(super) struct InferArgs {
    /// The model: NAME or NAME:VERSION.
    #[arg(long, short, value_name = "MODEL")]
    model: ModelQuery,
    /// PNG or JPEG files; `-` is standard input.
    #[arg(required_unless_present = "input", value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// Instead of pictures, a JSON file: a nested array, or an object with `input`, `inputs` or
    /// `picture`; `-` is standard input.
    #[arg(long, short, conflicts_with = "pictures", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Classes to name, the best first.
    #[arg(long, default_value_t = 1, value_name = "N")]
    top: u32,
    /// Draw small pictures with characters; on a terminal that is done for a few anyway.
    #[arg(long)]
    draw: bool,
    /// Only devices that match may answer.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Engines that may answer, such as cuda or tract,native; or !webgpu for all but this one.
    #[arg(long, short, value_name = "ENGINES")]
    engine: Option<EnginePolicy>,
    /// How long to wait for an answer, in milliseconds.
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
}

/// What is read of an answer.
#[derive(Debug, Deserialize)]
struct Answer {
    device: String,
    engine: String,
    engine_us: u64,
    #[serde(default)]
    refused_engines: Vec<RefusedEngine>,
    #[serde(default)]
    classes: Vec<Vec<Class>>,
    #[serde(default)]
    outputs: Vec<Value>,
}

/// Asks once for each picture, or once with the JSON.
pub(super) async fn run(
    args: InferArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    if let Some(path) = &args.input {
        let bytes = read(path)?;
        let answer = ask_json(&args, client, &bytes).await?;
        return show(output, &args, path, None, &answer);
    }
    let client = &client.patient(Duration::from_millis(args.deadline_ms.unwrap_or(0)))?;
    let draw = !output.json && (args.draw || output.terminal && args.pictures.len() <= DRAWN_MAX);
    let args = &args;
    let mut answers = stream::iter(&args.pictures)
        .map(|path| async move { (path, ask_picture(args, client, path).await) })
        .buffered(AT_ONCE);
    let mut worst: Option<CliError> = None;
    let mut failures = 0;
    while let Some((path, answer)) = answers.next().await {
        let done = answer.and_then(|(bytes, answer)| {
            let drawing = if draw { picture::blocks(&bytes) } else { None };
            show(output, args, path, drawing, &answer)
        });
        if let Err(mut error) = done {
            if error.detail.is_empty() || error.word == "unreachable" {
                return Err(error);
            }
            if args.pictures.len() > 1 {
                error.detail = format!("{}: {}", path.display(), error.detail);
                error.print(output.json);
            }
            failures += 1;
            worst = Some(error);
        }
    }
    match worst {
        Some(error) if args.pictures.len() > 1 => Err(CliError {
            detail: format!("{failures} of {} pictures have no answer", args.pictures.len()),
            hint: String::new(),
            ..error
        }),
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| CliError::file(path, &error))
}

async fn ask_picture(
    args: &InferArgs,
    client: &Client,
    path: &Path,
) -> Result<(Vec<u8>, Value), CliError> {
    let bytes = read(path)?;
    let media_type = media_type(&bytes).ok_or_else(|| {
        CliError::usage(
            format!("{} is neither PNG nor JPEG", path.display()),
            "give tensors with --input FILE.json",
        )
    })?;
    let version =
        args.model.version.as_ref().map_or_else(String::new, |v| format!("/versions/{v}"));
    let target = format!("/v2/models/{}{version}/infer", args.model.name);
    let top = args.top.max(1).to_string();
    let deadline = args.deadline_ms.map(|ms| ms.to_string());
    let mut query = vec![("top", top.as_str())];
    query.extend(args.selector.iter().map(|text| ("selector", text.as_str())));
    let engine = args.engine.as_ref().map(EnginePolicy::to_string);
    query.extend(engine.iter().map(|text| ("engine", text.as_str())));
    query.extend(deadline.iter().map(|text| ("deadline_ms", text.as_str())));
    let request = client
        .request(Method::POST, &target, &query)
        .header(header::CONTENT_TYPE, media_type)
        .body(bytes.clone());
    Ok((bytes, client.json(request).await?))
}

fn media_type(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"\x89PNG") {
        Some("image/png")
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        Some("image/jpeg")
    } else {
        None
    }
}

/// Asks with JSON: a job that is waited for, so that every form of input is understood.
async fn ask_json(args: &InferArgs, client: &Client, bytes: &[u8]) -> Result<Value, CliError> {
    let input: Value = serde_json::from_slice(bytes).map_err(|error| {
        CliError::usage(format!("the input is not JSON: {error}"), "such as [[0.1, 0.2]]")
    })?;
    let mut spec = if input.is_array() { json!({ "input": input }) } else { input };
    if !spec.is_object() {
        return Err(CliError::usage("the input is neither array nor object", "such as [[0.1]]"));
    }
    spec["model"] = json!(args.model);
    spec["top"] = json!(args.top);
    if let Some(engine) = &args.engine {
        spec["engine"] = json!(engine);
    }
    let deadline = args.deadline_ms.unwrap_or(crate::request::REQUEST_DEADLINE.0);
    let selector = args.selector.clone().unwrap_or_default();
    let body =
        json!({ "kind": "infer", "selector": selector, "deadline_ms": deadline, "spec": spec });
    let request = client.request(Method::POST, "/v1/jobs", &[]).json(&body);
    let job: Value = client.json(request).await?;
    let id = job["id"].as_str().unwrap_or_default();
    let until = Instant::now() + Duration::from_millis(deadline) + OVER_WITHIN;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = left.min(ASK_EVERY).as_secs().max(1);
        let result = client
            .request(Method::GET, &format!("/v1/jobs/{id}/result"), &[])
            .header("Prefer", format!("wait={wait}"));
        match client.json(result).await {
            Err(error) if error.word == "not_ended" && !left.is_zero() => {
                // A broker for which too many wait answers at once.
                tokio::time::sleep(PAUSE.min(left)).await;
            }
            answer => return answer,
        }
    }
}

/// A class as text: its label, or its index.
pub(super) fn class(class: &Class) -> String {
    class.label.clone().unwrap_or_else(|| class.index.to_string())
}

fn show(
    output: &mut Output,
    args: &InferArgs,
    path: &Path,
    drawing: Option<String>,
    answer: &Value,
) -> Result<(), CliError> {
    if output.json {
        let mut answer = answer.clone();
        answer["file"] = json!(path.display().to_string());
        return Ok(output.document(&answer)?);
    }
    let answer = Answer::deserialize(answer).map_err(|error| {
        CliError::usage(
            format!("the answer cannot be read: {error}"),
            "use the same version of dunlin on both sides",
        )
    })?;
    if let Some(drawing) = drawing {
        output.line(drawing)?;
    }
    Ok(output.line(lines(&answer, path, args.top))?)
}

/// `7  98.2 %  held-out/0003-7.png  (device pi-1, tract, 0.3 ms)`, further classes below.
fn lines(answer: &Answer, path: &Path, top: u32) -> String {
    let Answer { device, engine, engine_us, refused_engines, classes, outputs } = answer;
    let not: Vec<String> = refused_engines
        .iter()
        .map(|refused| format!(", not {}: {}", refused.engine, refused.reason))
        .collect();
    let by =
        format!("(device {device}, {engine}, {}{})", table::duration(*engine_us), not.concat());
    if classes.iter().all(Vec::is_empty) {
        let outputs: Vec<String> = outputs
            .iter()
            .map(|output| {
                let (name, shape) = (output["name"].as_str().unwrap_or_default(), &output["shape"]);
                format!("{name} {shape} {}", output["data"])
            })
            .collect();
        return format!("{}  {by}\n{}", path.display(), outputs.join("\n"));
    }
    let mut lines = Vec::new();
    for best in classes {
        let shown = best.iter().take(usize::try_from(top.max(1)).unwrap_or(usize::MAX));
        for (rank, candidate) in shown.enumerate() {
            let share = table::percent(f64::from(candidate.probability));
            let line = format!("{}  {share:>7}", class(candidate));
            lines.push(if rank == 0 { format!("{line}  {}  {by}", path.display()) } else { line });
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_line() {
        let answer = |classes: Value| -> Answer {
            serde_json::from_value(json!({"device": "pi-1", "engine": "tract", "engine_us": 300,
                "classes": classes,
                "outputs": [{"name": "y", "shape": [1, 2], "data": [0.5, 2]}]}))
            .unwrap()
        };
        let path = Path::new("held-out/0003-7.png");
        let classes = json!([[{"index": 7, "probability": 0.982},
            {"index": 1, "label": "one", "probability": 0.01}]]);
        let text = lines(&answer(classes.clone()), path, 1);
        assert_eq!(text, "7   98.2 %  held-out/0003-7.png  (device pi-1, tract, 0.3 ms)");
        assert_eq!(lines(&answer(classes), path, 5).lines().nth(1), Some("one    1.0 %"));
        let text = lines(&answer(json!([])), path, 1);
        assert_eq!(text, "held-out/0003-7.png  (device pi-1, tract, 0.3 ms)\ny [1,2] [0.5,2]");
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        assert_eq!(media_type(b"\x89PNG\r\n"), Some("image/png"));
        assert_eq!(media_type(b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(media_type(b"GIF89a"), None);
    }
}
