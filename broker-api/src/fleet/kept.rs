//! What is stored of devices.

use jobs::device::{Hello, Presence};
use jobs::id::{DeviceId, Millis};

use super::Fleet;
use crate::store;

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
    ///
    /// # Errors
    /// [`store::StoreError::Unavailable`].
    pub(crate) async fn store_all(&self) -> Result<(), store::StoreError> {
        let hellos: Vec<Hello> = self.read().values().map(|it| it.hello.clone()).collect();
        for hello in hellos {
            self.shared.store.devices.put(hello.device.as_str(), &hello).await?;
        }
        Ok(())
    }
}
