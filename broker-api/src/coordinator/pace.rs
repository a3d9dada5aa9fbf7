//! When offers are sent: not all at once to many devices, which would then ask NATS for the same
//! parameters, and bring their updates, at the same time. A server that is asked for more than it
//! takes drops messages.
//!
//! An offer is fresh until its device has reported something that it can only after it got the
//! parameters, for [`FRESH`] at most. So many are fresh at a time that their transfers keep a
//! server busy; a fast round without training goes as fast as the server does.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use jobs::id::{Attempt, BlobRef, DeviceId, RoundNumber};
use jobs::spec::Purpose;

/// How long an offer counts as fresh, at most.
const FRESH: Duration = Duration::from_secs(1);
/// Offers that are fresh at a time: as many as these bytes of transfers, but...
const BYTES_AT_ONCE: u64 = 128 * 1024 * 1024;
/// Bytes of one transfer that are under way at a time, at most.
const TRANSFER_MAX: u64 = 8 * 1024 * 1024;
/// ...never fewer than this,
const OFFERS_MIN: u64 = 16;
/// and never more.
const OFFERS_MAX: u64 = 64;

/// A task for a device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offered {
    pub(super) round: RoundNumber,
    pub(super) device: DeviceId,
    pub(super) purpose: Purpose,
    pub(super) attempt: Attempt,
    pub(super) parameters: BlobRef,
}

/// Offers that wait, and devices whose offer is fresh.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: VecDeque<Offered>,
    fresh: BTreeMap<DeviceId, Instant>,
}

impl Pace {
    /// Puts an offer behind those that wait, once.
    pub(super) fn push(&mut self, offered: Offered) {
        if !self.waiting.contains(&offered) {
            self.waiting.push_back(offered);
        }
    }

    /// A device has the parameters, or needs them no more.
    pub(super) fn heard(&mut self, device: &DeviceId) {
        self.fresh.remove(device);
    }

    /// A device is not there. It is offered its task anew when it is.
    pub(super) fn lost(&mut self, device: &DeviceId) {
        self.heard(device);
        self.waiting.retain(|offered| offered.device != *device);
    }

    /// Whether an offer waited and need not be sent any more.
    pub(super) fn withdraw(
        &mut self,
        round: RoundNumber,
        device: &DeviceId,
        purpose: Purpose,
        attempt: Attempt,
    ) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|it| {
            (it.round, &it.device, it.purpose, it.attempt) != (round, device, purpose, attempt)
        });
        self.waiting.len() < before
    }

    /// The next offer that may be sent now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Offered> {
        self.fresh.retain(|_, sent| now.duration_since(*sent) < FRESH);
        let size = self.waiting.front()?.parameters.size.0;
        let at_once = BYTES_AT_ONCE / size.clamp(1, TRANSFER_MAX);
        if self.fresh.len() as u64 >= at_once.clamp(OFFERS_MIN, OFFERS_MAX) {
            return None;
        }
        let offered = self.waiting.pop_front()?;
        self.fresh.insert(offered.device.clone(), now);
        Some(offered)
    }

    /// When to ask for the next one if nothing is heard.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let oldest = self.fresh.values().min().filter(|_| !self.waiting.is_empty())?;
        Some(*oldest + FRESH)
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::{Bytes, Digest};

    use super::*;

    fn offered(number: usize, size: u64) -> Offered {
        let digest = Digest::parse(&format!("sha256:{:064x}", 7)).unwrap();
        Offered {
            round: RoundNumber(1),
            device: format!("device-{number}").parse().unwrap(),
            purpose: Purpose::Train,
            attempt: Attempt(1),
            parameters: BlobRef::by_digest(digest, Bytes(size)),
        }
    }

    fn sent(pace: &mut Pace, now: Instant) -> usize {
        std::iter::from_fn(|| pace.next(now)).count()
    }

    #[test]
    fn few_devices_do_not_wait_and_many_follow_those_that_are_through() {
        for (size, at_once) in [(1, 64), (1 << 20, 64), (4 << 20, 32), (25_000_000, 16), (0, 64)] {
            let (mut pace, now) = (Pace::default(), Instant::now());
            for number in 0..1000 {
                pace.push(offered(number, size));
                pace.push(offered(number, size));
            }
            assert_eq!(sent(&mut pace, now), at_once, "{size}");
            for number in [3, 3, 5, 999] {
                pace.heard(&offered(number, size).device);
            }
            assert_eq!(sent(&mut pace, now), 2, "{size}");
            assert_eq!(pace.wake_at(), Some(now + FRESH));
            assert_eq!(sent(&mut pace, now + FRESH), at_once, "{size}");
        }
    }

    #[test]
    fn each_offer_is_sent_once_in_order_and_none_that_nobody_needs() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        (0..200).for_each(|number| pace.push(offered(number, 1)));
        let Offered { round, device, purpose, attempt, .. } = offered(150, 1);
        assert!(pace.withdraw(round, &device, purpose, attempt));
        assert!(!pace.withdraw(round, &device, purpose, attempt));
        pace.lost(&offered(160, 1).device);
        let mut all = Vec::new();
        while let Some(at) = pace.wake_at().or((all.is_empty()).then_some(now)) {
            now = at;
            all.extend(std::iter::from_fn(|| pace.next(now)));
        }
        let expected = (0..200).filter(|number| ![150, 160].contains(number));
        let expected = expected.map(|number| offered(number, 1));
        assert_eq!(all, expected.collect::<Vec<_>>());
    }

    /// A straggler that is offered its task again is of an earlier round.
    #[test]
    fn rounds_do_not_drop_the_offers_of_each_other() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let straggler = Offered { round: RoundNumber(0), ..offered(7, 1) };
        (0..3).for_each(|number| pace.push(offered(number, 1)));
        pace.push(straggler.clone());
        pace.push(offered(3, 1));
        assert_eq!(sent(&mut pace, now), 5);
    }
}
