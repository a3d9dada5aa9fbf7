//! The NATS front door: `jobs.infer`, `jobs.train`, `jobs.telemetry` and `jobs.help`.
//!
//! A request (it has a reply subject) is answered; a publish is accepted durably.

use std::sync::Arc;
use std::time::Instant;

use async_nats::header::HeaderMap;
use async_nats::{Message, header};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jobs::spec::JobKind;
use jobs::subject::{BROKER_QUEUE, FrontDoor};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::micro::Service;
use crate::broker::{self, Core};
use crate::error::{ApiCode, ApiError};
use crate::record::JobRecord;
use crate::request::{self, InferRequest, REQUEST_DEADLINE};
use crate::room::Place;

/// Names the model of a picture that is the whole message.
const MODEL_HEADER: &str = "Dunlin-Model";
/// Requests that are looked at or answered at the same time, at most, for each subject.
const HANDLED_MAX: usize = 4096;
/// What a request takes beside its payload.
const REQUEST_BYTES: usize = 4096;
/// First tokens of subjects to which no client can ask for an answer.
const RESERVED: [&str; 12] = [
    "$JS", "$KV", "$O", "$SYS", "$SRV", "jobs", "offer", "report", "fleet", "work", "cmd", "events",
];

/// Serves the front door until the token is cancelled.
///
/// # Errors
/// When NATS does not take a subscription.
pub(crate) async fn serve(broker: Arc<Core>, token: CancellationToken) -> anyhow::Result<()> {
    let client = broker.store.client().clone();
    let service = Service::start(&client, token.clone()).await?;
    for door in FrontDoor::ALL {
        let requests = client.queue_subscribe(door.subject(), BROKER_QUEUE.to_owned()).await?;
        let requests = requests.take_until(token.clone().cancelled_owned()).boxed();
        tokio::spawn(listen(door, requests, broker.clone(), service.clone()));
    }
    client.flush().await?;
    Ok(())
}

async fn listen(
    door: FrontDoor,
    mut requests: BoxStream<'static, Message>,
    broker: Arc<Core>,
    service: Service,
) {
    let turns = Arc::new(Semaphore::new(HANDLED_MAX));
    // A subscription bounds how many messages wait in it, not their bytes: none is left there.
    while let Some(message) = requests.next().await {
        let place = place(&broker, &message);
        let (broker, service, turns) = (broker.clone(), service.clone(), turns.clone());
        tokio::spawn(async move {
            let _turn = if place.is_ok() { turns.acquire().await.ok() } else { None };
            handle(door, &broker, &service, message, place).await;
        });
    }
}

/// Room for a request, until this is dropped.
fn place(broker: &Core, message: &Message) -> Result<Place, ApiError> {
    let mut place = Place::default();
    broker.room.take(&mut place, message.payload.len() + REQUEST_BYTES)?;
    Ok(place)
}

async fn handle(
    door: FrontDoor,
    broker: &Core,
    service: &Service,
    message: Message,
    place: Result<Place, ApiError>,
) {
    let began = Instant::now();
    let reply = message.reply.clone();
    let outcome = match (&place, &reply) {
        (Err(error), _) => Err(error.clone()),
        (Ok(_), Some(reply)) => request(door, broker, &message, reply.as_str()).await,
        (Ok(_), None) => publish(door, broker, &message).await.map(|()| None),
    };
    let error = outcome.as_ref().err().map(ToString::to_string);
    service.count(door, began.elapsed(), error);
    let sent = match (reply, outcome) {
        (Some(reply), Ok(Some(answer))) => broker.store.client().publish(reply, answer).await,
        (Some(reply), Err(error)) => {
            let body = error.problem().to_json();
            let headers = error_headers(&error);
            broker.store.client().publish_with_headers(reply, headers, body.into()).await
        }
        (None, Err(error)) => {
            tracing::warn!(subject = %message.subject, %error, "a publish was not accepted");
            Ok(())
        }
        (_, Ok(_)) => Ok(()),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "an answer was not sent");
    }
}

/// The answer, `None` when a device sent it.
async fn request(
    door: FrontDoor,
    broker: &Core,
    message: &Message,
    reply: &str,
) -> Result<Option<Bytes>, ApiError> {
    let head = reply.split('.').next().unwrap_or_default();
    if RESERVED.contains(&head) {
        return Err(ApiError::new(
            ApiCode::InvalidSpec,
            format!("answers cannot go to {reply:?}"),
            "ask from an inbox, as 'nats request' does; no stream may capture 'jobs.>'",
        ));
    }
    let answer = match door {
        FrontDoor::Infer => {
            let request = infer_request(message)?;
            let deadline = request.deadline.unwrap_or(REQUEST_DEADLINE);
            let InferRequest { spec, binary, selector, .. } = request;
            let answer_to = Some(reply.to_owned());
            broker.gateway.infer(spec, binary, selector, deadline, answer_to).await?;
            return Ok(None);
        }
        FrontDoor::Train => {
            let record = train(broker, message).await?;
            let id = &record.id;
            let links = json!({
                "self": format!("/v1/jobs/{id}"),
                "events": format!("/v1/jobs/{id}/events"),
                "subject": jobs::subject::events_of(id),
            });
            json!({ "id": id, "state": record.state, "links": links, "job": record })
        }
        FrontDoor::Telemetry => {
            let (spec, _) = request::job(Some(JobKind::Telemetry), &message.payload)?;
            let deadline = spec.deadline_ms.min(REQUEST_DEADLINE);
            let job = broker::new_job_id();
            let devices = broker.gateway.measure(&job, &spec.selector, deadline).await?;
            let entry = |(device, telemetry)| json!({ "device": device, "telemetry": telemetry });
            json!({ "devices": devices.into_iter().map(entry).collect::<Vec<_>>() })
        }
        FrontDoor::Help => help(),
    };
    let answer = Bytes::from(answer.to_string());
    link::publish::check_size(broker.store.client(), answer.len()).map_err(|_| {
        let max = link::publish::max_payload(broker.store.client());
        ApiError::new(
            ApiCode::TooLarge,
            format!("the answer has {} bytes, max_payload of nats-server is {max}", answer.len()),
            "ask for fewer devices with 'selector', or raise max_payload",
        )
    })?;
    Ok(Some(answer))
}

/// Accepts a job that nobody waits for.
async fn publish(door: FrontDoor, broker: &Core, message: &Message) -> Result<(), ApiError> {
    let (spec, binary) = match door {
        FrontDoor::Infer if is_picture(message) => {
            let request = infer_request(message)?;
            let work = jobs::spec::WorkSpec::Infer(request.spec);
            let deadline_ms = request::QUEUED_DEADLINE;
            (jobs::spec::JobSpec { selector: request.selector, deadline_ms, work }, request.binary)
        }
        FrontDoor::Infer => request::job(Some(JobKind::Infer), &message.payload)?,
        FrontDoor::Train => return train(broker, message).await.map(drop),
        FrontDoor::Telemetry => request::job(Some(JobKind::Telemetry), &message.payload)?,
        FrontDoor::Help => return Ok(()),
    };
    broker.submit(spec, binary, None, message_id(message)).await.map(drop)
}

/// Accepts a training, or tells all that is wrong with it by the names of the message's members.
async fn train(broker: &Core, message: &Message) -> Result<JobRecord, ApiError> {
    let done = match request::job(Some(JobKind::Train), &message.payload) {
        Ok((spec, binary)) => broker.submit(spec, binary, None, message_id(message)).await,
        Err(first) => {
            let reading = request::training::of_members(&message.payload);
            Err(broker.unreadable(first, reading).await)
        }
    };
    done.map_err(request::training::by_members)
}

fn infer_request(message: &Message) -> Result<InferRequest, ApiError> {
    if !is_picture(message) {
        return request::infer(&message.payload);
    }
    let model = header(message, MODEL_HEADER).ok_or_else(|| {
        ApiError::new(
            ApiCode::InvalidSpec,
            format!("a picture without the header {MODEL_HEADER}"),
            format!("add the header '{MODEL_HEADER}: name' or '{MODEL_HEADER}: name:version'"),
        )
    })?;
    request::picture(model, message.payload.clone())
}

fn is_picture(message: &Message) -> bool {
    header(message, "Content-Type").is_some_and(|media_type| media_type.starts_with("image/"))
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(header::HeaderValue::as_str)
}

fn message_id(message: &Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    headers.get(header::NATS_MESSAGE_ID).map(|id| id.as_str().to_owned())
}

fn error_headers(error: &ApiError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error-Code", error.code.status().to_string());
    headers.insert("Nats-Service-Error", error.code.as_str());
    headers.insert("Content-Type", crate::error::PROBLEM_MEDIA_TYPE);
    headers
}

fn help() -> Value {
    json!({
        "jobs.infer": {
            "what": "asks a model; a request is answered, a publish becomes a job",
            "examples": [
                "nats request jobs.infer '{\"model\": \"digits\", \"input\": [[0.0, 0.5]]}'",
                "nats request jobs.infer -H Content-Type:image/png -H Dunlin-Model:digits \"$(cat three.png)\"",
                "nats pub jobs.infer -H Nats-Msg-Id:order-17 '{\"model\": \"digits:2\", \"input\": [[0.0]]}'",
            ],
            "members": {
                "model": "\"name\", \"name:version\" or {\"name\", \"version\"}",
                "input": "a nested array, or 'inputs': tensors of the Open Inference Protocol V2, or 'picture': base64",
                "top": "classes to name, 5 unless told",
                "selector": "which devices, such as \"arch=aarch64,label.site=lab\"",
                "deadline_ms": "10000 for a request, a day for a publish",
            },
        },
        "jobs.train": {
            "what": "starts federated training; answers with the job's id at once",
            "examples": [
                "nats request jobs.train '{\"model\": \"mlp\", \"dataset\": \"digits\", \"rounds\": 3}'",
            ],
            "families": models::zoo::FAMILIES,
        },
        "jobs.telemetry": {
            "what": "measures the devices that match, now",
            "examples": ["nats request jobs.telemetry '{\"selector\": \"arch=aarch64\"}'"],
        },
        "events.>": { "what": "what happens to jobs", "examples": ["nats sub 'events.>'"] },
    })
}
