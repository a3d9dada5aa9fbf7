//! A device's side of a session.
//!
//! ```text
//!  Keys ── share(roster) ──▶ Shared ── mask(inbox) ──▶ Masked ── unmask(request) ──▶ Unmasked
//! ```
//!
//! All follows from a seed and what the server said, so that a client that is made anew of the
//! same seed and told the same again says the same again. A question that was answered is
//! answered again in the same way; another question in its place is refused.

use std::collections::BTreeSet;

use crate::key::{AgreementError, Secret};
use crate::mask::Masks;
use crate::message::{
    Inbox, Keys, Party, Roster, RosterError, SessionId, ShareValues, Shares, UnmaskRequest,
    Unmasking,
};
use crate::seal::{self, PLAIN};
use crate::shamir;

/// A device in one session.
#[derive(Debug)]
pub struct Client {
    secrets: Secrets,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Keys,
    Shared(Session),
    Masked(Session, Held),
    Unmasked(Session, Held, UnmaskRequest),
}

/// What a device keeps to itself.
#[derive(Debug)]
struct Secrets {
    seed: Secret,
    sealing: Secret,
    masking: Secret,
}

/// What a device knows of its session.
#[derive(Debug)]
struct Session {
    id: SessionId,
    me: Party,
    threshold: usize,
    /// In order.
    neighbours: Vec<(Party, Keys)>,
}

/// The neighbours' shares.
#[derive(Debug)]
struct Held {
    inbox: Inbox,
    /// Of whom, of its own mask, of its private key; in order.
    shares: Vec<(Party, ShareValues, ShareValues)>,
}

/// Why a device does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A roster that hides nothing.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// A key that agrees on nothing.
    #[error(transparent)]
    Key(#[from] AgreementError),
    /// The device's keys are not in the roster.
    #[error("this device's keys are not in the roster")]
    NotIncluded,
    /// A message of another session.
    #[error("the message is of {found:?}, this device is in {expected:?}")]
    AnotherSession {
        /// The message's.
        found: SessionId,
        /// The device's.
        expected: SessionId,
    },
    /// A stage was left out.
    #[error("the message comes before the one that it needs: expected {0}")]
    TooEarly(&'static str),
    /// Another question in the place of one that was answered: the two answers together would
    /// say more than either.
    #[error("{0} was answered before, and this is another one")]
    SecondQuestion(&'static str),
    /// Not enough neighbours are left to hide this device.
    #[error("{found} neighbours are left, {threshold} are needed")]
    TooFew {
        /// Neighbours that are left.
        found: usize,
        /// Shares that give a secret.
        threshold: usize,
    },
    /// What a neighbour sealed is not what arrived.
    #[error("the shares of device {} were changed on their way", .0.0)]
    Tampered(Party),
    /// A list with devices that do not belong there, or not all of those that do.
    #[error("device {} is no neighbour, or there twice, or out of order", .0.0)]
    Stranger(Party),
    /// The two shares that nobody may have together.
    #[error("both shares of device {} are asked for: one of them at most is given", .0.0)]
    BothShares(Party),
    /// Neighbours of which nothing is asked.
    #[error("{found} neighbours are asked for, {expected} gave shares")]
    Incomplete {
        /// Neighbours in the request.
        found: usize,
        /// Neighbours that gave shares.
        expected: usize,
    },
}

impl Client {
    /// A device with a fresh seed, which must be used for one session alone and be random.
    pub fn new(seed: Secret) -> Self {
        let (sealing, masking) = (seed.derive(&[b"sealing"]), seed.derive(&[b"masking"]));
        Self { secrets: Secrets { seed, sealing, masking }, stage: Stage::Keys }
    }

    /// What to send first.
    pub fn keys(&self) -> Keys {
        self.secrets.keys()
    }

    /// A device that stopped, told again all that it was told before; it says the same again.
    ///
    /// # Errors
    /// [`Refusal`], as for what is told.
    pub fn restored(
        seed: Secret,
        roster: Option<&Roster>,
        inbox: Option<&Inbox>,
        request: Option<&UnmaskRequest>,
    ) -> Result<Self, Refusal> {
        let mut client = Self::new(seed);
        if let Some(roster) = roster {
            client.share(roster)?;
        }
        if let Some(inbox) = inbox {
            client.mask(inbox)?;
        }
        if let Some(request) = request {
            client.unmask(request)?;
        }
        Ok(client)
    }

    /// Joins the session: this device's secrets, in shares for its neighbours.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn share(&mut self, roster: &Roster) -> Result<Shares, Refusal> {
        let id = roster.session();
        match &self.stage {
            Stage::Keys => {
                let session = Session::join(roster, &self.keys())?;
                let shares = self.secrets.share(&session)?;
                self.stage = Stage::Shared(session);
                Ok(shares)
            }
            Stage::Shared(session) | Stage::Masked(session, _) | Stage::Unmasked(session, ..) => {
                if session.id != id {
                    return Err(Refusal::SecondQuestion("a roster"));
                }
                self.secrets.share(session)
            }
        }
    }

    /// The masks to apply to this device's vector, given what neighbours sealed for it.
    ///
    /// The vector that they are applied to must be the same whenever this is called: who has
    /// two vectors under the same masks has their difference.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn mask(&mut self, inbox: &Inbox) -> Result<Masks, Refusal> {
        match &self.stage {
            Stage::Keys => Err(Refusal::TooEarly("a roster")),
            Stage::Shared(session) => {
                let held = self.secrets.hold(session, inbox)?;
                let masks = self.secrets.masks(session, &held)?;
                let before = std::mem::replace(&mut self.stage, Stage::Keys);
                if let Stage::Shared(session) = before {
                    self.stage = Stage::Masked(session, held);
                }
                Ok(masks)
            }
            Stage::Masked(session, held) | Stage::Unmasked(session, held, _) => {
                session.check(inbox.session)?;
                if held.inbox != *inbox {
                    return Err(Refusal::SecondQuestion("an inbox"));
                }
                self.secrets.masks(session, held)
            }
        }
    }

    /// One share of each neighbour: of its own mask where its vector is in the sum, of its
    /// private key where it is not.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn unmask(&mut self, request: &UnmaskRequest) -> Result<Unmasking, Refusal> {
        match &self.stage {
            Stage::Keys => Err(Refusal::TooEarly("a roster")),
            Stage::Shared(_) => Err(Refusal::TooEarly("an inbox")),
            Stage::Masked(session, held) => {
                let unmasking = held.unmask(session, request)?;
                let before = std::mem::replace(&mut self.stage, Stage::Keys);
                if let Stage::Masked(session, held) = before {
                    self.stage = Stage::Unmasked(session, held, request.clone());
                }
                Ok(unmasking)
            }
            Stage::Unmasked(session, held, answered) => {
                session.check(request.session)?;
                if answered != request {
                    return Err(Refusal::SecondQuestion("a request to unmask"));
                }
                held.unmask(session, request)
            }
        }
    }
}

impl Session {
    fn join(roster: &Roster, keys: &Keys) -> Result<Self, Refusal> {
        roster.check()?;
        let me = roster.devices.iter().position(|other| other == keys);
        let me = me.and_then(|place| u32::try_from(place).ok()).ok_or(Refusal::NotIncluded)?;
        let neighbours = roster.graph().neighbours(Party(me));
        let with_keys = neighbours.into_iter().map(|party| (party, roster.devices[party.index()]));
        Ok(Self {
            id: roster.session(),
            me: Party(me),
            threshold: roster.topology.threshold,
            neighbours: with_keys.collect(),
        })
    }

    fn check(&self, found: SessionId) -> Result<(), Refusal> {
        let expected = self.id;
        (found == expected).then_some(()).ok_or(Refusal::AnotherSession { found, expected })
    }

    fn neighbour(&self, party: Party) -> Result<&Keys, Refusal> {
        let found = self.neighbours.binary_search_by_key(&party, |(other, _)| *other);
        found.map(|index| &self.neighbours[index].1).map_err(|_| Refusal::Stranger(party))
    }
}

impl Secrets {
    fn keys(&self) -> Keys {
        Keys { sealing: self.sealing.public_key(), masking: self.masking.public_key() }
    }

    /// The seed of the device's own mask.
    fn own_mask(&self, session: SessionId) -> Secret {
        self.seed.derive(&[b"own mask", &session.0])
    }

    fn share(&self, session: &Session) -> Result<Shares, Refusal> {
        let (id, me) = (session.id, session.me);
        let own_mask = self.own_mask(id);
        let split = |secret, what: &[u8]| {
            let seed = self.seed.derive(&[what, &id.0]);
            let shares = session.neighbours.len();
            shamir::split(secret, session.threshold, shares, &seed).expect("the roster was checked")
        };
        let of_mask = split(&own_mask, b"polynomials of the own mask");
        let of_key = split(&self.masking, b"polynomials of the private key");
        let mut sealed = Vec::with_capacity(session.neighbours.len());
        for (index, (party, keys)) in session.neighbours.iter().enumerate() {
            let mut both = [0; PLAIN];
            both[..32].copy_from_slice(&of_mask[index].values);
            both[32..].copy_from_slice(&of_key[index].values);
            let context = direction(id, me, *party);
            let key = self.sealing.agree(&keys.sealing, &[b"seal", &context])?;
            sealed.push((*party, seal::seal(&key, &both, &context)));
        }
        Ok(Shares { session: id, commitment: commitment(&own_mask), sealed })
    }

    /// Opens what neighbours sealed.
    fn hold(&self, session: &Session, inbox: &Inbox) -> Result<Held, Refusal> {
        session.check(inbox.session)?;
        let (found, threshold) = (inbox.sealed.len(), session.threshold);
        if found < threshold {
            return Err(Refusal::TooFew { found, threshold });
        }
        check_order(inbox.sealed.iter().map(|(party, _)| *party))?;
        let mut shares = Vec::with_capacity(found);
        for (party, sealed) in &inbox.sealed {
            let keys = session.neighbour(*party)?;
            let context = direction(session.id, *party, session.me);
            let key = self.sealing.agree(&keys.sealing, &[b"seal", &context])?;
            let both = seal::open(&key, sealed, &context).ok_or(Refusal::Tampered(*party))?;
            let half = |from: usize| {
                ShareValues(both[from..from + 32].try_into().expect("a half has 32 bytes"))
            };
            shares.push((*party, half(0), half(32)));
        }
        Ok(Held { inbox: inbox.clone(), shares })
    }

    fn masks(&self, session: &Session, held: &Held) -> Result<Masks, Refusal> {
        let mut masks = Masks::default();
        masks.add(self.own_mask(session.id));
        for (party, ..) in &held.shares {
            let keys = session.neighbour(*party)?;
            let mask = common_mask(&self.masking, keys, session.id, session.me, *party)?;
            if session.me < *party { masks.add(mask) } else { masks.subtract(mask) }
        }
        Ok(masks)
    }
}

impl Held {
    fn unmask(&self, session: &Session, request: &UnmaskRequest) -> Result<Unmasking, Refusal> {
        session.check(request.session)?;
        let survivors: BTreeSet<Party> = request.survivors.iter().copied().collect();
        if let Some(party) = request.dropped.iter().find(|party| survivors.contains(party)) {
            return Err(Refusal::BothShares(*party));
        }
        check_order(request.survivors.iter().copied())?;
        check_order(request.dropped.iter().copied())?;
        let (found, threshold) = (request.survivors.len(), session.threshold);
        if found < threshold {
            return Err(Refusal::TooFew { found, threshold });
        }
        let share = |party: &Party| {
            let found = self.shares.binary_search_by_key(party, |(other, ..)| *other);
            found.map(|index| &self.shares[index]).map_err(|_| Refusal::Stranger(*party))
        };
        let of_masks: Result<Vec<ShareValues>, Refusal> =
            request.survivors.iter().map(|party| share(party).map(|held| held.1)).collect();
        let of_keys: Result<Vec<ShareValues>, Refusal> =
            request.dropped.iter().map(|party| share(party).map(|held| held.2)).collect();
        let unmasking = Unmasking { session: session.id, survivors: of_masks?, dropped: of_keys? };
        let (found, expected) = (found + request.dropped.len(), self.shares.len());
        let complete = found == expected;
        complete.then_some(unmasking).ok_or(Refusal::Incomplete { found, expected })
    }
}

/// Each party once, the smallest first.
fn check_order(parties: impl Iterator<Item = Party>) -> Result<(), Refusal> {
    let mut before = None;
    for party in parties {
        if before >= Some(party) {
            return Err(Refusal::Stranger(party));
        }
        before = Some(party);
    }
    Ok(())
}

/// From whom to whom, in which session.
fn direction(session: SessionId, from: Party, to: Party) -> [u8; 40] {
    let mut context = [0; 40];
    context[..32].copy_from_slice(&session.0);
    context[32..36].copy_from_slice(&from.0.to_le_bytes());
    context[36..].copy_from_slice(&to.0.to_le_bytes());
    context
}

/// What stands for the seed of a device's own mask.
pub(crate) fn commitment(own_mask: &Secret) -> [u8; 32] {
    *own_mask.derive(&[b"commitment"]).bytes()
}

/// The seed of the mask that two devices have in common: the one whose private key is given, and
/// the one whose keys are.
pub(crate) fn common_mask(
    masking: &Secret,
    keys: &Keys,
    session: SessionId,
    one: Party,
    other: Party,
) -> Result<Secret, AgreementError> {
    let context = direction(session, one.min(other), one.max(other));
    masking.agree(&keys.masking, &[b"mask", &context])
}
