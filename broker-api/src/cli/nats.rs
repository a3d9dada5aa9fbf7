//! `dunlin nats`: publish, request, subscribe; for machines without the nats tool.

use std::io::Read as _;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt;
use serde_json::{Value, json};

use super::failure::CliError;
use super::output::Output;

/// `dunlin nats`
#[derive(Debug, Args)]
pub(super) struct NatsArgs {
    /// The server.
    #[arg(
        long,
        global = true,
        env = "DUNLIN_NATS",
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL"
    )]
    nats: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Publish a message.
    Pub(Message),
    /// Publish a message and print the answers.
    Request {
        #[command(flatten)]
        message: Message,
        /// How long to wait, in milliseconds.
        #[arg(long, default_value_t = 10_000, value_name = "MS")]
        timeout_ms: u64,
        /// Wait for so many answers; `0` collects until the time is over.
        #[arg(long, default_value_t = 1, value_name = "N")]
        replies: usize,
    },
    /// Print messages as they come.
    Sub {
        /// The subject; `*` is one token, `>` any rest.
        subject: String,
        /// End after so many.
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
}

#[derive(Debug, Args)]
struct Message {
    /// The subject.
    subject: String,
    /// The body: text, @FILE, or `-` for standard input.
    #[arg(default_value = "")]
    body: String,
    /// A header, `Key:Value`; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "KEY:VALUE")]
    headers: Vec<String>,
}

/// Publishes, asks, listens.
pub(super) async fn run(args: NatsArgs, output: &mut Output) -> Result<(), CliError> {
    let client = connect(&args.nats).await?;
    match args.action {
        Action::Pub(message) => {
            publish(&client, parts(message)?, None).await?;
            client.flush().await.map_err(nats_error)
        }
        Action::Request { message, timeout_ms, replies } => {
            let wait = Duration::from_millis(timeout_ms);
            request(&client, message, wait, replies, output).await
        }
        Action::Sub { subject, count } => {
            let mut messages = client.subscribe(subject).await.map_err(nats_error)?;
            let mut left = count.unwrap_or(usize::MAX);
            while left > 0 {
                let message = tokio::select! {
                    message = messages.next() => message,
                    _ = tokio::signal::ctrl_c() => None,
                };
                let Some(message) = message else { break };
                print(output, &message, true)?;
                left -= 1;
            }
            Ok(())
        }
    }
}

async fn connect(url: &str) -> Result<async_nats::Client, CliError> {
    let connecting = async_nats::ConnectOptions::new().connect(url);
    let hint = "start one with 'dunlin up', or name another with --nats URL";
    match tokio::time::timeout(Duration::from_secs(5), connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => {
            Err(CliError::usage(format!("no NATS server answers at {url}: {error}"), hint))
        }
        Err(_) => Err(CliError::usage(format!("no NATS server answers at {url} within 5 s"), hint)),
    }
}

fn nats_error(error: impl std::fmt::Display) -> CliError {
    CliError::usage(format!("NATS: {error}"), "")
}

/// Publishes; a message over the server's limit would cost the connection, so it is not sent.
async fn publish(
    client: &async_nats::Client,
    (subject, headers, body): (String, HeaderMap, Bytes),
    reply: Option<String>,
) -> Result<(), CliError> {
    link::publish::check_size(client, body.len()).map_err(|error| {
        let hint = "send large inputs over HTTP, which takes more: POST /v1/jobs";
        CliError::usage(error.to_string(), hint)
    })?;
    let sent = match reply {
        Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, body).await,
        None => client.publish_with_headers(subject, headers, body).await,
    };
    sent.map_err(nats_error)
}

fn parts(message: Message) -> Result<(String, HeaderMap, Bytes), CliError> {
    let mut headers = HeaderMap::new();
    for header in &message.headers {
        let (key, value) = header.split_once(':').ok_or_else(|| {
            CliError::usage(format!("header {header:?} has no colon"), "such as -H Key:Value")
        })?;
        let value = value.trim().parse::<async_nats::HeaderValue>().map_err(|error| {
            CliError::usage(format!("header {header:?}: {error}"), "keep it on one line")
        })?;
        headers.append(key.trim(), value);
    }
    let body = if message.body == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        bytes.into()
    } else if let Some(path) = message.body.strip_prefix('@') {
        let path = std::path::Path::new(path);
        std::fs::read(path).map_err(|error| CliError::file(path, &error))?.into()
    } else {
        Bytes::from(message.body)
    };
    Ok((message.subject, headers, body))
}

async fn request(
    client: &async_nats::Client,
    message: Message,
    wait: Duration,
    replies: usize,
    output: &mut Output,
) -> Result<(), CliError> {
    let parts = parts(message)?;
    let subject = parts.0.clone();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(nats_error)?;
    publish(client, parts, Some(inbox)).await?;
    let until = tokio::time::Instant::now() + wait;
    let mut count = 0;
    while replies == 0 || count < replies {
        let Ok(Some(message)) = tokio::time::timeout_at(until, answers.next()).await else { break };
        if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            return Err(CliError::usage(
                format!("nobody listens on {subject}"),
                "is the broker, or the device, connected to this NATS?",
            ));
        }
        count += 1;
        print(output, &message, false)?;
        if let Some(error) = message.headers.as_ref().and_then(|h| h.get("Nats-Service-Error")) {
            return Err(CliError::failed("service_error", error.as_str(), ""));
        }
    }
    if count < replies.max(1) {
        let ms = wait.as_millis();
        return Err(CliError::failed(
            "deadline_exceeded",
            format!("{count} of {} answers within {ms} ms", replies.max(1)),
            "wait longer with --timeout-ms",
        ));
    }
    Ok(())
}

fn print(
    output: &mut Output,
    message: &async_nats::Message,
    with_subject: bool,
) -> std::io::Result<()> {
    let body = String::from_utf8(message.payload.to_vec()).ok();
    if output.json {
        let headers =
            message.headers.iter().flat_map(|headers| headers.iter()).map(|(key, values)| {
                let values: Vec<&str> =
                    values.iter().map(async_nats::HeaderValue::as_str).collect();
                (key.to_string(), json!(values))
            });
        let headers: serde_json::Map<String, Value> = headers.collect();
        let text = body.as_deref();
        let parsed = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
        return output.document(&json!({
            "subject": message.subject.as_str(),
            "headers": headers,
            "bytes": message.payload.len(),
            "body": parsed.or_else(|| text.map(Value::from)),
        }));
    }
    let subject = if with_subject { format!("[{}] ", message.subject) } else { String::new() };
    match body {
        Some(text) => output.line(format_args!("{subject}{}", text.trim_end())),
        None => output.line(format_args!("{subject}<{} bytes>", message.payload.len())),
    }
}
