//! Looks into updates and adds them up while they arrive, in pieces; pure.
//!
//! Updates are added in the order of their devices, whatever the order of their arrival, so that
//! the mean has the same bits everywhere. An update that arrives in its turn is added at once;
//! one that is early waits in memory while there is room, and is read again when there is none.

use std::collections::BTreeMap;

use jobs::id::{BlobRef, DeviceId};
use models::federated::mean::WeightedMean;
use models::params::{Layout, ParametersError};

/// One update in the mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) device: DeviceId,
    pub(super) parameters: BlobRef,
    pub(super) examples: u64,
}

/// The updates of one round.
#[derive(Debug)]
pub(super) struct Fold {
    model: Layout,
    /// Values of early updates that may wait in memory.
    room: usize,
    /// Who is invited, in order.
    order: Vec<DeviceId>,
    /// By ticket: one device's update may be looked into twice at the same time.
    reading: BTreeMap<u64, Reading>,
    /// The update that is read again to be added.
    again: Reading,
    waiting: BTreeMap<DeviceId, (Part, Vec<f32>)>,
    mean: Option<WeightedMean>,
    added: Vec<Part>,
}

/// An update that is being read.
#[derive(Debug, Default)]
struct Reading {
    head: Vec<u8>,
    layout: Option<Layout>,
    /// Bytes of a value that was cut by a piece's end.
    rest: Vec<u8>,
    offset: usize,
    keep: Option<Vec<f32>>,
    fault: Option<ParametersError>,
}

impl Fold {
    /// For updates of this model; early ones may wait in `room` values.
    pub(super) fn new(model: Layout, room: usize) -> Self {
        Self {
            model,
            room,
            order: Vec::new(),
            reading: BTreeMap::new(),
            again: Reading::default(),
            waiting: BTreeMap::new(),
            mean: None,
            added: Vec::new(),
        }
    }

    /// Begins a round of these devices; what is left of another round is forgotten.
    pub(super) fn begin(&mut self, mut devices: Vec<DeviceId>) {
        devices.sort();
        *self = Self { order: devices, ..Self::new(self.model.clone(), self.room) };
    }

    /// Begins to read an update.
    pub(super) fn open(&mut self, ticket: u64) {
        let held: usize = self.waiting.values().map(|(_, values)| values.len()).sum();
        let kept = self.reading.values().filter(|reading| reading.keep.is_some()).count();
        let length = self.model.total_len();
        let keep = held + (kept + 1) * length <= self.room;
        let keep = keep.then(|| Vec::with_capacity(length));
        self.reading.insert(ticket, Reading { keep, ..Reading::default() });
    }

    /// Takes the next piece of an update; a fault shows in [`Fold::close`].
    pub(super) fn read(&mut self, ticket: u64, piece: &[u8]) {
        let Some(reading) = self.reading.get_mut(&ticket) else { return };
        if reading.fault.is_none()
            && let Err(fault) = reading.take(piece, &self.model, |_, _| ())
        {
            reading.fault = Some(fault);
            reading.keep = None;
        }
    }

    /// The update was read to its end, and its digest is right: adds it if it is its turn.
    pub(super) fn close(&mut self, ticket: u64, part: Part) -> Result<(), ParametersError> {
        let Some(reading) = self.reading.remove(&ticket) else { return Ok(()) };
        let keep = reading.finish(&self.model)?;
        if let Some(values) = keep {
            self.waiting.insert(part.device.clone(), (part, values));
            self.add_in_turn();
        }
        Ok(())
    }

    /// The update cannot be read to its end.
    pub(super) fn forget(&mut self, ticket: u64) {
        self.reading.remove(&ticket);
    }

    /// Adds the early updates whose turn has come.
    fn add_in_turn(&mut self) {
        while let Some(next) = self.order.get(self.added.len()) {
            let in_turn = self.added.iter().zip(&self.order).all(|(part, id)| part.device == *id);
            let Some((part, values)) = self.waiting.remove(next).filter(|_| in_turn) else {
                return;
            };
            self.add(part, &values);
        }
    }

    fn add(&mut self, part: Part, values: &[f32]) {
        self.mean_of_model().add_piece(0, values, weight(&part));
        self.count(part);
    }

    fn count(&mut self, part: Part) {
        self.mean_of_model().add_weight(weight(&part));
        self.added.push(part);
    }

    fn mean_of_model(&mut self) -> &mut WeightedMean {
        let length = self.model.total_len();
        self.mean.get_or_insert_with(|| WeightedMean::new(length))
    }

    /// Makes the mean begin with these updates; gives the first that has to be read again, with
    /// its place in the list.
    pub(super) fn add_known(&mut self, parts: &[Part]) -> Option<usize> {
        if !parts.starts_with(&self.added) {
            self.added.clear();
            self.mean = None;
        }
        while let Some(part) = parts.get(self.added.len()) {
            match self.waiting.remove(&part.device) {
                Some((found, values)) if found == *part => self.add(found, &values),
                Some(_) | None => return Some(self.added.len()),
            }
        }
        None
    }

    /// Adds a piece of an update that is read again, between [`Fold::open_again`] and
    /// [`Fold::close_again`].
    pub(super) fn add_piece(&mut self, part: &Part, piece: &[u8]) -> Result<(), ParametersError> {
        let mut reading = std::mem::take(&mut self.again);
        let mean = self.mean.get_or_insert_with(|| WeightedMean::new(self.model.total_len()));
        let outcome = reading.take(piece, &self.model, |offset, values| {
            mean.add_piece(offset, values, weight(part));
        });
        self.again = reading;
        outcome
    }

    /// Begins to read an update again.
    pub(super) fn open_again(&mut self) {
        self.again = Reading::default();
    }

    /// The update that was read again is whole.
    pub(super) fn close_again(&mut self, part: &Part) -> Result<(), ParametersError> {
        std::mem::take(&mut self.again).finish(&self.model)?;
        self.count(part.clone());
        Ok(())
    }

    /// Forgets what was added: it cannot be trusted.
    pub(super) fn spoil(&mut self) {
        self.added.clear();
        self.mean = None;
    }

    /// The mean as a blob, and nothing is left of the round.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, ParametersError> {
        self.waiting.clear();
        self.added.clear();
        let mut bytes = self.model.header();
        bytes.reserve_exact(self.model.byte_len().saturating_sub(bytes.len()));
        let Some(mean) = self.mean.take() else {
            return Err(ParametersError::Format("there are no updates".to_owned()));
        };
        let blocks = mean.into_blocks();
        let blocks = blocks.map_err(|error| ParametersError::Format(error.to_string()))?;
        let mut offset = 0;
        for values in blocks {
            self.model.check_finite(offset, &values)?;
            models::params::append_le_bytes(&values, &mut bytes);
            offset += values.len();
        }
        Ok(bytes)
    }
}

impl Reading {
    /// Reads the header, then hands out values with their offset.
    fn take(
        &mut self,
        piece: &[u8],
        model: &Layout,
        mut with: impl FnMut(usize, &[f32]),
    ) -> Result<(), ParametersError> {
        if self.layout.is_none() {
            self.head.extend_from_slice(piece);
            let Some(layout) = Layout::parse(&self.head)? else { return Ok(()) };
            layout.check_like(model)?;
            let head = std::mem::take(&mut self.head);
            let start = layout.data_start();
            self.layout = Some(layout);
            return self.values(head.get(start..).unwrap_or_default(), model, &mut with);
        }
        self.values(piece, model, &mut with)
    }

    fn values(
        &mut self,
        bytes: &[u8],
        model: &Layout,
        with: &mut impl FnMut(usize, &[f32]),
    ) -> Result<(), ParametersError> {
        let joined;
        let mut bytes = bytes;
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.rest);
            bytes = &joined;
        }
        let whole = bytes.len() - bytes.len() % 4;
        self.rest.extend_from_slice(&bytes[whole..]);
        let values = models::params::from_le_bytes(&bytes[..whole]);
        if self.offset + values.len() > model.total_len() {
            return Err(ParametersError::Format("more bytes than the header announces".to_owned()));
        }
        model.check_finite(self.offset, &values)?;
        with(self.offset, &values);
        self.offset += values.len();
        if let Some(keep) = &mut self.keep {
            keep.extend_from_slice(&values);
        }
        Ok(())
    }

    fn finish(self, model: &Layout) -> Result<Option<Vec<f32>>, ParametersError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.layout.is_none() || self.offset != model.total_len() || !self.rest.is_empty() {
            return Err(ParametersError::Format(format!(
                "it ends after {} of {} values",
                self.offset,
                model.total_len()
            )));
        }
        Ok(self.keep)
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of examples are far below 2^53")]
fn weight(part: &Part) -> f64 {
    part.examples as f64
}

#[cfg(test)]
mod tests;
