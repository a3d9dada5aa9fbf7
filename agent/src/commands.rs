//! Answers to commands: `cmd.{<device>,all,group.<group>}.<verb>`, in JSON, at once.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{SelectAll, select_all};
use jobs::held::{FORGET, Forget};
use jobs::{subject, wire};
use serde_json::{Value, json};

use crate::AgentError;
use crate::clock::Clock;
use crate::device::Device;
use crate::presence;

/// What can be asked.
const VERBS: [&str; 9] =
    ["ping", "hello", "facts", "telemetry", "temperature", "memfree", "cpuinfo", "uname", FORGET];

/// Answers under way, at most; more wait in the subscription.
const ANSWERS_MAX: usize = 16;

/// Listens to the commands for this device, its groups, and all.
pub(crate) async fn subscribe(device: &Device) -> Result<SelectAll<Subscriber>, AgentError> {
    let groups = device.config.groups.iter().map(|group| subject::command_group(group, "*"));
    let mut subjects =
        vec![subject::command(&device.config.device, "*"), subject::command_all("*")];
    subjects.extend(groups);
    let mut subscribers = Vec::new();
    for subject in subjects {
        subscribers.push(device.subscribe(subject).await?);
    }
    Ok(select_all(subscribers))
}

/// Answers until the subscriptions end.
pub(crate) async fn answer(device: Arc<Device>, commands: SelectAll<Subscriber>) {
    commands
        .for_each_concurrent(ANSWERS_MAX, |message| {
            let device = device.clone();
            async move { answer_one(&device, message).await }
        })
        .await;
}

async fn answer_one(device: &Device, message: Message) {
    let verb = subject::parse_command(&message.subject).unwrap_or_default();
    let mut answer = answer_to(device, verb, &message.payload).await;
    let Some(reply) = message.reply else { return };
    answer["device"] = json!(device.config.device);
    let payload = Bytes::from(answer.to_string());
    if let Err(error) =
        link::publish::publish(&device.client, reply.to_string(), None, payload).await
    {
        tracing::debug!("answer to {verb}: {error}");
    }
}

async fn answer_to(device: &Device, verb: &str, payload: &[u8]) -> Value {
    let facts = device.facts();
    match verb {
        "ping" => json!({ "instance": device.instance(), "at": Clock::now() }),
        "hello" => {
            presence::say_hello(device).await;
            json!(device.hello())
        }
        "facts" => json!(facts),
        "telemetry" => json!(device.measure().await),
        "temperature" => {
            let telemetry = device.measure().await;
            json!({ "at": telemetry.at, "temperatures": telemetry.temperatures })
        }
        "memfree" => {
            let telemetry = device.measure().await;
            json!({
                "at": telemetry.at,
                "memory_total": telemetry.memory_total,
                "memory_used": telemetry.memory_used,
                "memory_available": telemetry.memory_available,
                "swap_total": telemetry.swap_total,
                "swap_used": telemetry.swap_used,
            })
        }
        "cpuinfo" => {
            let telemetry = device.measure().await;
            json!({
                "at": telemetry.at,
                "arch": facts.arch,
                "cpu": facts.cpu,
                "cpus": facts.cpus,
                "cpu_percent": telemetry.cpu_percent,
                "load": telemetry.load,
            })
        }
        "uname" => json!({
            "os": facts.os,
            "os_version": facts.os_version,
            "kernel": facts.kernel,
            "arch": facts.arch,
            "host_name": facts.host_name,
            "model": facts.model,
        }),
        FORGET => match wire::decode::<Forget>(payload) {
            Ok(Forget { job }) => json!({ "removed": device.held.forget(&job) }),
            Err(error) => json!({ "error": "invalid_command", "message": error.to_string() }),
        },
        _ => json!({
            "error": "unknown_command",
            "message": format!("there is no command {verb:?}"),
            "commands": VERBS,
        }),
    }
}
