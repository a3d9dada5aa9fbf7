//! What is stored of devices.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jobs::device::Presence;
use jobs::id::{DeviceId, Millis};
use tokio::sync::Notify;

use super::Fleet;
use crate::store;

/// After what could not be stored.
const REST: Duration = Duration::from_secs(2);

/// Devices that said something of themselves that is not stored yet.
#[derive(Debug, Default)]
pub(super) struct Unstored {
    devices: Mutex<BTreeSet<DeviceId>>,
    added: Notify,
}

impl Unstored {
    pub(super) fn add(&self, devices: impl IntoIterator<Item = DeviceId>) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).extend(devices);
        self.added.notify_one();
    }

    /// The next one behind another, or the first: one that cannot be stored keeps nobody waiting.
    fn take_behind(&self, last: Option<&DeviceId>) -> Option<DeviceId> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = devices.range((behind, Bound::Unbounded)).next().or(devices.first())?.clone();
        devices.take(&next)
    }
}

impl Fleet {
    /// Forgets devices that are offline while what is stored of devices takes more than half of its
    /// room: an eighth of them, those first that are away longest. Who comes back says hello.
    ///
    /// # Errors
    /// [`store::StoreError::Unavailable`].
    pub async fn forget_absent(&self) -> Result<(), store::StoreError> {
        let bucket = &self.shared.store.devices;
        if bucket.filled().await? <= store::FILLED_MAX {
            return Ok(());
        }
        let mut absent: Vec<(Millis, DeviceId)> = Vec::new();
        for (id, device) in self.read().iter() {
            if device.presence == Presence::Offline {
                absent.push((device.last_seen, id.clone()));
            }
        }
        absent.sort();
        for (_, id) in absent.iter().take(absent.len().div_ceil(8)) {
            if self.presence(id) == Presence::Offline {
                self.write().remove(id);
                bucket.remove(id.as_str()).await?;
            }
        }
        Ok(())
    }

    /// Stores what all devices said of themselves last, where that is not stored any more.
    pub(crate) fn store_all(&self) {
        let devices: Vec<DeviceId> = self.read().keys().cloned().collect();
        self.shared.unstored.add(devices);
    }

    /// Stores for ever what devices say of themselves, one after another, while others are heard.
    pub(super) async fn keep(&self) {
        let unstored = &self.shared.unstored;
        let (mut last, mut told) = (None, false);
        loop {
            let Some(id) = unstored.take_behind(last.as_ref()) else {
                unstored.added.notified().await;
                continue;
            };
            // One that is forgotten meanwhile has nothing to be stored.
            let hello = self.read().get(&id).map(|device| device.hello.clone());
            if let Some(hello) = hello {
                match self.shared.store.devices.put(id.as_str(), &hello).await {
                    Ok(_) => told = false,
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(device = %id, %error, "a device's facts are not stored");
                        }
                        unstored.add([id.clone()]);
                        tokio::time::sleep(REST).await;
                    }
                }
            }
            last = Some(id);
        }
    }
}

#[cfg(test)]
mod tests;
