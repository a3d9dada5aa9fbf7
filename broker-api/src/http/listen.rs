//! Accepts connections and speaks HTTP/1.1 on them, within limits, until asked to end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::HttpLimits;
use super::patience::Patient;

/// Bytes of a request's line and headers, at most.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How long to wait when the system has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs until `shutdown`, then lets open requests finish within the grace time.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    limits: HttpLimits,
    ending: CancellationToken,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            let place = places.clone().acquire_owned().await.expect("never closed");
            let stream = accepted(&listener).await;
            let (router, ending) = (router.clone(), ending.clone());
            connections.spawn(async move {
                talk(stream, router, limits, ending).await;
                drop(place);
            });
        }
    };
    let never: Result<Infallible, ()> = tokio::select! {
        never = accept => never,
        () = shutdown => Err(()),
    };
    debug_assert!(never.is_err(), "accepting has no end of its own");
    drop(listener);
    ending.cancel();
    connections.close();
    if tokio::time::timeout(limits.grace, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections were still open and are closed");
    }
    Ok(())
}

/// The next connection; errors of single connections and want of descriptors pass.
async fn accepted(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, router: Router, limits: HttpLimits, ending: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = Patient::new(stream, limits.write_pause);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.grace, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
