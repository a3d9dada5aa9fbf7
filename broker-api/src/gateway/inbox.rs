//! One subscription for the answers of all devices, told apart by a token in the subject.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::id::DeviceId;
use jobs::report::TaskReport;
use jobs::wire;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, FleetEvent};

/// Replies that may wait in a mailbox: accepted, progress, the final one.
const REPLIES_WAITING: usize = 16;

/// What comes back for an offer.
#[derive(Debug)]
pub enum Reply {
    /// The device said something; with its binary part.
    Report(Box<TaskReport>, Bytes),
    /// The device is not connected.
    NobodyListens,
    /// The device went silent.
    DeviceLost,
}

/// The place where devices answer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    prefix: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    device: DeviceId,
    replies: mpsc::Sender<Raw>,
}

#[derive(Debug)]
enum Raw {
    Message(Message),
    Lost,
}

/// Where the answers to one errand arrive; closed when dropped.
#[derive(Debug)]
pub struct Mailbox {
    inbox: Inbox,
    token: u64,
    replies: mpsc::Receiver<Raw>,
}

impl Inbox {
    /// Subscribes, and begins to hand out answers and losses.
    ///
    /// # Errors
    /// When NATS does not take the subscription.
    pub async fn start(
        client: &Client,
        fleet: &Fleet,
        token: CancellationToken,
    ) -> Result<Self, async_nats::SubscribeError> {
        let prefix = client.new_inbox();
        let mut messages = client.subscribe(format!("{prefix}.*")).await?;
        let shared = Shared { prefix, next: AtomicU64::new(1), waiting: Mutex::default() };
        let inbox = Self { shared: Arc::new(shared) };
        let mut events = fleet.events();
        let dispatcher = inbox.clone();
        tokio::spawn(token.run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some(message) => dispatcher.dispatch(message),
                        None => return,
                    },
                    event = events.recv() => match event {
                        Ok(FleetEvent::Lost(device)) => dispatcher.lost(&device),
                        Ok(FleetEvent::Returned(_)) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                }
            }
        }));
        Ok(inbox)
    }

    /// Opens a mailbox for the answers to one errand, which is at this device now.
    pub fn open(&self, device: DeviceId) -> Mailbox {
        let token = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, replies) = mpsc::channel(REPLIES_WAITING);
        self.waiting().insert(token, Waiting { device, replies: sender });
        Mailbox { inbox: self.clone(), token, replies }
    }

    fn dispatch(&self, message: Message) {
        let token = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let waiting = self.waiting();
        // An answer that nobody waits for any more is late.
        if let Some(waiting) = token.and_then(|token: u64| waiting.get(&token))
            && waiting.replies.try_send(Raw::Message(message)).is_err()
        {
            tracing::warn!(device = %waiting.device, "too many reports for one task");
        }
    }

    fn lost(&self, device: &DeviceId) {
        for waiting in self.waiting().values().filter(|waiting| waiting.device == *device) {
            // A full mailbox has something to look at already, and the attempt's timeout stays.
            let _ = waiting.replies.try_send(Raw::Lost);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    /// The errand is at another device now; what the one before still says arrives too.
    pub fn moved(&self, device: DeviceId) {
        if let Some(waiting) = self.inbox.waiting().get_mut(&self.token) {
            waiting.device = device;
        }
    }

    /// The reply subject for the offer.
    pub fn subject(&self) -> String {
        format!("{}.{}", self.inbox.shared.prefix, self.token)
    }

    /// The next answer; what cannot be understood is logged and left out.
    pub async fn next(&mut self) -> Reply {
        loop {
            let message = match self.replies.recv().await {
                Some(Raw::Message(message)) => message,
                Some(Raw::Lost) | None => return Reply::DeviceLost,
            };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Reply::NobodyListens;
            }
            let length = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(wire::JSON_LENGTH_HEADER))
                .and_then(|length| length.as_str().parse().ok());
            match wire::decode_with_binary(&message.payload, length) {
                Ok((report, binary)) => return Reply::Report(Box::new(report), binary),
                Err(error) => tracing::warn!(%error, "a device's report was not understood"),
            }
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.inbox.waiting().remove(&self.token);
    }
}
