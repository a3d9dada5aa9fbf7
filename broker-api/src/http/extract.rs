//! What requests carry: names in the path, queries, bodies, preferences; each checked.

use std::str::FromStr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jobs::id::IdError;
use serde::de::DeserializeOwned;

use super::{App, HttpLimits};
use crate::error::{ApiCode, ApiError};
use crate::room::Place;

/// Bytes set aside for a body before any of it came.
const PIECE_BYTES: usize = 1024 * 1024;
/// Bytes of JSON for each byte of a message: an `FP32` of four bytes as the digits of an `f64`.
const JSON_PER_BYTE: usize = 8;

/// What a body holds, which says how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// JSON, and binary tensors that may follow it.
    Json,
    /// A picture, as a device gets it.
    Picture,
    /// A file that is stored.
    File,
}

/// The names in the path.
#[derive(Debug)]
pub(super) struct Names(Vec<(String, String)>);

impl FromRequestParts<App> for Names {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, app).await.map_err(|error| {
            ApiError::new(ApiCode::UnknownPath, error.to_string(), "encode the path as UTF-8")
        })?;
        Ok(Self(params.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }
}

impl Names {
    /// The text of a name; empty when the route has none of it.
    pub(super) fn text(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// A name as an identifier; `code` says what is unknown when it cannot be one.
    pub(super) fn id<T: FromStr<Err = IdError>>(
        &self,
        key: &str,
        code: ApiCode,
    ) -> Result<T, ApiError> {
        parse_id(self.text(key), code)
    }

    /// As [`Names::id`], for a name that the route may be without.
    pub(super) fn maybe<T: FromStr<Err = IdError>>(
        &self,
        key: &str,
        code: ApiCode,
    ) -> Result<Option<T>, ApiError> {
        match self.text(key) {
            "" => Ok(None),
            text => parse_id(text, code).map(Some),
        }
    }
}

/// Parses an identifier of the path.
pub(super) fn parse_id<T: FromStr<Err = IdError>>(
    text: &str,
    code: ApiCode,
) -> Result<T, ApiError> {
    text.parse().map_err(|error: IdError| {
        ApiError::new(code, error.to_string(), "look the name up in the list of all")
    })
}

/// The query of the URL; unknown members are refused.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Asked<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(ApiError::new(
                ApiCode::InvalidSpec,
                rejection.body_text(),
                "every parameter is listed in /openapi.json",
            )),
        }
    }
}

/// A request that takes no parameters.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// The media type of the body in lower case, without parameters; empty when it is not said.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let text = value.unwrap_or_default().split(';').next().unwrap_or_default();
    text.trim().to_ascii_lowercase()
}

/// Whether a media type is JSON.
pub(super) fn is_json(media_type: &str) -> bool {
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// The problem for a body of a media type that is not taken.
pub(super) fn unsupported(media_type: &str, accepted: &str) -> ApiError {
    let found = if media_type.is_empty() { "none" } else { media_type };
    ApiError::new(
        ApiCode::UnsupportedMediaType,
        format!("the body's media type is {found}, expected {accepted}"),
        format!("send the header 'Content-Type: {accepted}'"),
    )
}

/// Reads a JSON body as bytes.
pub(super) async fn json_body(request: Request, app: &App) -> Result<(Bytes, Place), ApiError> {
    let media_type = media_type(request.headers());
    if !is_json(&media_type) {
        return Err(unsupported(&media_type, "application/json"));
    }
    body(request, app, Content::Json).await
}

/// Reads a body within the limits; it takes room as long as the place is kept.
pub(super) async fn body(
    request: Request,
    app: &App,
    content: Content,
) -> Result<(Bytes, Place), ApiError> {
    let (parts, body) = request.into_parts();
    let announced = content_length(&parts.headers);
    let limit = limit(app, content);
    if announced.is_some_and(|length| length > limit) {
        // A client that waits for `100 Continue` has not sent the body and never will.
        if !parts.headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
        return Err(too_large(app, limit));
    }
    let mut place = Place::default();
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(PIECE_BYTES));
    let mut pieces = body.into_data_stream();
    let began = Instant::now();
    loop {
        let pause = patience(app, began, bytes.len());
        match tokio::time::timeout(pause, pieces.next()).await {
            Ok(Some(Ok(piece))) => {
                let taken = if bytes.len() + piece.len() <= limit {
                    app.broker.core.room.take(&mut place, piece.len())
                } else {
                    Err(too_large(app, limit))
                };
                if let Err(error) = taken {
                    drop((bytes, place));
                    drain(Body::from_stream(pieces)).await;
                    return Err(error);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Some(Err(error))) => return Err(broken(&error.to_string())),
            Ok(None) => return Ok((bytes.freeze(), place)),
            Err(_) => {
                let (pause, rate) = (app.limits.body_pause.as_secs(), app.limits.body_rate);
                let (came, took) = (bytes.len(), began.elapsed().as_secs());
                return Err(broken(&format!(
                    "{came} bytes came in {took} s, expected some every {pause} s and {rate} a second"
                )));
            }
        }
    }
}

/// How long the next piece of a body may take.
fn patience(app: &App, began: Instant, came: usize) -> Duration {
    let HttpLimits { body_pause, body_rate, .. } = app.limits;
    let seconds = came / usize::try_from(body_rate.max(1)).unwrap_or(usize::MAX);
    let allowed = body_pause + Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
    allowed.saturating_sub(began.elapsed()).min(body_pause)
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn limit(app: &App, content: Content) -> usize {
    let message = app.broker.max_payload();
    let limit = match content {
        Content::Json => message.saturating_mul(JSON_PER_BYTE),
        Content::Picture => message,
        Content::File => usize::MAX,
    };
    limit.min(app.limits.body_bytes)
}

fn too_large(app: &App, limit: usize) -> ApiError {
    let hint = if limit < app.limits.body_bytes {
        "send a smaller batch or picture, or raise max_payload in the nats-server's configuration: \
         an input goes to a device in one message, and JSON may have 8 times its length"
    } else {
        "send less, or start the broker with a larger --body-bytes-max"
    };
    ApiError::new(ApiCode::TooLarge, format!("the body is larger than {limit} bytes"), hint)
}

fn broken(problem: &str) -> ApiError {
    ApiError::new(
        ApiCode::InvalidBody,
        format!("the body did not arrive: {problem}"),
        "send it again",
    )
}

/// Reads and forgets for a moment, so that a client that is still sending gets to the answer.
async fn drain(body: Body) {
    let mut pieces = body.into_data_stream();
    let all = async { while let Some(Ok(_)) = pieces.next().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
}

/// What the `Prefer` headers ask (RFC 7240).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    /// Wait so long for the end; none means answer at once.
    pub(super) wait: Option<Duration>,
}

impl Prefer {
    /// Reads the headers; what is not understood is ignored, as the standard wants.
    pub(super) fn read(headers: &HeaderMap, limit: Duration) -> Self {
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        let mut wait = None;
        for item in values.flat_map(|value| value.split([',', ';'])) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" if wait.is_none() => wait = Some(Duration::ZERO),
                "wait" => {
                    let seconds = value.trim().trim_matches('"').parse().ok();
                    wait = seconds.map(Duration::from_secs).or(wait);
                }
                _ => {}
            }
        }
        Self { wait: wait.filter(|wait| !wait.is_zero()).map(|wait| wait.min(limit)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn preferences_are_read_and_cut() {
        let limit = Duration::from_mins(5);
        let cases: [(&[&str], Option<u64>); 8] = [
            (&[], None),
            (&["wait=5"], Some(5)),
            (&["respond-async, wait=10"], Some(10)),
            (&["respond-async"], None),
            (&["handling=strict", "Wait = 7"], Some(7)),
            (&["wait=9999"], Some(300)),
            (&["wait=0"], None),
            (&["wait=soon"], None),
        ];
        for (values, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_static(value));
            }
            let wait = Prefer::read(&headers, limit).wait;
            assert_eq!(wait, expected.map(Duration::from_secs), "{values:?}");
        }
    }
}
