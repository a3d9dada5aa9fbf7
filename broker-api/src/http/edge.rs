//! What surrounds every handler: problems as responses, unknown paths, panics, the access log.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::{App, routes};
use crate::error::{ApiCode, ApiError, PROBLEM_MEDIA_TYPE};

/// Seconds after which a client may try again when the broker is overloaded or cut off.
const RETRY_AFTER_S: &str = "1";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let media_type = (header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        let mut response = (status, [media_type], problem.to_json()).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

/// Wraps a request: a panic becomes a problem, the outcome is counted and logged.
pub(super) async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let answering = async move {
        match refuse_other_sites(&request) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    };
    let response = AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(
        |panic: Box<dyn Any + Send>| {
            tracing::error!(%method, path, panic = panic_text(&*panic), "a handler panicked");
            ApiError::new(
                ApiCode::Internal,
                "the broker met a fault of its own while it answered",
                "see the broker's log for the panic, and report it",
            )
            .into_response()
        },
    );
    let status = response.status();
    app.counts.add(status, started.elapsed());
    let ms = started.elapsed().as_secs_f64() * 1e3;
    if status.is_server_error() {
        tracing::warn!(%method, path, status = status.as_u16(), ms, "answered");
    } else {
        tracing::debug!(%method, path, status = status.as_u16(), ms, "answered");
    }
    response
}

/// Refuses changes that a page of another site asks for through somebody's browser.
///
/// Browsers name the page's site in `Origin`; programs do not send it.
fn refuse_other_sites(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let site = origin.split_once("://").map_or(origin, |(_, site)| site);
    if !host.is_empty() && site.eq_ignore_ascii_case(host) {
        return Ok(());
    }
    Err(ApiError::new(
        ApiCode::CrossSite,
        format!("a page of {origin:?} asks for a change at {host:?}"),
        "ask from a page of this broker, or from a program",
    ))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// The problem for a path without a route.
pub(super) async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(
        ApiCode::UnknownPath,
        format!("there is nothing at {}", uri.path()),
        "every path is listed in /openapi.json",
    )
}

/// The problem for a method that a path does not take.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let allowed = routes::methods_of(uri.path());
    ApiError::new(
        ApiCode::MethodNotAllowed,
        format!("{} does not take {method}", uri.path()),
        format!("it takes {}", allowed.join(", ")),
    )
}
