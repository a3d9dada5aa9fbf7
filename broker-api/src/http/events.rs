//! `/v1/jobs/{id}/events`: what happens to a job, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;

use super::extract::{Asked, Names};
use super::{App, HttpLimits};
use crate::error::{ApiCode, ApiError};
use crate::record::JobEvent;

/// Between two comments that keep a silent connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Of so many connections one may be an event stream, so that requests find a place.
const STREAM_SHARE: usize = 2;
/// How long a client that lost the connection waits.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    after: Option<u64>,
}

/// `GET /v1/jobs/{id}/events`: from the beginning, or after `Last-Event-ID` (or `after`).
///
/// 204 tells a client that has seen the end not to come again.
pub(super) async fn follow(
    State(app): State<App>,
    names: Names,
    Asked(query): Asked<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = names.id("id", ApiCode::UnknownJob)?;
    let after = last_event(&headers)?.or(query.after).unwrap_or(0);
    let job = app.broker.job(&id).await?;
    let place = app.streams.clone().try_acquire_owned().map_err(|_| overloaded(&app))?;
    let mut events = app.broker.events(&id, after).await?;
    let mut first = None;
    if after > 0 && job.state.is_final() {
        first = events.next().await;
        if first.is_none() {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
    let opening = stream::iter([Event::default().retry(RETRY)]);
    let events = stream::iter(first).chain(events).map(move |event| {
        let _place = &place;
        sse(&event)
    });
    let until = app.ending.clone().cancelled_owned();
    let all = opening.chain(events).take_until(until).map(Ok::<_, Infallible>);
    let mut response =
        Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies would hold events back.
    super::answer::set(
        response.headers_mut(),
        axum::http::HeaderName::from_static("x-accel-buffering"),
        "no",
    );
    Ok(response)
}

/// Event streams that may be open at the same time.
pub(super) fn streams_max(limits: &HttpLimits) -> usize {
    (limits.connections / STREAM_SHARE).max(1)
}

fn overloaded(app: &App) -> ApiError {
    ApiError::new(
        ApiCode::Overloaded,
        format!("{} event streams are open already", streams_max(&app.limits)),
        "try again later, or ask with 'Prefer: wait=60'",
    )
}

fn last_event(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        ApiError::new(
            ApiCode::InvalidSpec,
            format!("Last-Event-ID is {text:?}, expected a whole number"),
            "send the id of the last event that arrived, or none",
        )
    })
}

fn sse(event: &JobEvent) -> Event {
    let data = serde_json::to_string(event).expect("events are JSON");
    let told = Event::default().event(event.body.name()).data(data);
    // One that is not stored has no place to go on from.
    if event.sequence == 0 { told } else { told.id(event.sequence.to_string()) }
}
