//! One subscription for the answers of all devices, told apart by tokens in the subject: the errand's,
//! and how often it moved to another device before.

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
    moves: u64,
    replies: mpsc::Sender<Raw>,
}

#[derive(Debug)]
enum Raw {
    Message(Message),
    /// The device is lost that the errand was at after so many moves.
    Lost(u64),
}

/// Where the answers to one errand arrive; closed when dropped.
#[derive(Debug)]
pub struct Mailbox {
    inbox: Inbox,
    token: u64,
    /// How often the errand moved to another device.
    moves: u64,
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
        let mut messages = client.subscribe(format!("{prefix}.*.*")).await?;
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
        self.waiting().insert(token, Waiting { device, moves: 0, replies: sender });
        Mailbox { inbox: self.clone(), token, moves: 0, replies }
    }

    fn dispatch(&self, message: Message) {
        let token = message.subject.rsplit('.').nth(1).and_then(|token| token.parse().ok());
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
            let _ = waiting.replies.try_send(Raw::Lost(waiting.moves));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    /// The errand is at another device now; what the one before still says arrives too. That it is
    /// gone does not.
    pub fn moved(&mut self, device: DeviceId) {
        self.moves += 1;
        if let Some(waiting) = self.inbox.waiting().get_mut(&self.token) {
            (waiting.device, waiting.moves) = (device, self.moves);
        }
    }

    /// The reply subject for the offer to the device where the errand is now.
    pub fn subject(&self) -> String {
        format!("{}.{}.{}", self.inbox.shared.prefix, self.token, self.moves)
    }

    /// The next answer; what cannot be understood is logged and left out.
    pub async fn next(&mut self) -> Reply {
        loop {
            let message = match self.replies.recv().await {
                Some(Raw::Message(message)) => message,
                Some(Raw::Lost(moves)) if moves != self.moves => continue,
                Some(Raw::Lost(_)) | None => return Reply::DeviceLost,
            };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                if message.subject.as_str() == self.subject() {
                    return Reply::NobodyListens;
                }
                continue;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        let (next, waiting) = (AtomicU64::new(1), Mutex::default());
        Inbox { shared: Arc::new(Shared { prefix: "_INBOX.a".to_owned(), next, waiting }) }
    }

    /// What the server says of an offer with this reply subject.
    fn nobody_listens(reply: String) -> Message {
        Message {
            subject: reply.into(),
            reply: None,
            payload: Bytes::new(),
            headers: None,
            status: Some(StatusCode::NO_RESPONDERS),
            description: None,
            length: 0,
        }
    }

    /// Of many requests at a device that dies some hear twice that it is gone, and are elsewhere by
    /// the second time.
    #[tokio::test]
    async fn that_a_device_is_gone_says_nothing_of_the_next_one() {
        let (inbox, pi, nano) = (inbox(), "pi".parse().unwrap(), "nano".parse().unwrap());
        let mut mailbox = inbox.open(DeviceId::clone(&pi));
        let offered = mailbox.subject();
        inbox.lost(&pi);
        inbox.lost(&pi);
        assert!(matches!(mailbox.next().await, Reply::DeviceLost));
        mailbox.moved(DeviceId::clone(&nano));
        let again = mailbox.subject();
        inbox.dispatch(nobody_listens(offered));
        let stale = tokio::time::timeout(std::time::Duration::from_millis(20), mailbox.next());
        assert!(stale.await.is_err(), "it is at the next device");
        inbox.lost(&pi);
        inbox.dispatch(nobody_listens(again));
        assert!(matches!(mailbox.next().await, Reply::NobodyListens));
        inbox.lost(&nano);
        assert!(matches!(mailbox.next().await, Reply::DeviceLost));
        drop(mailbox);
        assert!(inbox.waiting().is_empty());
    }
}
