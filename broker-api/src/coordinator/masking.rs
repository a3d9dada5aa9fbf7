//! The secure aggregation of a round as the broker drives it: made again, at each stage, of what
//! devices said at the stages before. It passes on what neighbours sealed for one another.

use jobs::id::{BlobRef, DeviceId, JobId, RoundNumber};
use jobs::report::{Failure, FailureCode};
use jobs::round::Exchange;
use jobs::spec::{Purpose, SecureAggregation};
use link::blobs::{BlobError, Blobs};
use secagg::{
    Keys, Masks, Party, PublicKey, Risk, Server, ServerError, Shares, TopologyError, Unmasking,
};
use serde::de::DeserializeOwned;

mod key_ring;

pub(super) use self::key_ring::{KeyRing, Turn};

/// Bytes of a message, at most: shares for all neighbours that there may be take a fifth.
const MESSAGE_BYTES_MAX: u64 = 256 * 1024;

/// The session of one round at one stage.
#[derive(Debug)]
pub(super) struct Masking {
    round: RoundNumber,
    stage: Purpose,
    /// In the order of parties.
    devices: Vec<DeviceId>,
    server: Server,
}

/// Why a stage cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MaskingError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Session(#[from] ServerError),
    #[error("what device {device} said is not understood: {reason}")]
    Message { device: DeviceId, reason: String },
    #[error("{bytes} bytes from device {device}: expected {MESSAGE_BYTES_MAX} at most")]
    TooLarge { device: DeviceId, bytes: u64 },
    #[error("device {device}: key {key:?} is that of device {owner}, which reported it before")]
    TakenKey { device: DeviceId, key: PublicKey, owner: DeviceId },
    #[error("device {device}: {error}")]
    Keys { device: DeviceId, error: ServerError },
    #[error("device {0} is not in this round")]
    Stranger(DeviceId),
    #[error("recovering secrets met a fault of the program: see the broker's log")]
    Fault,
}

impl MaskingError {
    /// For the device that is to blame, or for the round.
    pub(super) fn failure(&self) -> Failure {
        let code = match self {
            Self::Blob(error) => error.code(),
            Self::Session(
                ServerError::TooFew { .. } | ServerError::Topology(TopologyError::Devices(_)),
            ) => FailureCode::NoQuorum,
            Self::Session(ServerError::Topology(
                TopologyError::Risk(_) | TopologyError::TooRisky { .. },
            )) => FailureCode::InvalidSpec,
            Self::Fault => FailureCode::Internal,
            Self::Session(_)
            | Self::Message { .. }
            | Self::TooLarge { .. }
            | Self::TakenKey { .. }
            | Self::Keys { .. }
            | Self::Stranger(_) => FailureCode::InvalidUpdate,
        };
        Failure::new(code, self.to_string())
    }
}

/// Which session: all that is the same for all stages.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) job: JobId,
    pub(super) round: RoundNumber,
    /// Values of a masked update.
    pub(super) length: u64,
    pub(super) secure: SecureAggregation,
}

impl Masking {
    /// Whether it is that of this round and stage.
    pub(super) fn is_at(&self, round: RoundNumber, stage: Purpose) -> bool {
        self.round == round && self.stage == stage
    }

    /// The session at a stage, made of what was said before.
    pub(super) async fn load(
        blobs: &Blobs,
        terms: &Terms,
        exchange: &Exchange,
        stage: Purpose,
    ) -> Result<Self, MaskingError> {
        let Terms { job, round, length, secure } = terms;
        let risk = Risk { drop_out: secure.drop_out, colluding: secure.colluding };
        let server = Server::new(format!("{job}.{round}"), *length, risk);
        let devices = exchange.keys.iter().map(|(device, _)| device.clone()).collect();
        let mut masking = Self { round: *round, stage, devices, server };
        for (device, blob) in &exchange.keys {
            let keys: Keys = message(blobs, device, blob).await?;
            let party = masking.party(device)?;
            masking.server.keys(party.0, keys)?;
        }
        masking.server.close_keys()?;
        if stage == Purpose::Share {
            return Ok(masking);
        }
        for (device, blob) in &exchange.shares {
            let shares: Shares = message(blobs, device, blob).await?;
            let party = masking.party(device)?;
            masking.server.shares(party, &shares)?;
        }
        masking.server.close_shares()?;
        if stage == Purpose::Mask {
            return Ok(masking);
        }
        for (device, _) in &exchange.masked {
            let party = masking.party(device)?;
            masking.server.masked(party)?;
        }
        masking.server.close_masked()?;
        Ok(masking)
    }

    fn party(&self, device: &DeviceId) -> Result<Party, MaskingError> {
        let place = self.devices.binary_search(device).ok();
        let party = place.and_then(|place| u32::try_from(place).ok()).map(Party);
        party.ok_or_else(|| MaskingError::Stranger(device.clone()))
    }

    /// What a device is asked at this stage.
    pub(super) fn question(&self, device: &DeviceId) -> Result<Vec<u8>, MaskingError> {
        let party = self.party(device)?;
        let question = match self.stage {
            Purpose::Share => self.server.roster().map(serde_json::to_vec),
            Purpose::Mask => self.server.inbox(party).map(|inbox| serde_json::to_vec(&inbox)),
            Purpose::Unmask
            | Purpose::Train
            | Purpose::Evaluate
            | Purpose::Infer
            | Purpose::Telemetry => {
                self.server.unmask_request(party).map(|request| serde_json::to_vec(&request))
            }
        };
        let question = question.and_then(Result::ok);
        question.ok_or_else(|| MaskingError::Stranger(device.clone()))
    }

    /// Whether what a device said at this stage can be used; masked updates are not looked into
    /// here.
    pub(super) async fn check(
        &mut self,
        blobs: &Blobs,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Result<(), MaskingError> {
        let party = self.party(device)?;
        if self.stage == Purpose::Share {
            let shares: Shares = message(blobs, device, blob).await?;
            self.server.shares(party, &shares)?;
        } else {
            let unmasking: Unmasking = message(blobs, device, blob).await?;
            self.server.unmasking(party, &unmasking)?;
        }
        Ok(())
    }

    /// The masks to take off the sum, by what devices said last.
    pub(super) async fn masks(
        mut self,
        blobs: &Blobs,
        exchange: &Exchange,
    ) -> Result<Masks, MaskingError> {
        for (device, blob) in &exchange.unmaskings {
            self.check(blobs, device, blob).await?;
        }
        let finish = tokio::task::spawn_blocking(move || self.server.finish());
        Ok(finish.await.map_err(|_| MaskingError::Fault)??)
    }
}

async fn message<T: DeserializeOwned>(
    blobs: &Blobs,
    device: &DeviceId,
    blob: &BlobRef,
) -> Result<T, MaskingError> {
    let bytes = blob.size.0;
    if bytes > MESSAGE_BYTES_MAX {
        return Err(MaskingError::TooLarge { device: device.clone(), bytes });
    }
    let bytes = blobs.get(blob).await?;
    serde_json::from_slice(&bytes).map_err(|error| MaskingError::Message {
        device: device.clone(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use secagg::Topology;

    use super::*;

    #[test]
    fn no_device_is_blamed_for_a_session_that_cannot_be() {
        let risk = Risk { drop_out: 0.9, colluding: 0.9 };
        for (devices, code) in [(2, FailureCode::NoQuorum), (20, FailureCode::InvalidSpec)] {
            let error = Topology::of(devices, risk).unwrap_err();
            let failure = MaskingError::from(ServerError::from(error)).failure();
            assert_eq!(failure.code, code, "{failure:?}");
        }
    }
}
