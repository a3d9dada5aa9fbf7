//! Looks into updates and adds them up while they arrive, in pieces; pure.
//!
//! Differences from the round's parameters and parameters themselves are added into the same sums:
//! `sum n_k w_k = sum n_k v_k + x sum n_k` over those that are differences, so the round's
//! parameters `x` are needed only when the mean is handed out.
//!
//! Updates are added in the order of their devices, whatever the order of their arrival, so that
//! the mean has the same bits everywhere. An update that arrives in its turn is added piece by
//! piece; one that is early waits in memory while there is room, and is read again when there is
//! none. One that was added in part and turns out to be of no use spoils the sums: then the
//! updates before it are read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use jobs::id::{BlobRef, DeviceId, Digest};
use jobs::report::UpdateReport;
use jobs::round::Base;
use models::federated::mean::WeightedMean;
use models::federated::statistics::Statistics;
use models::params::{Layout, ParametersError};

use self::content::{Content, ContentError, Expected};
use self::masked::MaskedSum;

pub(super) mod content;
pub(super) mod masked;

/// Devices of a round of whose updates many wait.
const MANY: usize = 100;

/// One update in the mean.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) device: DeviceId,
    pub(super) parameters: BlobRef,
    pub(super) examples: u64,
    pub(super) steps: u64,
    /// See [`jobs::report::UpdateReport::initial_loss`].
    pub(super) initial_loss: f64,
    pub(super) control_change: Option<BlobRef>,
    /// Whether its device holds it.
    pub(super) held: bool,
    /// And what it is to be, if its digest need not be compared.
    pub(super) crc32: Option<u32>,
    /// What it was trained from, unless that is the round's own.
    pub(super) base: Option<Base>,
}

impl Part {
    pub(super) fn of(device: &DeviceId, update: &UpdateReport) -> Self {
        Self {
            device: device.clone(),
            parameters: update.parameters.clone(),
            examples: update.examples,
            steps: update.steps,
            initial_loss: update.initial_loss.unwrap_or_default(),
            control_change: update.control_change.clone(),
            held: update.held,
            crc32: update.crc32,
            base: None,
        }
    }
}

/// The updates of one round.
#[derive(Debug)]
pub(super) struct Fold {
    expected: Expected,
    statistics: Arc<Statistics>,
    /// Values of early updates that may wait in memory.
    room: usize,
    /// Whether updates are added up, or only looked into.
    adds: bool,
    /// Who is invited, in order.
    order: Vec<DeviceId>,
    /// By ticket: one device's update may be looked into twice at the same time.
    reading: BTreeMap<u64, Reading>,
    /// The ticket of the update that is added while it is read.
    in_turn: Option<u64>,
    /// The update that is read again to be added.
    again: Content,
    waiting: BTreeMap<DeviceId, Early>,
    /// Memory of updates that waited, for the next ones.
    spare: Vec<Vec<f32>>,
    mean: Option<WeightedMean>,
    /// Whether anything was added to the mean, be it in part.
    touched: bool,
    added: Vec<Part>,
    /// The weight of those of them that are differences.
    differences: f64,
    /// The mean's header, as far as it was not taken yet, and how many values were.
    taken: (Vec<u8>, usize),
    /// The sum of updates that come masked.
    masked: Option<MaskedSum>,
}

/// An update that is being read.
#[derive(Debug)]
struct Reading {
    part: Part,
    content: Content,
    /// What it has to be, where that is not what the round's own updates have to be.
    expected: Option<Expected>,
    /// Its values, if it is early and there is room.
    keep: Option<Vec<f32>>,
    fault: Option<ContentError>,
}

/// An update that waits for its turn.
#[derive(Debug)]
struct Early {
    part: Part,
    values: Vec<f32>,
    difference: bool,
}

impl Fold {
    /// For updates of this model; early ones may wait in `room` values.
    pub(super) fn new(model: Layout, room: usize) -> Self {
        Self {
            expected: Expected::sent(model),
            statistics: Arc::default(),
            room,
            adds: true,
            order: Vec::new(),
            reading: BTreeMap::new(),
            in_turn: None,
            again: Content::default(),
            waiting: BTreeMap::new(),
            spare: Vec::new(),
            mean: None,
            touched: false,
            added: Vec::new(),
            differences: 0.0,
            taken: (Vec::new(), 0),
            masked: None,
        }
    }

    /// For updates of this model that are looked into, and not added up.
    pub(super) fn without_mean(model: Layout) -> Self {
        Self { adds: false, ..Self::new(model, 0) }
    }

    /// The same where these values are running statistics.
    pub(super) fn with_statistics(self, statistics: Arc<Statistics>) -> Self {
        Self { statistics, ..self }
    }

    /// Begins a round of these devices; what is left of another round is forgotten. Updates may be
    /// differences from `base`, if there is one.
    pub(super) fn begin(&mut self, mut devices: Vec<DeviceId>, base: Option<Digest>) {
        devices.sort();
        self.forget_all();
        self.order = devices;
        self.expect_from(base);
    }

    /// Lets updates be differences from these parameters.
    pub(super) fn expect_from(&mut self, base: Option<Digest>) {
        self.expected.or_differences_from(base);
    }

    /// Forgets the round, but keeps its memory for the next one.
    pub(super) fn forget_all(&mut self) {
        self.order.clear();
        if self.adds {
            self.reading.clear();
        }
        self.masked = None;
        self.in_turn = None;
        while let Some((_, early)) = self.waiting.pop_first() {
            self.spare.push(early.values);
        }
        self.spoil();
    }

    /// Lets go of all memory: no round follows soon.
    pub(super) fn rest(&mut self) {
        let reading = if self.adds { BTreeMap::new() } else { std::mem::take(&mut self.reading) };
        let fresh = Self::new(self.model().clone(), self.room);
        let statistics = self.statistics.clone();
        *self = Self { adds: self.adds, reading, statistics, ..fresh };
    }

    /// Whether this device's update would be read in vain, and later again: it is early, and has
    /// no room to wait in.
    pub(super) fn is_too_early(&self, device: &DeviceId) -> bool {
        let to_come = self.order.get(self.added.len()..).unwrap_or_default();
        self.adds && to_come.contains(device) && !self.is_in_turn(device) && !self.has_room()
    }

    /// How many updates had their turn, and whether it is another's now.
    pub(super) fn turns(&self) -> (usize, bool) {
        (self.added.len(), self.in_turn.is_some())
    }

    /// Begins to read an update.
    pub(super) fn open(&mut self, ticket: u64, part: Part) {
        if self.adds && self.is_in_turn(&part.device) {
            self.in_turn = Some(ticket);
            self.reading.insert(ticket, Reading::of(part, None));
            return;
        }
        let keep = self.has_room().then(|| {
            let mut values = self.spare.pop().unwrap_or_default();
            values.clear();
            values.reserve_exact(self.model().total_len());
            values
        });
        let expected = part.base.as_ref().map(|base| self.expected.of_base(base));
        self.reading.insert(ticket, Reading { expected, ..Reading::of(part, keep) });
    }

    /// Whether an update of this device is to be added while it is read.
    fn is_in_turn(&self, device: &DeviceId) -> bool {
        self.next_is(device) && !self.waiting.contains_key(device)
    }

    /// Whether there is room for one more early update.
    fn has_room(&self) -> bool {
        let held: usize = self.waiting.values().map(|early| early.values.len()).sum();
        let kept = self.reading.values().filter(|reading| reading.keep.is_some()).count();
        self.adds && held + (kept + 1) * self.model().total_len() <= self.room()
    }

    /// Most of many updates wait elsewhere anyhow: then there is memory for a few, one at least.
    fn room(&self) -> usize {
        if self.order.len() <= MANY {
            return self.room;
        }
        (self.room / 4).max(self.model().total_len().min(self.room))
    }

    /// Whether it is the turn of this device, and no update of it is being added.
    fn next_is(&self, device: &DeviceId) -> bool {
        let in_order = || self.added.iter().zip(&self.order).all(|(part, id)| part.device == *id);
        self.in_turn.is_none() && self.order.get(self.added.len()) == Some(device) && in_order()
    }

    /// Takes the next pieces of an update; a fault shows in [`Fold::close`].
    pub(super) fn read_all(&mut self, ticket: u64, pieces: &[impl AsRef<[u8]>]) {
        for piece in pieces {
            self.read(ticket, piece.as_ref());
        }
    }

    /// Takes the next one.
    pub(super) fn read(&mut self, ticket: u64, piece: &[u8]) {
        let Some(reading) = self.reading.get_mut(&ticket).filter(|r| r.fault.is_none()) else {
            return;
        };
        let taken = if self.in_turn == Some(ticket) {
            let weight = weight(&reading.part);
            let length = self.expected.layout().total_len();
            let mean = self.mean.get_or_insert_with(|| WeightedMean::new(length));
            self.touched = true;
            reading.content.take(piece, &self.expected, |offset, values| {
                mean.add_piece(offset, values, weight);
            })
        } else {
            let keep = &mut reading.keep;
            let expected = reading.expected.as_ref().unwrap_or(&self.expected);
            reading.content.take(piece, expected, |_, values| {
                if let Some(keep) = keep {
                    keep.extend_from_slice(values);
                }
            })
        };
        if let Err(fault) = taken {
            reading.fault = Some(fault);
            reading.keep = None;
        }
    }

    /// The update was read to its end, and its digest is right: adds it if it is its turn.
    pub(super) fn close(&mut self, ticket: u64) -> Result<(), ContentError> {
        let Some(reading) = self.reading.remove(&ticket) else {
            return Err(ContentError::Forgotten);
        };
        let difference = reading.content.is_difference();
        let expected = reading.expected.as_ref().unwrap_or(&self.expected);
        let finished = reading.fault.map_or_else(|| reading.content.finish(expected), Err);
        if self.in_turn == Some(ticket) {
            self.in_turn = None;
            match &finished {
                Ok(()) => self.count(reading.part, difference),
                Err(_) => self.spoil(),
            }
        } else if let (Ok(()), Some(values)) = (&finished, reading.keep) {
            let early = Early { part: reading.part, values, difference };
            self.waiting.insert(early.part.device.clone(), early);
        }
        self.add_in_turn();
        finished
    }

    /// The update cannot be read to its end.
    pub(super) fn forget(&mut self, ticket: u64) {
        self.reading.remove(&ticket);
        if self.in_turn == Some(ticket) {
            self.in_turn = None;
            self.spoil();
        }
    }

    /// Adds the early updates whose turn has come.
    fn add_in_turn(&mut self) {
        while let Some(next) = self.order.get(self.added.len()).cloned() {
            if !self.next_is(&next) {
                return;
            }
            let Some(early) = self.waiting.remove(&next) else { return };
            self.add(early);
        }
    }

    fn add(&mut self, Early { part, values, difference }: Early) {
        self.mean_of_model().add_piece(0, &values, weight(&part));
        self.spare.push(values);
        self.count(part, difference);
    }

    fn count(&mut self, part: Part, difference: bool) {
        let weight = weight(&part);
        self.mean_of_model().add_weight(weight);
        if difference {
            self.differences += weight;
        }
        self.added.push(part);
    }

    fn mean_of_model(&mut self) -> &mut WeightedMean {
        self.touched = true;
        let length = self.model().total_len();
        self.mean.get_or_insert_with(|| WeightedMean::new(length))
    }

    /// Makes the mean begin with these updates; gives the first that has to be read again, with
    /// its place in the list. From now on it is nobody's turn: updates that are late do not get
    /// into a mean that is being handed out.
    pub(super) fn add_known(&mut self, parts: &[Part]) -> Option<usize> {
        self.order.clear();
        if self.in_turn.take().is_some() || !parts.starts_with(&self.added) {
            self.spoil();
        }
        while let Some(part) = parts.get(self.added.len()) {
            match self.waiting.remove(&part.device) {
                Some(early) if early.part == *part => self.add(early),
                Some(_) | None => return Some(self.added.len()),
            }
        }
        None
    }

    /// Adds a piece of an update that is read again, between [`Fold::open_again`] and
    /// [`Fold::close_again`].
    pub(super) fn add_piece(&mut self, part: &Part, piece: &[u8]) -> Result<(), ContentError> {
        self.touched = true;
        let length = self.model().total_len();
        let mean = self.mean.get_or_insert_with(|| WeightedMean::new(length));
        self.again.take(piece, &self.expected, |offset, values| {
            mean.add_piece(offset, values, weight(part));
        })
    }

    /// Begins to read an update again.
    pub(super) fn open_again(&mut self) {
        self.again = Content::default();
    }

    /// The update that was read again is whole.
    pub(super) fn close_again(&mut self, part: &Part) -> Result<(), ContentError> {
        let content = std::mem::take(&mut self.again);
        let difference = content.is_difference();
        content.finish(&self.expected)?;
        self.count(part.clone(), difference);
        Ok(())
    }

    /// Forgets what was added: it cannot be trusted.
    pub(super) fn spoil(&mut self) {
        self.added.clear();
        self.differences = 0.0;
        if let Some(mean) = &mut self.mean
            && std::mem::take(&mut self.touched)
        {
            mean.clear();
        }
    }

    /// Begins to hand out the mean as a blob; its length.
    pub(super) fn seal(&mut self) -> u64 {
        self.taken = (self.model().header(), 0);
        self.model().byte_len() as u64
    }

    /// What is trained.
    pub(super) fn model(&self) -> &Layout {
        self.expected.layout()
    }

    /// Whether some of the updates are differences.
    pub(super) fn has_differences(&self) -> bool {
        self.differences > 0.0 || self.masked.is_some()
    }

    /// Values of the mean from `offset` on: as many as `base` has, which are the parameters that
    /// differences are from.
    pub(super) fn mean_from(
        &mut self,
        offset: usize,
        base: &[f32],
    ) -> Result<Vec<f32>, ParametersError> {
        if let Some(values) = self.masked_mean(offset, base) {
            return self.checked(offset, values);
        }
        let mean = self.mean.as_ref().ok_or_else(no_updates)?;
        let values = mean.piece_from(offset, base, self.differences).map_err(|_| no_updates())?;
        self.checked(offset, values)
    }

    fn mean(&mut self, offset: usize, length: usize) -> Result<Vec<f32>, ParametersError> {
        let mean = self.mean.as_ref().ok_or_else(no_updates)?;
        let values = mean.piece(offset, length).map_err(|_| no_updates())?;
        self.checked(offset, values)
    }

    /// Values that can be parameters.
    fn checked(&self, offset: usize, mut values: Vec<f32>) -> Result<Vec<f32>, ParametersError> {
        self.model().check_finite(offset, &values)?;
        self.statistics.bound(offset, &mut values);
        Ok(values)
    }

    /// How many values the next bytes of the blob hold.
    pub(super) fn next_length(&self, max: usize) -> usize {
        let (header, offset) = &self.taken;
        let room = (max - header.len().min(max)) / 4;
        room.min(self.model().total_len() - offset)
    }

    /// The next bytes of the blob, `max` (a multiple of 4) of them but at its end, and none after
    /// it; then nothing is left of the round. `base` has the parameters that differences are from,
    /// [`Fold::next_length`] of them, if there are any differences.
    pub(super) fn next_piece(
        &mut self,
        max: usize,
        base: Option<&[f32]>,
    ) -> Result<Vec<u8>, ParametersError> {
        let length = self.next_length(max);
        let (header, offset) = &mut self.taken;
        let mut piece: Vec<u8> = header.drain(..max.min(header.len())).collect();
        let start = *offset;
        let values = match base {
            Some(base) => self.mean_from(start, base)?,
            None => self.mean(start, length)?,
        };
        self.taken.1 += values.len();
        models::params::append_le_bytes(&values, &mut piece);
        if piece.is_empty() {
            self.forget_all();
        }
        Ok(piece)
    }
}

fn no_updates() -> ParametersError {
    ParametersError::Format("there are no updates".to_owned())
}

impl Reading {
    fn of(part: Part, keep: Option<Vec<f32>>) -> Self {
        Self { part, content: Content::default(), expected: None, keep, fault: None }
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of examples are far below 2^53")]
pub(super) fn weight(part: &Part) -> f64 {
    part.examples as f64
}

#[cfg(test)]
mod tests;
