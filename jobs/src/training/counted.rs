//! In which round a device's update counted last: where its control variate is from, and what its
//! next update owes, and whose turn is next.

use std::collections::{BTreeMap, BTreeSet};

use super::{Controls, Training};
use crate::id::{DeviceId, RoundNumber};
use crate::round::{DEVICES_MAX, Outcome, Round, Verdict};
use crate::spec::{ControlVariates, Keeps, Selection, UpdateEncoding};

/// Devices whose last counted round is known, at most.
pub(super) const COUNTED_MAX: usize = 2 * DEVICES_MAX;

impl Training {
    /// The control variates that a device works with in the round at work, if the strategy has
    /// any.
    pub fn control(&self, device: &DeviceId) -> Option<ControlVariates> {
        if !self.keeps_controls() {
            return None;
        }
        let own = self.counted.get(device).map(|round| (*round, None));
        let of_before = || {
            let (round, job) = self.controls.as_ref()?.of_device(device)?;
            Some((round, Some(job.clone())))
        };
        let (device, job) = own.or_else(of_before).unzip();
        let server = self.server_state.clone();
        Some(ControlVariates { server, device, job: job.flatten(), kept_since: None })
    }

    /// Devices of whom the server's control variate is a mean: those whose own is in it, and those
    /// that can take part in the round at work. `N` of Karimireddy et al. 2020, "SCAFFOLD:
    /// Stochastic Controlled Averaging for Federated Learning", algorithm 1, as far as it is known.
    pub fn population(&self) -> usize {
        let eligible = self.round.iter().flat_map(Round::eligible);
        let before = self.controls.iter().flat_map(Controls::devices);
        self.counted.keys().chain(before).chain(eligible).collect::<BTreeSet<_>>().len()
    }

    /// The last round in which an update of a device counted, where updates leave something out
    /// that is owed from then on.
    pub fn counted(&self, device: &DeviceId) -> Option<RoundNumber> {
        self.counted.get(device).filter(|_| self.leaves_out()).copied()
    }

    /// Remembers whose update counted; who is forgotten begins anew.
    pub(super) fn count(&mut self, outcome: &Outcome) {
        if !self.keeps_controls() && !self.is_cyclic() && !self.leaves_out() {
            return;
        }
        remember(&mut self.counted, outcome);
    }

    /// Whose update was the last one that counted, and in which round, where one device trains
    /// after another.
    pub(super) fn last_in_turn(&self) -> Option<(DeviceId, RoundNumber)> {
        let last = self.counted.iter().max_by_key(|(_, round)| **round);
        last.filter(|_| self.is_cyclic()).map(|(device, round)| (device.clone(), *round))
    }

    pub(super) fn keeps_controls(&self) -> bool {
        self.spec.strategy.keeps() == Some(Keeps::Controls)
    }

    fn leaves_out(&self) -> bool {
        matches!(self.spec.update, UpdateEncoding::TopK(_))
    }

    fn is_cyclic(&self) -> bool {
        self.spec.participation.selection == Selection::Cyclic
    }
}

/// Remembers whose update counted in a round that gave new parameters.
pub(super) fn remember(counted: &mut BTreeMap<DeviceId, RoundNumber>, outcome: &Outcome) {
    let refused = |device: &DeviceId| {
        let of_rule = outcome.influences.iter().find(|(it, _)| it == device);
        of_rule.is_some_and(|(_, influence)| influence.verdict == Verdict::Refused)
    };
    let devices = outcome.updates.iter().filter(|(device, _)| !refused(device));
    counted.extend(devices.map(|(device, _)| (device.clone(), outcome.round)));
    while counted.len() > COUNTED_MAX {
        let oldest = counted.iter().min_by_key(|(_, round)| **round);
        let Some(device) = oldest.map(|(device, _)| device.clone()) else { return };
        counted.remove(&device);
    }
}
