//! The HTTP face: routes, bodies and problems; holds no rule of its own.
//!
//! [`serve`] runs it. `routes` is the one table of what can be asked, from which the router and
//! `openapi.json` are both made. Handlers turn requests into calls of [`Broker`] and answers into
//! JSON; `inference` speaks the Open Inference Protocol V2, whose shapes are in `oip`.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;

mod answer;
mod devices;
mod edge;
mod events;
mod extract;
mod health;
mod inference;
mod jobs;
mod listen;
mod models;
mod oip;
mod openapi;
mod patience;
mod rounds;
mod routes;

/// Bounds of the HTTP face.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Bytes of a request body, at most; less for what goes to a device in one message.
    pub body_bytes: usize,
    /// Connections at the same time, at most; further ones wait.
    pub connections: usize,
    /// From a connection's first byte to the end of a request's headers.
    pub header_time: Duration,
    /// Between two pieces of a request body, and what it may take beyond [`Self::body_rate`].
    pub body_pause: Duration,
    /// Bytes of a request body that have to come in a second, on average.
    pub body_rate: u32,
    /// Until a client takes some more of an answer.
    pub write_pause: Duration,
    /// `Prefer: wait` is cut to this.
    pub wait: Duration,
    /// From the request to end to the end of the last connection.
    pub grace: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes: 256 * 1024 * 1024,
            connections: 1024,
            header_time: Duration::from_secs(10),
            body_pause: Duration::from_secs(30),
            body_rate: 16 * 1024,
            write_pause: Duration::from_secs(30),
            wait: Duration::from_mins(5),
            grace: Duration::from_secs(10),
        }
    }
}

/// What every handler can reach.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) broker: Broker,
    pub(crate) limits: HttpLimits,
    /// Event streams that may be open besides those that are.
    pub(crate) streams: std::sync::Arc<tokio::sync::Semaphore>,
    /// Requests that may wait for the end of a job besides those that do.
    pub(crate) waiting: std::sync::Arc<tokio::sync::Semaphore>,
    pub(crate) ending: CancellationToken,
    pub(crate) counts: std::sync::Arc<health::Counts>,
}

/// Serves the API with the usual limits until `shutdown` ends; then finishes open requests.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    broker: Broker,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    serve_within(listener, broker, HttpLimits::default(), shutdown).await
}

/// As [`serve`], with other limits.
///
/// # Errors
/// As [`serve`].
pub async fn serve_within(
    listener: TcpListener,
    broker: Broker,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let ending = CancellationToken::new();
    let streams = std::sync::Arc::new(tokio::sync::Semaphore::new(events::streams_max(&limits)));
    let waiting = std::sync::Arc::new(tokio::sync::Semaphore::new(jobs::waiting_max(&limits)));
    let (ending_too, counts) = (ending.clone(), std::sync::Arc::default());
    let app = App { broker, limits, streams, waiting, ending: ending_too, counts };
    listen::run(listener, router(app), limits, ending, shutdown).await
}

/// Every route, with problems for what has none.
fn router(app: App) -> Router {
    let mut router = Router::new();
    for route in routes::all() {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(edge::unknown_path)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(app.clone(), edge::around))
        .with_state(app)
}

#[cfg(test)]
mod tests;
