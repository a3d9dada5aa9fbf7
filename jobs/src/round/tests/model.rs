//! A round told in the simplest way: what must happen while updates are collected.
//!
//! It knows every device's situation and says, for each event, which updates are to be checked,
//! which devices are to be told to stop, and whether the round aggregates or gives up. It does
//! not know the machine, its effects or its phases.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Event;
use crate::id::{Attempt, DeviceId, Millis};
use crate::report::FailureCode;
use crate::spec::Purpose;

#[derive(Debug, Clone, PartialEq)]
enum Is {
    AtWork,
    /// Until then, after this failure.
    Resting(u64, FailureCode),
    Checking(crate::id::BlobRef),
    Counted(crate::id::BlobRef),
    Gone(FailureCode),
}

#[derive(Debug, Clone)]
struct Device {
    is: Is,
    lost: bool,
    retried: bool,
    /// The newest attempt, and the newest that has ended.
    attempt: u32,
    ended: u32,
}

/// What must follow from an event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expected {
    pub(super) checks: BTreeSet<DeviceId>,
    pub(super) withdrawn: BTreeSet<DeviceId>,
    pub(super) offered: BTreeSet<(DeviceId, Attempt)>,
    pub(super) aggregated: Option<BTreeSet<DeviceId>>,
    pub(super) gave_up: bool,
}

#[derive(Debug)]
pub(super) struct Model {
    devices: BTreeMap<DeviceId, Device>,
    reserve: Vec<DeviceId>,
    target: usize,
    quorum: usize,
    deadline: u64,
    closed: bool,
    pub(super) over: bool,
}

impl Model {
    /// Collecting begins with these devices invited; the reserve in the order of its use.
    pub(super) fn new(
        invited: Vec<DeviceId>,
        reserve: Vec<DeviceId>,
        target: usize,
        quorum: usize,
        deadline: u64,
    ) -> Self {
        let new = |device| (device, new_device());
        let devices = invited.into_iter().map(new).collect();
        Self { devices, reserve, target, quorum, deadline, closed: false, over: false }
    }

    /// Why a device is missing, as far as the model knows.
    pub(super) fn missing(&self, device: &DeviceId) -> Option<FailureCode> {
        match self.devices.get(device)?.is {
            Is::Gone(code) => Some(code),
            Is::AtWork | Is::Resting(..) | Is::Checking(_) | Is::Counted(_) => None,
        }
    }

    /// An update that was to be combined does not count.
    pub(super) fn gone(&mut self, device: &DeviceId, code: FailureCode) {
        if let Some(d) = self.devices.get_mut(device).filter(|d| matches!(d.is, Is::Counted(_))) {
            d.is = Is::Gone(code);
        }
    }

    pub(super) fn step(&mut self, now: Millis, event: &Event) -> Expected {
        let (now, mut expected) = (now.0, Expected::default());
        if self.over {
            return expected;
        }
        let in_time = !self.closed && now <= self.deadline;
        match event {
            Event::UpdateReceived { device, attempt, update } if in_time => {
                let d = self.devices.get_mut(device);
                if d.is_some_and(|d| receive(d, attempt.0, &update.parameters)) {
                    expected.checks.insert(device.clone());
                }
                return expected;
            }
            Event::UpdateChecked { device, parameters, refused } => {
                let Some(d) = self.devices.get_mut(device) else { return expected };
                if d.is != Is::Checking(parameters.clone()) {
                    return expected;
                }
                match refused {
                    None => d.is = Is::Counted(parameters.clone()),
                    Some(failure) if self.closed => d.is = Is::Gone(failure.code),
                    Some(failure) => fail(d, now, failure.code),
                }
            }
            Event::TaskFailed { device, purpose: Purpose::Train, attempt, failure } if in_time => {
                let Some(d) = self.devices.get_mut(device) else { return expected };
                give_up(d, now, attempt.0, failure.code);
            }
            Event::DeviceLost { device } => {
                self.reserve.retain(|spare| spare != device);
                let Some(d) = self.devices.get_mut(device) else { return expected };
                d.lost = true;
            }
            Event::DeviceReturned { device } => self.returned(now, device, &mut expected),
            Event::CancelRequested { .. } => {
                self.stop(FailureCode::Cancelled, &mut expected);
                return expected;
            }
            Event::Tick if !self.closed && now >= self.deadline => {
                self.closed = true;
                self.leave_open_ones(&mut expected);
            }
            Event::Tick if !self.closed => {
                self.wake(now, &mut expected);
                return expected;
            }
            Event::Tick
            | Event::UpdateReceived { .. }
            | Event::TaskFailed { .. }
            | Event::DevicesFound { .. }
            | Event::Accepted { .. }
            | Event::Progressed { .. }
            | Event::MessageReceived { .. }
            | Event::MessageChecked { .. }
            | Event::EvaluationReceived { .. }
            | Event::Judged { .. }
            | Event::JudgementFailed { .. }
            | Event::Aggregated { .. }
            | Event::AggregationFailed { .. }
            | Event::UpdateGone { .. } => return expected,
        }
        self.judge(now, &mut expected);
        expected
    }

    fn returned(&mut self, now: u64, device: &DeviceId, expected: &mut Expected) {
        let collecting = !self.closed && now < self.deadline;
        let Some(d) = self.devices.get_mut(device).filter(|d| d.lost) else { return };
        d.lost = false;
        if !collecting || !matches!(d.is, Is::AtWork | Is::Resting(..)) {
            return;
        }
        if d.is == Is::AtWork {
            if d.attempt == 10 {
                d.is = Is::Gone(FailureCode::DeviceLost);
                return;
            }
            d.attempt += 1;
        }
        d.is = Is::AtWork;
        expected.offered.insert((device.clone(), Attempt(d.attempt)));
    }

    fn wake(&mut self, now: u64, expected: &mut Expected) {
        for (device, d) in self.devices.iter_mut().filter(|(_, d)| !d.lost) {
            if matches!(d.is, Is::Resting(until, _) if until <= now) {
                d.is = Is::AtWork;
                expected.offered.insert((device.clone(), Attempt(d.attempt)));
            }
        }
    }

    fn judge(&mut self, now: u64, expected: &mut Expected) {
        let counted: BTreeSet<DeviceId> = self.those(|d| matches!(d.is, Is::Counted(_)));
        if counted.len() >= self.target {
            self.surplus(expected);
            (self.over, expected.aggregated) = (true, Some(counted));
            return;
        }
        while !self.closed && now <= self.deadline {
            let hopeful = self.those(|d| match d.is {
                Is::AtWork | Is::Resting(..) => !d.lost,
                Is::Checking(_) | Is::Counted(_) => true,
                Is::Gone(_) => false,
            });
            if hopeful.len() >= self.target || self.reserve.is_empty() {
                break;
            }
            let device = self.reserve.remove(0);
            expected.offered.insert((device.clone(), Attempt(1)));
            self.devices.insert(device, new_device());
        }
        let possible = self.those(|d| !matches!(d.is, Is::Gone(_))).len();
        let checking = self.those(|d| matches!(d.is, Is::Checking(_))).len();
        let awaited = self.those(|d| matches!(d.is, Is::AtWork | Is::Resting(..)) && !d.lost).len();
        let busy = self.those(|d| d.is == Is::Gone(FailureCode::Busy)).len();
        let in_time = !self.closed && now <= self.deadline;
        if possible < self.quorum && in_time && possible + busy >= self.quorum {
            // It cannot do without those who have their hands full.
            for d in self.devices.values_mut().filter(|d| d.is == Is::Gone(FailureCode::Busy)) {
                d.is = Is::Resting(now + 5000, FailureCode::Busy);
                d.ended = d.attempt - 1;
            }
        } else if possible < self.quorum {
            self.stop(FailureCode::NoQuorum, expected);
        } else if checking == 0 && awaited == 0 && counted.len() >= self.quorum {
            self.leave_open_ones(expected);
            (self.over, expected.aggregated) = (true, Some(counted));
        }
    }

    /// Everyone who has not answered is left behind, with the reason of the clock.
    fn leave_open_ones(&mut self, expected: &mut Expected) {
        for (device, d) in &mut self.devices {
            let code = match d.is {
                Is::AtWork | Is::Resting(..) if d.lost => FailureCode::DeviceLost,
                Is::AtWork => FailureCode::DeadlineExceeded,
                // Its own failure is the reason.
                Is::Resting(_, code) => code,
                Is::Checking(_) | Is::Counted(_) | Is::Gone(_) => continue,
            };
            if d.is == Is::AtWork && !d.lost {
                expected.withdrawn.insert(device.clone());
            }
            d.is = Is::Gone(code);
        }
    }

    fn surplus(&mut self, expected: &mut Expected) {
        for (device, d) in &mut self.devices {
            let open = matches!(d.is, Is::AtWork | Is::Resting(..) | Is::Checking(_));
            if d.is == Is::AtWork && !d.lost {
                expected.withdrawn.insert(device.clone());
            }
            if open && d.lost {
                let unchecked = matches!(d.is, Is::Checking(_));
                d.is = Is::Gone(if unchecked {
                    FailureCode::Cancelled
                } else {
                    FailureCode::DeviceLost
                });
            } else if open {
                d.is = Is::Gone(FailureCode::Cancelled);
            }
        }
    }

    fn stop(&mut self, code: FailureCode, expected: &mut Expected) {
        (self.over, expected.gave_up) = (true, true);
        for (device, d) in &mut self.devices {
            if d.is == Is::AtWork && !d.lost {
                expected.withdrawn.insert(device.clone());
            }
            d.is = match d.is {
                Is::AtWork | Is::Resting(..) if d.lost => Is::Gone(FailureCode::DeviceLost),
                Is::Resting(_, own) | Is::Gone(own) => Is::Gone(own),
                Is::AtWork | Is::Checking(_) | Is::Counted(_) => Is::Gone(code),
            };
        }
    }

    fn those(&self, kind: impl Fn(&Device) -> bool) -> BTreeSet<DeviceId> {
        let found = self.devices.iter().filter(|(_, device)| kind(device));
        found.map(|(name, _)| name.clone()).collect()
    }
}

fn new_device() -> Device {
    Device { is: Is::AtWork, lost: false, retried: false, attempt: 1, ended: 0 }
}

/// Whether it is an update to look into.
fn receive(d: &mut Device, attempt: u32, parameters: &crate::id::BlobRef) -> bool {
    match &d.is {
        Is::AtWork | Is::Resting(..) if attempt <= d.attempt && attempt > d.ended => {}
        // The first is gone when its device has made another in the same attempt.
        Is::Checking(first) | Is::Counted(first)
            if !d.retried && attempt == d.ended && first != parameters =>
        {
            d.retried = true;
        }
        Is::AtWork | Is::Resting(..) | Is::Checking(_) | Is::Counted(_) | Is::Gone(_) => {
            return false;
        }
    }
    d.ended = attempt;
    d.is = Is::Checking(parameters.clone());
    true
}

fn give_up(d: &mut Device, now: u64, attempt: u32, code: FailureCode) {
    let open = matches!(d.is, Is::AtWork | Is::Resting(..));
    if open && attempt <= d.attempt && attempt > d.ended {
        d.ended = attempt;
        if attempt == d.attempt {
            fail(d, now, code);
        }
    }
}

fn fail(d: &mut Device, now: u64, code: FailureCode) {
    if code.is_transient() && !d.retried && d.attempt < 10 {
        d.retried = true;
        d.attempt += 1;
        d.is = Is::Resting(now + 1000, code);
    } else {
        d.is = Is::Gone(code);
    }
}
