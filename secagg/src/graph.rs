//! Who is whose neighbour, and how many neighbours and shares it takes.
//!
//! The graph is that of Bell et al. 2020, section 3: devices in a ring in random order, each
//! joined with the `degree / 2` next ones on either side (a Harary graph). Masks and shares go
//! along its edges alone.

use serde::{Deserialize, Serialize};

use crate::key::Secret;
use crate::mask;
use crate::message::Party;
use crate::shamir::SHARES_MAX;

/// Devices below which a sum says too much of each of them.
pub const DEVICES_MIN: usize = 3;
/// Neighbours of a device, at most: each holds a share.
pub const DEGREE_MAX: usize = SHARES_MAX - 1;

/// Probability that a device's input is not hidden, at most 2 to the minus this.
const SECURITY_BITS: f64 = 40.0;
/// Probability that a session fails because too many neighbours of one device drop out, at most 2
/// to the minus this. It is only run again then.
const CORRECTNESS_BITS: f64 = 20.0;

/// What a session has to bear, in shares of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Risk {
    /// Devices that drop out after they gave shares, at most.
    pub drop_out: f64,
    /// Devices that tell the server all they know, at most.
    pub colluding: f64,
}

/// 30 % drop out, 10 % collude.
impl Default for Risk {
    fn default() -> Self {
        Self { drop_out: 0.3, colluding: 0.1 }
    }
}

/// How devices depend on one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Neighbours of each device.
    pub degree: usize,
    /// Shares that give a secret; above half of the neighbours, so that no server can collect
    /// both secrets of a device from different neighbours.
    pub threshold: usize,
}

/// Why there is no topology.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum TopologyError {
    /// Too few devices.
    #[error("{0} devices: expected at least {DEVICES_MIN}, else a sum says too much of each")]
    Devices(usize),
    /// Shares of devices that are none.
    #[error("drop-out {} and colluding {} of the devices: expected shares from 0 to 1",
        .0.drop_out, .0.colluding)]
    Risk(Risk),
    /// Too much to bear.
    #[error(
        "{devices} devices of which {} drop out and {} collude: no number of neighbours up to \
         {DEGREE_MAX} hides their updates and bears that; expect less of either",
        .risk.drop_out, .risk.colluding
    )]
    TooRisky {
        /// How many devices.
        devices: usize,
        /// What they were to bear.
        risk: Risk,
    },
}

impl Topology {
    /// The fewest neighbours with which, by the bounds of Bell et al. 2020, section 3.2, and
    /// drawing without replacement:
    ///
    /// - no device has `threshold` colluding neighbours (2^-40);
    /// - the others that stay are connected, so that only the sum of all of them shows: no
    ///   `degree / 2` in a row are gone (2^-40);
    /// - every device has `threshold` neighbours that stay (2^-20).
    ///
    /// Where that takes all neighbours, everyone is everyone's.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn of(devices: usize, risk: Risk) -> Result<Self, TopologyError> {
        let counts = Counts::of(devices, risk)?;
        let half_max = (devices - 2).min(DEGREE_MAX) / 2;
        let sparse = (1..=half_max).find_map(|half| counts.sparse(2 * half));
        sparse.map_or_else(|| Self::complete(devices, risk), Ok)
    }

    /// Everyone is everyone's neighbour, as in Bonawitz et al. 2017.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn complete(devices: usize, risk: Risk) -> Result<Self, TopologyError> {
        let counts = Counts::of(devices, risk)?;
        let degree = devices - 1;
        let threshold = (degree / 2).max(counts.colluding) + 1;
        // Of the neighbours of one that stays.
        let staying = counts.staying - 1;
        if degree > DEGREE_MAX || threshold > staying {
            return Err(TopologyError::TooRisky { devices, risk });
        }
        Ok(Self { degree, threshold })
    }

    /// Whether a device may rely on it.
    pub(crate) fn is_sound(self, devices: usize) -> bool {
        let Self { degree, threshold } = self;
        let complete = degree + 1 == devices;
        let regular = complete || (degree + 1 < devices && degree.is_multiple_of(2));
        let split = 2 * threshold > degree && threshold <= degree;
        devices >= DEVICES_MIN && regular && split && degree <= DEGREE_MAX
    }
}

/// A risk in devices.
struct Counts {
    devices: usize,
    colluding: usize,
    staying: usize,
    /// Logarithms of factorials.
    factorials: Vec<f64>,
}

impl Counts {
    fn of(devices: usize, risk: Risk) -> Result<Self, TopologyError> {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        if devices < DEVICES_MIN {
            return Err(TopologyError::Devices(devices));
        }
        if !is_share(risk.drop_out) || !is_share(risk.colluding) {
            return Err(TopologyError::Risk(risk));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a number of devices"
        )]
        let of_all = |share: f64| (share * devices as f64 + 1e-9).floor() as usize;
        let factorial = |sum: &mut f64, value: usize| {
            *sum += number(value.max(1)).ln();
            Some(*sum)
        };
        let staying = devices - of_all(risk.drop_out);
        if staying < DEVICES_MIN {
            return Err(TopologyError::TooRisky { devices, risk });
        }
        Ok(Self {
            devices,
            colluding: of_all(risk.colluding),
            staying,
            factorials: (0..=devices).scan(0.0, factorial).collect(),
        })
    }

    /// The topology with so many neighbours, if one is good enough.
    fn sparse(&self, degree: usize) -> Option<Topology> {
        let devices = number(self.devices);
        let gone = self.colluding + self.devices - self.staying;
        if devices * self.all_of(gone, degree / 2) > (-SECURITY_BITS).exp2() {
            return None;
        }
        let others = self.devices - 1;
        let colluding = |count| self.chance(others, self.colluding.min(others), degree, count);
        let staying = |count| self.chance(others, self.staying - 1, degree, count);
        // From above, so that small numbers are added first.
        let mut tail = 0.0;
        let mut threshold = degree + 1;
        while threshold > degree / 2 + 1 {
            tail += colluding(threshold - 1);
            if devices * tail > (-SECURITY_BITS).exp2() {
                break;
            }
            threshold -= 1;
        }
        let too_few: f64 = (0..threshold).map(staying).sum();
        let good = threshold <= degree && devices * too_few <= (-CORRECTNESS_BITS).exp2();
        good.then_some(Topology { degree, threshold })
    }

    /// The chance that so many drawn are all of the `marked`.
    fn all_of(&self, marked: usize, drawn: usize) -> f64 {
        self.chance(self.devices, marked.min(self.devices), drawn, drawn)
    }

    /// The hypergeometric distribution: the chance that of `drawn` among `all`, of which some are
    /// marked, exactly `count` are.
    fn chance(&self, all: usize, marked: usize, drawn: usize, count: usize) -> f64 {
        if count > marked || count > drawn || drawn - count > all - marked {
            return 0.0;
        }
        let choose =
            |n: usize, k: usize| self.factorials[n] - self.factorials[k] - self.factorials[n - k];
        let ways = choose(marked, count) + choose(all - marked, drawn - count);
        (ways - choose(all, drawn)).exp()
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of devices are small")]
fn number(count: usize) -> f64 {
    count as f64
}

/// The neighbours of every device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    degree: usize,
    /// Devices in the order of the ring.
    ring: Vec<Party>,
    /// Places of devices in the ring.
    places: Vec<usize>,
}

impl Graph {
    /// The graph that public randomness draws.
    ///
    /// # Panics
    /// With 2^32 devices.
    pub fn new(devices: usize, degree: usize, seed: [u8; 32]) -> Self {
        let party = |place| Party(u32::try_from(place).expect("fewer than 2^32 devices"));
        let mut ring: Vec<Party> = (0..devices).map(party).collect();
        let seed = Secret::new(seed);
        // Fisher and Yates; 64 bits a step, so that the bias is far below anything else here.
        for last in (1..devices).rev() {
            let words = mask::stream(&seed, last);
            let random = u128::from(words[0]) | u128::from(words[1]) << 32;
            let choice = (random * (last as u128 + 1)) >> 64;
            #[expect(clippy::cast_possible_truncation, reason = "at most the last place")]
            ring.swap(last, choice as usize);
        }
        let mut places = vec![0; devices];
        for (place, party) in ring.iter().enumerate() {
            places[party.index()] = place;
        }
        Self { degree, ring, places }
    }

    /// The neighbours of a device, in order; a neighbour's place in the list is that of its share.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn neighbours(&self, party: Party) -> Vec<Party> {
        let (devices, place) = (self.ring.len(), self.places[party.index()]);
        let mut neighbours: Vec<Party> = if self.degree + 1 == devices {
            self.ring.iter().copied().filter(|other| *other != party).collect()
        } else {
            let steps = 1..=self.degree / 2;
            let both = steps.flat_map(|step| [place + step, place + devices - step]);
            both.map(|place| self.ring[place % devices]).collect()
        };
        neighbours.sort_unstable();
        neighbours
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_as_many_as_the_bounds_say() {
        for (devices, degree, threshold) in [
            (3, 2, 2),
            (4, 3, 2),
            (10, 9, 5),
            (100, 60, 31),
            (500, 142, 72),
            (1000, 174, 88),
            (10_000, 232, 117),
        ] {
            let found = Topology::of(devices, Risk::default());
            assert_eq!(found, Ok(Topology { degree, threshold }), "{devices}");
        }
    }

    #[test]
    fn what_cannot_be_borne_is_refused() {
        assert_eq!(Topology::of(2, Risk::default()), Err(TopologyError::Devices(2)));
        let risk = Risk { drop_out: f64::NAN, colluding: 0.0 };
        assert!(matches!(Topology::of(10, risk), Err(TopologyError::Risk(_))));
        for (drop_out, colluding) in [(0.6, 0.1), (1.0, 0.0), (0.3, 0.7)] {
            for devices in [10, 100, 1000] {
                let risk = Risk { drop_out, colluding };
                let error = TopologyError::TooRisky { devices, risk };
                assert_eq!(Topology::of(devices, risk), Err(error));
            }
        }
        let all = Topology::complete(300, Risk::default());
        assert!(matches!(all, Err(TopologyError::TooRisky { .. })));
    }

    proptest! {
        #[test]
        fn topologies_are_sound(devices in 3..400_usize, percent in 0..30_u32) {
            let risk = Risk { drop_out: f64::from(percent) / 100.0, colluding: 0.05 };
            let found = Topology::of(devices, risk).unwrap();
            prop_assert!(found.is_sound(devices), "{:?}", found);
        }

        /// Everyone has `degree` neighbours, neighbours are mutual, nobody is its own, and the
        /// ring joins everyone.
        #[test]
        fn graphs_are_regular_and_connected(
            devices in 3..60_usize, half in 1..6_usize, seed: [u8; 32],
        ) {
            let degree = if 2 * half < devices - 1 { 2 * half } else { devices - 1 };
            let graph = Graph::new(devices, degree, seed);
            let all: Vec<Party> = (0..u32::try_from(devices).unwrap()).map(Party).collect();
            let mut reached = vec![Party(0)];
            for party in &all {
                let neighbours = graph.neighbours(*party);
                prop_assert_eq!(neighbours.len(), degree);
                prop_assert!(neighbours.windows(2).all(|pair| pair[0] < pair[1]));
                for other in neighbours {
                    prop_assert!(other != *party && graph.neighbours(other).contains(party));
                }
            }
            for step in 0..devices {
                let Some(party) = reached.get(step).copied() else { break };
                for other in graph.neighbours(party) {
                    if !reached.contains(&other) {
                        reached.push(other);
                    }
                }
            }
            prop_assert_eq!(reached.len(), devices);
        }
    }

    #[test]
    fn the_seed_draws_the_ring() {
        let of = |byte| Graph::new(50, 4, [byte; 32]);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).neighbours(Party(0)), of(2).neighbours(Party(0)));
        // Over many seeds every other device is a neighbour about equally often.
        let mut counts = [0_u32; 50];
        for seed in 0..=u8::MAX {
            of(seed).neighbours(Party(0)).iter().for_each(|party| counts[party.index()] += 1);
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (5..45).contains(count)), "{counts:?}");
    }
}
