//! Updates that come masked: read from the object store into their sum, which is unmasked with
//! what devices say in the end.

use std::sync::atomic::Ordering;

use jobs::id::{BlobRef, DeviceId};
use jobs::report::{Failure, FailureCode};
use jobs::round::{Aggregate, Exchange};
use jobs::spec::{Purpose, Rounding};
use secagg::{Quantisation, QuantisationError};

use super::{How, ReadError, Unmade, Updates};
use crate::coordinator::masking::{Masking, MaskingError, Terms, Turn};
use crate::coordinator::state::is_of;

impl Updates {
    /// Values of a masked update: one for each parameter, the weight, and whether it was not
    /// longer than the norm, if devices say so.
    pub(in crate::coordinator) fn masked_len(&self, within: bool) -> u64 {
        self.length + 1 + u64::from(within)
    }

    /// Looks into the keys that a device sends in an update's place, at its turn.
    pub(in crate::coordinator) async fn check_keys(
        &self,
        turn: Turn,
        terms: &Terms,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Option<Failure> {
        if let Some(failure) = foreign(terms, device, blob) {
            turn.come().await;
            return Some(failure);
        }
        turn.take(&self.blobs, device, blob).await.err().map(|error| error.failure())
    }

    /// Looks into a masked update and adds it to the sum; why it cannot be used, if it cannot.
    pub(in crate::coordinator) async fn check_masked(
        &self,
        terms: &Terms,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Option<Failure> {
        if let Some(failure) = foreign(terms, device, blob) {
            return Some(failure);
        }
        let (found, expected) = (blob.size.0, 4 * terms.length);
        if found != expected {
            let text = format!("device {device}: {found} bytes, a masked update has {expected}");
            return Some(Failure::new(FailureCode::InvalidUpdate, text));
        }
        let Ok(_permit) = self.reading.acquire().await else { return None };
        self.add_masked(terms, device, blob).await.err().map(|error| error.failure())
    }

    /// Looks into what a device said at a stage at which it sends no update.
    pub(in crate::coordinator) async fn check_message(
        &self,
        masking: &mut Masking,
        terms: &Terms,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Option<Failure> {
        if let Some(failure) = foreign(terms, device, blob) {
            return Some(failure);
        }
        masking.check(&self.blobs, device, blob).await.err().map(|error| error.failure())
    }

    /// The session of a round at a stage.
    pub(in crate::coordinator) async fn masking(
        &self,
        terms: &Terms,
        exchange: &Exchange,
        stage: Purpose,
    ) -> Result<Masking, MaskingError> {
        Masking::load(&self.blobs, terms, exchange, stage).await
    }

    async fn add_masked(
        &self,
        terms: &Terms,
        device: &DeviceId,
        blob: &BlobRef,
    ) -> Result<(), ReadError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let owner = device.clone();
        let length = usize::try_from(terms.length).unwrap_or(usize::MAX);
        if !self.ask(move |fold| fold.open_masked(ticket, owner, length)).await? {
            return Ok(());
        }
        let read = self.read_masked(ticket, blob).await;
        if read.is_err() {
            self.tell(move |fold| fold.forget_masked(ticket)).await;
        }
        read
    }

    async fn read_masked(&self, ticket: u64, blob: &BlobRef) -> Result<(), ReadError> {
        let mut reader = self.blobs.open(blob).await?;
        while let Some(piece) = reader.next().await? {
            self.tell(move |fold| fold.read_masked(ticket, &piece)).await;
        }
        Ok(self.ask(move |fold| fold.close_masked(ticket)).await??)
    }

    /// New parameters of the masked updates of a round, as [`Updates::aggregate`] makes them of
    /// others.
    pub(in crate::coordinator) async fn unmask(
        &self,
        names: (String, String),
        terms: &Terms,
        devices_max: u32,
        exchange: &Exchange,
        how: How,
    ) -> Result<Aggregate, Unmade> {
        let quantisation = quantisation(terms, devices_max)
            .map_err(|error| Failure::new(FailureCode::InvalidSpec, error.to_string()))?;
        let aggregate = self.unmasked(names, terms, quantisation, exchange, how).await;
        aggregate.map_err(|error| error.failure().into())
    }

    async fn unmasked(
        &self,
        names: (String, String),
        terms: &Terms,
        quantisation: Quantisation,
        exchange: &Exchange,
        how: How,
    ) -> Result<Aggregate, ReadError> {
        let masking = Masking::load(&self.blobs, terms, exchange, Purpose::Unmask).await?;
        let masks = masking.masks(&self.blobs, exchange).await?;
        let devices: Vec<DeviceId> =
            exchange.masked.iter().map(|(device, _)| device.clone()).collect();
        loop {
            let wanted = devices.clone();
            let missing = self.ask(move |fold| fold.missing_masked(&wanted)).await?;
            let Some((device, blob)) = missing.and_then(|index| exchange.masked.get(index)) else {
                break;
            };
            self.add_masked(terms, device, blob).await?;
        }
        let noised = match &how {
            How::Private(private) => {
                let model = self.ask(|fold| fold.model().clone()).await?;
                let beside = quantisation.error(terms.secure.rounding == Rounding::Stochastic);
                Some(private.of_sum(&model, beside, &exchange.masked)?)
            }
            How::Mean(_) | How::Step(_) | How::Rule(_) => None,
        };
        let count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        let within =
            self.ask(move |fold| fold.unmask(&masks, quantisation, count, noised)).await??;
        let within = match &how {
            How::Private(private) => private.within_sum(within, &exchange.masked)?,
            How::Mean(_) | How::Step(_) | How::Rule(_) => None,
        };
        Ok(Aggregate { within, ..self.hand_out(names, &how).await? })
    }
}

/// How devices made levels of their updates.
fn quantisation(terms: &Terms, devices: u32) -> Result<Quantisation, QuantisationError> {
    Quantisation::new(terms.secure.clip, devices, terms.secure.weight_max)
}

/// Whether a device names a blob that it has no business to name.
fn foreign(terms: &Terms, device: &DeviceId, blob: &BlobRef) -> Option<Failure> {
    let is_foreign = blob.name.is_none() || !is_of(&terms.job, blob);
    is_foreign.then(|| {
        let name = blob.object_name();
        let text = format!("device {device} names blob {name:?}, which is not of this job");
        Failure::new(FailureCode::InvalidUpdate, text)
    })
}
