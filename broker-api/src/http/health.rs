//! Whether the broker lives, whether it can work, and what it counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::{App, openapi};
use crate::error::ApiError;

/// Answers given, by class of status, and the time they took.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    answers: [AtomicU64; 6],
    microseconds: AtomicU64,
}

impl Counts {
    /// Counts one answer.
    pub(super) fn add(&self, status: StatusCode, time: Duration) {
        let class = usize::from(status.as_u16() / 100).min(self.answers.len() - 1);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(us, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds to the microsecond for 285 years")]
    fn prometheus(&self, text: &mut String) {
        text.push_str("# HELP dunlin_http_requests_total Answers by class of status.\n");
        text.push_str("# TYPE dunlin_http_requests_total counter\n");
        for (class, count) in self.answers.iter().enumerate().skip(1) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "dunlin_http_requests_total{{status=\"{class}xx\"}} {count}");
        }
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        text.push_str("# HELP dunlin_http_seconds_total Time from request to response head.\n");
        text.push_str("# TYPE dunlin_http_seconds_total counter\n");
        let _ = writeln!(text, "dunlin_http_seconds_total {seconds}");
    }
}

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

/// `GET /readyz`: NATS and JetStream answer too.
pub(super) async fn ready(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    app.broker.ready().await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ready"}"#))
}

/// `GET /metrics`: Prometheus text.
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let mut text = app.broker.metrics();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    app.counts.prometheus(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// `GET /openapi.json`: this API.
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi::TEXT.as_str())
}
