//! The agent: one per device. Events in, effects out; the rules are in [`jobs`], the numbers in
//! [`models`].
//!
//! [`run`] is the whole agent; the binary and the tests call it alike.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jobs::device::{Goodbye, Hello};
use jobs::subject::{self, FleetTopic};
use jobs::wire;
use tokio::sync::watch;

use crate::config::{Config, ConfigError};
use crate::device::Device;
use crate::state::{State, StateError};

pub mod bench;
mod cache;
mod checkpoints;
pub mod cli;
mod clock;
mod commands;
pub mod config;
mod device;
pub mod engines;
mod execute;
mod facts;
mod files;
mod free_pages;
pub mod guards;
mod held;
mod kept_local;
pub mod logging;
mod masking;
mod presence;
mod refusals;
mod releases;
pub mod service;
mod state;
mod systemd;
mod telemetry;
mod work;

#[cfg(test)]
#[path = "../../link/testing/server.rs"]
mod server;
#[cfg(test)]
mod tests;

/// How long the work at hand may take to stop when the agent ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// Why an agent cannot run; everything else it outlives.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// NATS cannot be used, and waiting would not help.
    #[error(transparent)]
    Link(#[from] link::connect::LinkError),
    /// A data set cannot be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// The system does not give what every program needs.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// Runs an agent until `shutdown` completes: joins the fleet, works, and says goodbye.
///
/// While NATS cannot be reached it waits and tries again.
///
/// # Errors
/// [`AgentError`] when the agent cannot run at all.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    config.check_data()?;
    let state = State::open(&config.state_dir)?;
    let mut shutdown = std::pin::pin!(shutdown);
    tracing::info!(
        device = %config.device,
        nats = link::connect::without_password(&config.link.servers),
        state_dir = %state.dir().display(),
        "starting"
    );
    systemd::tell("connecting");
    let connecting = link::connect::connect_patiently(&config.link, |error| {
        tracing::warn!("{error}; trying again until it answers");
        systemd::tell(&format!("not connected: {error}"));
    });
    let (client, link) = tokio::select! {
        connected = connecting => connected?,
        () = &mut shutdown => return Ok(()),
    };
    let device = Arc::new(Device::new(config, state, client, link));
    let outcome = serve(&device, shutdown).await;
    say_goodbye(&device).await;
    tracing::info!(device = %device.config.device, "stopped");
    outcome
}

/// Everything that goes on while the agent is joined.
async fn serve(
    device: &Arc<Device>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    let (stop, stopping) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    // Listening begins before the hello, so that whoever hears it can be answered.
    let commands = commands::subscribe(device).await?;
    let held = device.subscribe(subject::held(&device.config.device)).await?;
    let work = work::Work::subscribe(device).await?;
    presence::join(device).await;
    tasks.spawn(commands::answer(device.clone(), commands));
    tasks.spawn(held::give(device.clone(), held));
    tasks.spawn(presence::beat(device.clone()));
    tasks.spawn(presence::greet(device.clone()));
    tasks.spawn(presence::measure(device.clone()));
    let mut work = tokio::spawn(work.run(stopping));
    let guarded = device.clone();
    tasks.spawn(async move { guarded.tell_blind_guards().await });
    tasks.spawn(watch_engines(device.clone()));
    let rated = device.clone();
    tasks.spawn(async move {
        if rated.rate_engines().await {
            presence::say_hello(&rated).await;
        }
    });
    let data = device.datasets.read_all();
    let outcome = tokio::select! {
        outcome = watch_data(device, data) => outcome,
        () = shutdown => Ok(()),
    };
    tracing::info!("ending");
    let _ = stop.send(true);
    if tokio::time::timeout(STOP_TIMEOUT, &mut work).await.is_err() {
        tracing::warn!("work did not stop within {STOP_TIMEOUT:?}");
        work.abort();
    }
    tasks.shutdown().await;
    outcome
}

/// Reads the data sets, tells the fleet, and then waits for ever; ends only with an error.
async fn watch_data(
    device: &Arc<Device>,
    data: impl Future<Output = Result<bool, datasets::DataError>>,
) -> Result<(), AgentError> {
    if data.await? {
        presence::say_hello(device).await;
    }
    std::future::pending().await
}

/// Finds out about the helper's engines, and tells the fleet; again after an hour where one cannot be
/// used.
async fn watch_engines(device: Arc<Device>) {
    loop {
        let again = device.probe_engines().await;
        presence::say_hello(&device).await;
        let Some(again) = again else { return };
        tokio::time::sleep(again).await;
    }
}

async fn say_goodbye(device: &Device) {
    let Hello { device: id, instance, .. } = device.hello();
    let payload = wire::encode(&Goodbye { device: id.clone(), instance });
    if device.is_connected() {
        let goodbye = async {
            let subject = subject::fleet(&id, FleetTopic::Goodbye);
            let _ = link::publish::publish(&device.client, subject, None, payload).await;
            let _ = device.client.flush().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
    }
}
