//! Masked updates, added up modulo 2^32 in any order, and what the sum means once it is unmasked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use jobs::id::DeviceId;
use models::federated::privacy::PrivateSum;
use models::params::ParametersError;
use secagg::{Masks, Quantisation, QuantisationError};

use super::Fold;
use crate::coordinator::updates::rules::fix;

/// The sum of the masked updates of one round. A vector has a value for each parameter, one for
/// the weight behind them, and one that is 1 where the update was not longer than a norm that
/// follows them.
#[derive(Debug, Default)]
pub(super) struct MaskedSum {
    sum: Vec<u32>,
    /// By ticket: those that are being read.
    reading: BTreeMap<u64, MaskedReading>,
    added: BTreeSet<DeviceId>,
    /// What the sum means, once no mask is in it.
    meaning: Option<Meaning>,
}

/// What a sum without masks means.
#[derive(Debug)]
struct Meaning {
    quantisation: Quantisation,
    /// Of all devices together.
    weight: u32,
    noised: Option<Noised>,
}

/// How a sum becomes a private mean.
#[derive(Debug)]
pub(in crate::coordinator) struct Noised {
    pub(in crate::coordinator) sum: PrivateSum,
    /// Values that no update changes, whatever was sent.
    pub(in crate::coordinator) fixed: Vec<Range<usize>>,
}

#[derive(Debug)]
struct MaskedReading {
    device: DeviceId,
    offset: usize,
    /// Bytes of a value that was cut by a piece's end.
    rest: Vec<u8>,
}

impl Fold {
    /// Begins to read a masked update of so many values; `false` when it is in the sum already.
    pub(in crate::coordinator) fn open_masked(
        &mut self,
        ticket: u64,
        device: DeviceId,
        length: usize,
    ) -> bool {
        let masked = self.masked.get_or_insert_default();
        masked.sum.resize(length, 0);
        let is_new = masked.meaning.is_none()
            && !masked.added.contains(&device)
            && masked.reading.values().all(|reading| reading.device != device);
        if is_new {
            let reading = MaskedReading { device, offset: 0, rest: Vec::new() };
            masked.reading.insert(ticket, reading);
        }
        is_new
    }

    /// Adds the next piece; one that is too long shows in [`Fold::close_masked`].
    pub(in crate::coordinator) fn read_masked(&mut self, ticket: u64, piece: &[u8]) {
        let Some(masked) = &mut self.masked else { return };
        let Some(reading) = masked.reading.get_mut(&ticket) else { return };
        reading.rest.extend_from_slice(piece);
        let whole = reading.rest.len() - reading.rest.len() % 4;
        let values = reading.rest[..whole].chunks_exact(4);
        let count = values.len();
        if let Some(sum) = masked.sum.get_mut(reading.offset..) {
            for (sum, bytes) in sum.iter_mut().zip(values) {
                let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                *sum = sum.wrapping_add(value);
            }
        }
        reading.offset += count;
        reading.rest.drain(..whole);
    }

    /// The masked update was read to its end, and its digest is right.
    pub(in crate::coordinator) fn close_masked(
        &mut self,
        ticket: u64,
    ) -> Result<(), ParametersError> {
        let Some(masked) = &mut self.masked else { return Ok(()) };
        let Some(reading) = masked.reading.remove(&ticket) else { return Ok(()) };
        let length = masked.sum.len();
        if reading.offset != length || !reading.rest.is_empty() {
            masked.spoil();
            let found = reading.offset;
            let text = format!("a masked update of {found} values: expected {length}");
            return Err(ParametersError::Format(text));
        }
        masked.added.insert(reading.device);
        Ok(())
    }

    /// The masked update cannot be read to its end.
    pub(in crate::coordinator) fn forget_masked(&mut self, ticket: u64) {
        if let Some(masked) = &mut self.masked
            && masked.reading.remove(&ticket).is_some()
        {
            masked.spoil();
        }
    }

    /// Makes the sum that of these devices; the first of them that is not in it.
    pub(in crate::coordinator) fn missing_masked(&mut self, devices: &[DeviceId]) -> Option<usize> {
        let masked = self.masked.get_or_insert_default();
        let wanted: BTreeSet<&DeviceId> = devices.iter().collect();
        if masked.meaning.take().is_some()
            || !masked.reading.is_empty()
            || !masked.added.iter().all(|it| wanted.contains(it))
        {
            masked.spoil();
        }
        devices.iter().position(|device| !masked.added.contains(device))
    }

    /// Takes the masks off the sum of so many devices: from now on it is the mean that is handed
    /// out, with noise where it is to be private. How many of the updates were not longer than the
    /// norm, if their devices said so.
    pub(in crate::coordinator) fn unmask(
        &mut self,
        masks: &Masks,
        quantisation: Quantisation,
        devices: u32,
        noised: Option<Noised>,
    ) -> Result<Option<u32>, QuantisationError> {
        let length = self.model().total_len();
        let masked = self.masked.get_or_insert_default();
        masks.apply(0, &mut masked.sum);
        let weight = masked.sum.get(length).copied().unwrap_or_default();
        // From now on the sum is no masked one that could be added to.
        masked.meaning = Some(Meaning { quantisation, weight, noised });
        quantisation.check_weights(weight, devices)?;
        Ok(masked.sum.get(length + 1).map(|sum| secagg::count(*sum, devices)))
    }

    /// Values of the mean of masked updates, which differ from `base`, from `offset` on; `None`
    /// while there is no such mean.
    pub(super) fn masked_mean(&self, offset: usize, base: &[f32]) -> Option<Vec<f32>> {
        let masked = self.masked.as_ref()?;
        let Meaning { quantisation, weight, noised } = masked.meaning.as_ref()?;
        let sums = masked.sum.get(offset..offset + base.len())?.iter();
        let moved: Vec<f64> = match noised {
            None => sums.map(|sum| quantisation.mean(*sum, *weight)).collect(),
            Some(noised) => {
                let mut moved: Vec<f64> =
                    sums.map(|sum| quantisation.total(*sum, *weight)).collect();
                noised.sum.mean(offset, &mut moved);
                moved
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        let move_by = |(moved, base): (&f64, &f32)| (f64::from(*base) + moved) as f32;
        let mut values: Vec<f32> = moved.iter().zip(base).map(move_by).collect();
        if let Some(noised) = noised {
            fix(&noised.fixed, offset, base, &mut values);
        }
        Some(values)
    }
}

impl MaskedSum {
    /// Forgets what was added: it cannot be trusted.
    fn spoil(&mut self) {
        self.sum.fill(0);
        self.added.clear();
        self.reading.clear();
    }
}
