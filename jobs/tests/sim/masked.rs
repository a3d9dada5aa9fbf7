//! Trainings whose updates are masked: devices and brokers do the real arithmetic on short vectors,
//! so that what is unmasked can be held to the plain sum.

mod broker;
pub(crate) mod check;
mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use jobs::id::{BlobRef, DeviceId, Millis, RoundNumber};
use jobs::spec::{Purpose, SecureAggregation};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use secagg::{Inbox, Keys, Roster, Shares, UnmaskRequest, Unmasking};

pub(crate) use self::broker::Masking;
pub(crate) use self::device::{Desk, confused};
use crate::world::mixed;

/// Values of an update; the last is its weight.
pub(crate) const LENGTH: usize = 4;
/// Devices that such a round has at least.
pub(crate) const DEVICES_MIN: u32 = 3;

/// What a device said: the bytes behind a blob's value.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Keys(Keys),
    Shares(Shares),
    Masked(Vec<u32>),
    Unmasking(Unmasking),
    /// Nothing that anyone understands.
    Nonsense(u64),
}

impl Said {
    /// The number that stands for it.
    fn value(&self) -> u64 {
        let json = match self {
            Said::Keys(keys) => serde_json::to_vec(keys),
            Said::Shares(shares) => serde_json::to_vec(shares),
            Said::Masked(values) => serde_json::to_vec(values),
            Said::Unmasking(unmasking) => serde_json::to_vec(unmasking),
            Said::Nonsense(value) => return *value,
        };
        mixed(json.unwrap().chunks(8).map(|bytes| {
            let mut number = [0; 8];
            number[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(number)
        }))
    }
}

/// The binary part of an offer.
#[derive(Clone, PartialEq)]
pub(crate) enum Question {
    Roster(Rc<Roster>),
    Inbox(Rc<Inbox>),
    Request(Rc<UnmaskRequest>),
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Question::Roster(roster) => write!(f, "a roster of {}", roster.devices.len()),
            Question::Inbox(inbox) => write!(f, "{} sealed shares", inbox.sealed.len()),
            Question::Request(request) => {
                write!(f, "{:?} are in the sum, {:?} are not", request.survivors, request.dropped)
            }
        }
    }
}

/// An update before it is masked.
#[derive(Debug)]
pub(crate) struct Update {
    /// What it was trained from.
    base: u64,
    vector: Vec<u32>,
}

/// What was asked and shown of a device's two secrets.
#[derive(Debug, Default)]
struct Secrets {
    asked: Kinds,
    shown: Kinds,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Kinds {
    /// The seed of its own mask.
    own_mask: bool,
    /// The key of the masks that it has in common with others.
    key: bool,
}

/// What is known of all masked rounds: contents of blobs, and what the checks remember.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By their value.
    said: BTreeMap<u64, Rc<Said>>,
    /// By the value of the keys that were sent in its place.
    updates: BTreeMap<u64, Update>,
    /// Of the devices that have sent these keys.
    secrets: BTreeMap<Keys, Secrets>,
    questions: BTreeMap<(RoundNumber, Purpose, DeviceId), Question>,
    /// What was sent masked under these keys.
    vectors: BTreeMap<Keys, u64>,
    /// Values of what a check found usable.
    usable: BTreeSet<u64>,
    /// Whose updates are in the parameters of this name.
    sums: BTreeMap<String, BTreeSet<DeviceId>>,
    /// The furthest that any device was asked for.
    told: (RoundNumber, usize),
    /// When a stage began first, and when it ends at the latest.
    began: BTreeMap<(RoundNumber, Purpose), u64>,
    until: BTreeMap<(RoundNumber, Purpose), u64>,
}

/// How updates of such a training are masked.
pub(crate) fn terms(random: &mut ChaCha8Rng) -> SecureAggregation {
    let risks = [(0.3, 0.1), (0.2, 0.0), (0.0, 0.0)];
    let (drop_out, colluding) = risks[random.random_range(0..risks.len())];
    let stage_deadline_ms = Millis([2000, 6000, 10_000][random.random_range(0..3)]);
    SecureAggregation { drop_out, colluding, stage_deadline_ms, ..SecureAggregation::default() }
}

/// Places in the order in which devices are asked for things.
fn place(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Train => 0,
        Purpose::Share => 1,
        Purpose::Mask => 2,
        Purpose::Unmask => 3,
        Purpose::Evaluate | Purpose::Infer | Purpose::Telemetry => 4,
    }
}

/// The value of the blob that is meant, be it there or not.
fn value_of(blob: &BlobRef) -> u64 {
    let text = blob.digest.to_string();
    u64::from_str_radix(&text[text.len() - 16..], 16).unwrap()
}

/// The sum of the vectors behind these keys, as the number of new parameters.
fn number(sum: &[u32]) -> u64 {
    mixed(sum.iter().map(|value| u64::from(*value)))
}

impl Known {
    /// A stage ends then at the latest.
    pub(crate) fn note_until(&mut self, round: RoundNumber, stage: Purpose, deadline: u64) {
        self.until.insert((round, stage), deadline);
    }
}
