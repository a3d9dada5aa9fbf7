//! Whose keys are whose in a round with masks: who reports a key first keeps it, so that a device
//! that repeats another's, or reports one that agrees on nothing, is refused by name, and the round
//! goes on without it.

use std::collections::VecDeque;
use std::sync::Arc;

use jobs::id::{BlobRef, DeviceId, RoundNumber};
use jobs::round::Round;
use link::blobs::{BlobError, Blobs};
use secagg::{Keys, Risk, Server, ServerError};
use tokio::sync::{Mutex, oneshot};

use super::{MaskingError, message};

/// The keys of the round at work.
#[derive(Debug, Default)]
pub(in crate::coordinator) struct KeyRing {
    round: Option<RoundNumber>,
    ring: Arc<Mutex<Ring>>,
    /// Told when the report before the next one was judged.
    last: Option<oneshot::Receiver<()>>,
}

/// A device's place among those that report keys: they are judged in the order of their reports,
/// however long it takes to read them.
#[derive(Debug)]
pub(in crate::coordinator) struct Turn {
    ring: Arc<Mutex<Ring>>,
    before: Option<oneshot::Receiver<()>>,
    /// Tells the next one when it is dropped.
    _after: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Ring {
    /// Refuses keys as the session will that is made of them.
    server: Server,
    /// Whose keys are in it; numbers there are places here.
    devices: Vec<DeviceId>,
    /// Found usable before this broker led the training, and not read yet.
    known: VecDeque<(DeviceId, BlobRef)>,
}

impl KeyRing {
    /// The next place in this round, which is the one at work.
    pub(in crate::coordinator) fn turn(&mut self, round: &Round) -> Turn {
        let number = round.plan().round;
        if self.round.replace(number) != Some(number) {
            self.last = None;
            let known = round.keys().into();
            self.ring = Arc::new(Mutex::new(Ring { known, ..Ring::default() }));
        }
        let (after, last) = oneshot::channel();
        let before = self.last.replace(last);
        Turn { ring: self.ring.clone(), before, _after: after }
    }
}

impl Turn {
    /// Waits for those before; who comes after waits until this is dropped.
    pub(in crate::coordinator) async fn come(mut self) -> Self {
        if let Some(before) = self.before.take() {
            // It is over, whether it is told or dropped.
            let _ = before.await;
        }
        self
    }

    /// Takes a device's keys, which are in this blob.
    pub(in crate::coordinator) async fn take(
        self,
        blobs: &Blobs,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Result<(), MaskingError> {
        let keys: Result<Keys, MaskingError> = message(blobs, device, blob).await;
        let ring = self.ring.clone();
        let _turn = self.come().await;
        let mut ring = ring.lock().await;
        ring.read_known(blobs).await?;
        ring.add(device, keys?)
    }
}

impl Ring {
    async fn read_known(&mut self, blobs: &Blobs) -> Result<(), MaskingError> {
        while let Some((device, blob)) = self.known.front() {
            let (device, keys) = (device.clone(), message(blobs, device, blob).await);
            match keys {
                Ok(keys) => self.add(&device, keys)?,
                Err(error @ MaskingError::Blob(BlobError::Unavailable { .. })) => {
                    return Err(error);
                }
                // The round says so itself when it begins with them.
                Err(error) => tracing::warn!(%error, "keys that were usable cannot be read"),
            }
            self.known.pop_front();
        }
        Ok(())
    }

    fn add(&mut self, device: &DeviceId, keys: Keys) -> Result<(), MaskingError> {
        let place = self.devices.iter().position(|known| known == device);
        let place = place.unwrap_or(self.devices.len());
        let number = u32::try_from(place).unwrap_or(u32::MAX);
        let taken = self.server.keys(number, keys).map_err(|error| self.named(device, error));
        if taken.is_ok() && place == self.devices.len() {
            self.devices.push(device.clone());
        }
        taken
    }

    fn named(&self, device: &DeviceId, error: ServerError) -> MaskingError {
        let device = device.clone();
        if let ServerError::TakenKey { key, owner, .. } = error
            && let Some(owner) = self.devices.get(owner as usize).cloned()
        {
            return MaskingError::TakenKey { device, key, owner };
        }
        MaskingError::Keys { device, error }
    }
}

impl Default for Ring {
    fn default() -> Self {
        // Keys are the same whatever they are used for.
        let server = Server::new(String::new(), 0, Risk::default());
        Self { server, devices: Vec::new(), known: VecDeque::new() }
    }
}
