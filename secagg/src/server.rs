//! The side of the one who adds up.
//!
//! ```text
//!  keys ── close_keys ──▶ shares ── close_shares ──▶ masked ── close_masked ──▶ unmask ── finish
//! ```
//!
//! Messages of a stage may come in any order and more than once; who is missing when a stage is
//! closed has dropped out. The server never sees a vector: the shell adds masked ones up and says
//! whose are in the sum.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::client::{commitment, common_mask};
use crate::graph::{Graph, Risk, Topology, TopologyError};
use crate::key::{AgreementError, PublicKey, Secret};
use crate::mask::Masks;
use crate::message::{
    Inbox, Keys, Party, Roster, RosterError, SessionId, ShareValues, Shares, UnmaskRequest,
    Unmasking,
};
use crate::shamir::{self, Share};

/// A session as who adds up sees it.
#[derive(Debug)]
pub struct Server {
    purpose: String,
    length: u64,
    risk: Risk,
    /// Keys by the number under which the shell knows a device.
    keys: BTreeMap<u32, Keys>,
    session: Option<Session>,
    stage: Stage,
    shares: BTreeMap<Party, Shares>,
    survivors: BTreeSet<Party>,
    unmaskings: BTreeMap<Party, Unmasking>,
}

#[derive(Debug)]
struct Session {
    roster: Roster,
    id: SessionId,
    graph: Graph,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Keys,
    Shares,
    Masked,
    Unmask,
}

/// Why a message is refused, or a stage cannot be closed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServerError {
    /// Keys that are no roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Devices that cannot hide one another.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A message of another stage.
    #[error("the session is at another stage: the message comes too late or too early")]
    AnotherStage,
    /// A message of another session.
    #[error("the message is of {found:?}, the session is {expected:?}")]
    AnotherSession {
        /// The message's.
        found: SessionId,
        /// The one at work.
        expected: SessionId,
    },
    /// Someone who is not in this session, or has dropped out.
    #[error("device {0} is not in the session, or has dropped out of it")]
    Stranger(u32),
    /// A key that another device has said before.
    #[error("key {key:?} of device {device} is that of device {owner}, which said it before")]
    TakenKey {
        /// Who repeats it.
        device: u32,
        /// The key.
        key: PublicKey,
        /// Whose it is.
        owner: u32,
    },
    /// A second message that differs from the first.
    #[error("device {0} has said something else before")]
    Contradiction(u32),
    /// Shares for others than the neighbours, or not as many as were asked for.
    #[error("device {device}: {found} shares, expected one for each of {expected} neighbours")]
    Shares {
        /// Whose.
        device: u32,
        /// How many.
        found: usize,
        /// How many neighbours.
        expected: usize,
    },
    /// A secret cannot be had.
    #[error(
        "device {}: {found} of its neighbours are left, {threshold} are needed to take its \
         masks off", .party.0
    )]
    TooFew {
        /// Whose secret.
        party: Party,
        /// Neighbours that are left.
        found: usize,
        /// Neighbours that are needed.
        threshold: usize,
    },
    /// Shares that fit no secret.
    #[error("device {}: its neighbours' shares do not fit together: one of them is forged", .0.0)]
    Forged(Party),
    /// A key that agrees on nothing.
    #[error(transparent)]
    Key(#[from] AgreementError),
}

impl Server {
    /// A session for vectors of this length that has to bear this risk; `purpose` is in its name.
    pub fn new(purpose: String, length: u64, risk: Risk) -> Self {
        Self {
            purpose,
            length,
            risk,
            keys: BTreeMap::new(),
            session: None,
            stage: Stage::Keys,
            shares: BTreeMap::new(),
            survivors: BTreeSet::new(),
            unmaskings: BTreeMap::new(),
        }
    }

    /// Takes a device's keys; numbers are the shell's, their order that of parties. Who says a key
    /// first keeps it.
    ///
    /// # Errors
    /// [`ServerError::TakenKey`], [`ServerError::Roster`] when both keys are the same,
    /// [`ServerError::Key`] when one of them agrees on nothing, [`ServerError::Contradiction`].
    pub fn keys(&mut self, device: u32, keys: Keys) -> Result<(), ServerError> {
        self.at(Stage::Keys)?;
        let both = [keys.sealing, keys.masking];
        let others = self.keys.iter().filter(|(other, _)| **other != device);
        let mut said = others.flat_map(|(other, it)| [(it.sealing, *other), (it.masking, *other)]);
        if let Some((key, owner)) = said.find(|(key, _)| both.contains(key)) {
            return Err(ServerError::TakenKey { device, key, owner });
        }
        if keys.sealing == keys.masking {
            return Err(RosterError::RepeatedKey(keys.sealing).into());
        }
        both.iter().try_for_each(PublicKey::check)?;
        let known = *self.keys.entry(device).or_insert(keys);
        (known == keys).then_some(()).ok_or(ServerError::Contradiction(device))
    }

    /// Closes the first stage: who takes part, in the order of their numbers.
    ///
    /// # Errors
    /// [`ServerError::Topology`] when they are too few.
    pub fn close_keys(&mut self) -> Result<&Roster, ServerError> {
        self.close_keys_with(Topology::of(self.keys.len(), self.risk)?)
    }

    /// The same with neighbours and threshold of the caller's choice.
    ///
    /// # Errors
    /// [`ServerError::Roster`] when they hide nothing.
    pub fn close_keys_with(&mut self, topology: Topology) -> Result<&Roster, ServerError> {
        self.at(Stage::Keys)?;
        let roster = Roster {
            purpose: self.purpose.clone(),
            topology,
            length: self.length,
            devices: self.keys.values().copied().collect(),
        };
        roster.check()?;
        let (id, graph) = (roster.session(), roster.graph());
        self.stage = Stage::Shares;
        Ok(&self.session.insert(Session { roster, id, graph }).roster)
    }

    /// Who takes part, once the first stage is closed.
    pub fn roster(&self) -> Option<&Roster> {
        self.session.as_ref().map(|session| &session.roster)
    }

    /// Takes a device's shares for its neighbours.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn shares(&mut self, party: Party, shares: &Shares) -> Result<(), ServerError> {
        self.at(Stage::Shares)?;
        let session = self.session()?;
        session.check(party, shares.session)?;
        let neighbours = session.graph.neighbours(party);
        let (device, found) = (party.0, shares.sealed.len());
        if !shares.sealed.iter().map(|(to, _)| to).eq(&neighbours) {
            return Err(ServerError::Shares { device, found, expected: neighbours.len() });
        }
        let known = self.shares.entry(party).or_insert_with(|| shares.clone());
        (known == shares).then_some(()).ok_or(ServerError::Contradiction(party.0))
    }

    /// Closes the second stage: only devices that gave shares send vectors.
    ///
    /// # Errors
    /// [`ServerError::TooFew`] when no device has enough neighbours left.
    pub fn close_shares(&mut self) -> Result<(), ServerError> {
        self.at(Stage::Shares)?;
        let threshold = self.session()?.roster.topology.threshold;
        let left = |party: &Party| self.left_of(*party, |other| self.shares.contains_key(other));
        let best = self.shares.keys().map(|party| (left(party), *party)).max();
        let (found, party) = best.unwrap_or((0, Party(0)));
        if found < threshold {
            return Err(ServerError::TooFew { party, found, threshold });
        }
        self.stage = Stage::Masked;
        Ok(())
    }

    /// What neighbours sealed for a device; `None` for who has dropped out.
    pub fn inbox(&self, party: Party) -> Option<Inbox> {
        let session = self.session.as_ref().filter(|_| self.stage >= Stage::Masked)?;
        self.shares.get(&party)?;
        let from = |other: Party| {
            let sealed = &self.shares.get(&other)?.sealed;
            let place = sealed.binary_search_by_key(&party, |(to, _)| *to).ok()?;
            Some((other, sealed[place].1))
        };
        let sealed = session.graph.neighbours(party).into_iter().filter_map(from).collect();
        Some(Inbox { session: session.id, sealed })
    }

    /// A device's masked vector is in the sum.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn masked(&mut self, party: Party) -> Result<(), ServerError> {
        self.at(Stage::Masked)?;
        if !self.shares.contains_key(&party) {
            return Err(ServerError::Stranger(party.0));
        }
        self.survivors.insert(party);
        Ok(())
    }

    /// Closes the third stage: the sum is complete.
    ///
    /// # Errors
    /// [`ServerError::TooFew`] when there is a device whose masks nobody could take off.
    pub fn close_masked(&mut self) -> Result<(), ServerError> {
        self.at(Stage::Masked)?;
        self.check_left(&self.survivors)?;
        self.stage = Stage::Unmask;
        Ok(())
    }

    /// What to ask a device whose vector is in the sum; `None` for others.
    pub fn unmask_request(&self, party: Party) -> Option<UnmaskRequest> {
        let session = self.session.as_ref().filter(|_| self.stage == Stage::Unmask)?;
        if !self.survivors.contains(&party) {
            return None;
        }
        let with_shares = |other: &Party| self.shares.contains_key(other);
        let (survivors, dropped) = session
            .graph
            .neighbours(party)
            .into_iter()
            .filter(with_shares)
            .partition(|other| self.survivors.contains(other));
        Some(UnmaskRequest { session: session.id, survivors, dropped })
    }

    /// Takes a device's answer to [`Server::unmask_request`].
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn unmasking(&mut self, party: Party, unmasking: &Unmasking) -> Result<(), ServerError> {
        self.at(Stage::Unmask)?;
        self.session()?.check(party, unmasking.session)?;
        let request = self.unmask_request(party).ok_or(ServerError::Stranger(party.0))?;
        let found = (unmasking.survivors.len(), unmasking.dropped.len());
        if found != (request.survivors.len(), request.dropped.len()) {
            let expected = request.survivors.len() + request.dropped.len();
            let (device, found) = (party.0, found.0 + found.1);
            return Err(ServerError::Shares { device, found, expected });
        }
        let known = self.unmaskings.entry(party).or_insert_with(|| unmasking.clone());
        (known == unmasking).then_some(()).ok_or(ServerError::Contradiction(party.0))
    }

    /// Whether so many have answered that nobody else need be waited for.
    pub fn is_complete(&self) -> bool {
        let answered: BTreeSet<Party> = self.unmaskings.keys().copied().collect();
        self.stage == Stage::Unmask && self.check_left(&answered).is_ok()
    }

    /// The masks to apply to the sum of the masked vectors; what remains is the sum of the
    /// vectors themselves. One agreement for each pair of a device that dropped out and a
    /// neighbour that did not, on the threads of the pool.
    ///
    /// # Errors
    /// [`ServerError::TooFew`], [`ServerError::Forged`].
    pub fn finish(&self) -> Result<Masks, ServerError> {
        self.at(Stage::Unmask)?;
        let (of_masks, of_keys) = self.collected()?;
        let own = self.survivors.par_iter().map(|party| {
            let seed = self.own_mask(*party, of_masks.get(party).map_or(&[], Vec::as_slice))?;
            let mut masks = Masks::default();
            masks.subtract(seed);
            Ok(masks)
        });
        let dropped = self.shares.par_iter().filter(|(party, _)| !self.survivors.contains(party));
        let common = dropped.map(|(party, _)| {
            self.common_masks(*party, of_keys.get(party).map_or(&[], Vec::as_slice))
        });
        let all: Result<Vec<Masks>, ServerError> = own.chain(common).collect();
        let mut masks = Masks::default();
        all?.into_iter().for_each(|some| masks.extend(some));
        Ok(masks)
    }
}

type Collected = BTreeMap<Party, Vec<Share>>;

/// Small parts.
impl Server {
    fn at(&self, stage: Stage) -> Result<(), ServerError> {
        (self.stage == stage).then_some(()).ok_or(ServerError::AnotherStage)
    }

    fn session(&self) -> Result<&Session, ServerError> {
        self.session.as_ref().ok_or(ServerError::AnotherStage)
    }

    /// Neighbours of a device that are left.
    fn left_of(&self, party: Party, is_left: impl Fn(&Party) -> bool) -> usize {
        let neighbours = self.session.as_ref().map(|session| session.graph.neighbours(party));
        neighbours.into_iter().flatten().filter(is_left).count()
    }

    /// Whether every device that gave shares has enough neighbours among these, if a mask of
    /// it is in the sum.
    fn check_left(&self, left: &BTreeSet<Party>) -> Result<(), ServerError> {
        let threshold = self.session()?.roster.topology.threshold;
        for party in self.shares.keys() {
            let found = self.left_of(*party, |other| left.contains(other));
            let in_sum = self.survivors.contains(party)
                || self.left_of(*party, |other| self.survivors.contains(other)) > 0;
            if in_sum && found < threshold {
                return Err(ServerError::TooFew { party: *party, found, threshold });
            }
        }
        if self.survivors.is_empty() {
            return Err(ServerError::TooFew { party: Party(0), found: 0, threshold });
        }
        Ok(())
    }

    /// The shares that came, of own masks and of private keys.
    fn collected(&self) -> Result<(Collected, Collected), ServerError> {
        let graph = &self.session()?.graph;
        let (mut of_masks, mut of_keys) = (Collected::new(), Collected::new());
        for (holder, unmasking) in &self.unmaskings {
            let Some(request) = self.unmask_request(*holder) else { continue };
            let UnmaskRequest { survivors, dropped, .. } = request;
            for (parties, values, into) in [
                (survivors, &unmasking.survivors, &mut of_masks),
                (dropped, &unmasking.dropped, &mut of_keys),
            ] {
                for (party, ShareValues(values)) in parties.into_iter().zip(values) {
                    let place = graph.neighbours(party).binary_search(holder);
                    let point = place.ok().and_then(|place| u8::try_from(place + 1).ok());
                    let share = point.map(|point| Share { point, values: *values });
                    into.entry(party).or_default().extend(share);
                }
            }
        }
        Ok((of_masks, of_keys))
    }

    /// The secret of these shares that `is_right` says yes to. One forged share spoils those that
    /// it is taken with, so others are tried: each stretch of as many as needed.
    fn recover(
        &self,
        party: Party,
        shares: &[Share],
        is_right: impl Fn(&Secret) -> bool,
    ) -> Result<Secret, ServerError> {
        let threshold = self.session()?.roster.topology.threshold;
        let found = shares.len();
        if found < threshold {
            return Err(ServerError::TooFew { party, found, threshold });
        }
        for first in 0..found {
            let turned: Vec<&Share> = shares.iter().cycle().skip(first).take(threshold).collect();
            let secret = shamir::recover(&turned, threshold);
            if let Some(secret) = secret.ok().filter(&is_right) {
                return Ok(secret);
            }
        }
        Err(ServerError::Forged(party))
    }

    /// The seed of the own mask of a device whose vector is in the sum.
    fn own_mask(&self, party: Party, shares: &[Share]) -> Result<Secret, ServerError> {
        let said = self.shares.get(&party).map(|shares| shares.commitment);
        self.recover(party, shares, |seed| Some(commitment(seed)) == said)
    }

    /// What neighbours' vectors have in the sum because of a device whose own is not there.
    fn common_masks(&self, party: Party, shares: &[Share]) -> Result<Masks, ServerError> {
        let session = self.session()?;
        let neighbours = session.graph.neighbours(party);
        let neighbours = neighbours.iter().filter(|other| self.survivors.contains(other));
        let mut masks = Masks::default();
        let mut key = None;
        for other in neighbours {
            if key.is_none() {
                let public = session.roster.devices[party.index()].masking;
                let is_right = |secret: &Secret| secret.public_key() == public;
                key = Some(self.recover(party, shares, is_right)?);
            }
            let Some(key) = &key else { break };
            let keys = &session.roster.devices[other.index()];
            let seed = common_mask(key, keys, session.id, party, *other)?;
            // The neighbour added it if it is the first of the two.
            if *other < party { masks.subtract(seed) } else { masks.add(seed) }
        }
        Ok(masks)
    }
}

impl Session {
    fn check(&self, party: Party, found: SessionId) -> Result<(), ServerError> {
        let expected = self.id;
        if found != expected {
            return Err(ServerError::AnotherSession { found, expected });
        }
        let known = party.index() < self.roster.devices.len();
        known.then_some(()).ok_or(ServerError::Stranger(party.0))
    }
}
