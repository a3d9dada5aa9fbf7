//! What the agent tells without being asked: hello, heartbeats, telemetry. Never waits for work.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use jobs::device::{Heartbeat, Telemetry};
use jobs::subject::{self, FleetTopic};
use jobs::wire;
use tokio::time::MissedTickBehavior;

use crate::device::Device;
use crate::systemd;

/// How long unused blobs and decoded data sets stay in memory.
const UNUSED_AFTER: Duration = Duration::from_mins(1);

/// Says hello for the first time.
pub(crate) async fn join(device: &Device) {
    if say_hello(device).await {
        tracing::info!(device = %device.config.device, "joined");
        tell_connected(device);
    }
}

/// Publishes the hello; whether it was sent.
pub(crate) async fn say_hello(device: &Device) -> bool {
    let payload = wire::encode(&device.hello());
    let subject = subject::fleet(&device.config.device, FleetTopic::Hello);
    let sent = link::publish::publish(&device.client, subject, None, payload).await;
    if let Err(error) = &sent {
        tracing::warn!("hello: {error}");
    }
    sent.is_ok()
}

fn tell_connected(device: &Device) {
    let servers = link::connect::without_password(&device.config.link.servers);
    systemd::tell(&format!("connected to {servers}"));
}

/// Says hello after each reconnection, and tells the log about the link.
pub(crate) async fn greet(device: Arc<Device>) {
    let mut link = device.link.clone();
    let mut greeted = 1;
    let mut was_connected = true;
    let mut complaint = None;
    while link.changed().await.is_ok() {
        let state = link.borrow_and_update().clone();
        if state.complaint != complaint {
            if let Some(text) = &state.complaint {
                tracing::warn!("NATS: {text}");
            }
            complaint.clone_from(&state.complaint);
        }
        if was_connected && !state.connected && state.connections > 0 {
            tracing::warn!("connection to NATS lost; trying again until it is back");
            systemd::tell("not connected: connection to NATS lost; trying again until it is back");
        }
        was_connected = state.connected || state.connections == 0;
        if state.connections > greeted {
            greeted = state.connections;
            tracing::info!("connected to NATS again");
            tell_connected(&device);
            say_hello(&device).await;
        }
    }
}

/// Publishes heartbeats; silent while there is no connection.
pub(crate) async fn beat(device: Arc<Device>) {
    let subject = subject::fleet(&device.config.device, FleetTopic::Heartbeat);
    let mut ticks = tokio::time::interval(device.config.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 0.. {
        ticks.tick().await;
        device.cache.forget_unused(UNUSED_AFTER);
        device.datasets.forget_unused(UNUSED_AFTER);
        if !device.is_connected() {
            continue;
        }
        let heartbeat = Heartbeat {
            device: device.config.device.clone(),
            instance: device.instance().to_owned(),
            sequence,
            tasks: device.tasks.borrow().clone(),
            models: device.models.borrow().clone(),
        };
        let payload = wire::encode(&heartbeat);
        if let Err(error) =
            link::publish::publish(&device.client, subject.clone(), None, payload).await
        {
            tracing::debug!("heartbeat: {error}");
        }
    }
}

/// Publishes measurements; keeps them on disk while there is no connection, and sends them
/// later under ids that make one of two.
pub(crate) async fn measure(device: Arc<Device>) {
    let mut ticks = tokio::time::interval(device.config.telemetry);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let telemetry = device.measure().await;
        // Behind what waits: who shows the newest shows what came last.
        if device.is_connected() && replay(&device).await && send(&device, &telemetry).await {
            continue;
        }
        if let Err(error) = device.buffer.push(&telemetry) {
            tracing::warn!("telemetry cannot be kept: {error}");
        }
    }
}

/// Sends what waits on disk, the oldest first, and forgets what was taken; whether nothing waits
/// any more.
async fn replay(device: &Device) -> bool {
    if device.buffer.is_empty() {
        return true;
    }
    let waiting = device.buffer.all();
    let mut sent = 0;
    while sent < waiting.len() && send(device, &waiting[sent]).await {
        sent += 1;
    }
    let are_all = sent == waiting.len();
    if sent > 0 {
        tracing::info!(sent, of = waiting.len(), "sent telemetry from the time without connection");
    } else if !are_all {
        // What is on disk stays as it is.
        return false;
    }
    if let Err(error) = device.buffer.replace(&waiting[sent..]) {
        tracing::warn!("telemetry buffer: {error}");
    }
    are_all
}

/// Whether the stream has taken it. Gives up when the connection is lost: the acknowledgement
/// will not come, and meanwhile nothing would be measured. Sent again, it is stored once.
async fn send(device: &Device, telemetry: &Telemetry) -> bool {
    let id = &device.config.device;
    let subject = subject::fleet(id, FleetTopic::Telemetry);
    let message_id = format!("telemetry.{id}.{}", telemetry.at);
    let payload = wire::encode(telemetry);
    let headers = HeaderMap::new();
    let mut link = device.link.clone();
    let stored = tokio::select! {
        stored = link::publish::store(&device.context, &subject, &message_id, headers, payload) => stored,
        _ = link.wait_for(|state| !state.connected) => return false,
    };
    match stored {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!("telemetry: {error}");
            false
        }
    }
}
