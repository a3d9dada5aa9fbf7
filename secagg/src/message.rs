//! What devices and server say to one another.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::graph::{DEVICES_MIN, Graph, Topology};
use crate::key::PublicKey;
use crate::seal::Sealed;

/// A device's number in a session: its place in the [`Roster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Party(pub u32);

impl Party {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names a session: the digest of its roster, so that who has seen another one is in another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(#[serde(with = "crate::bytes")] pub [u8; 32]);

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionId({:?})", PublicKey(self.0))
    }
}

/// The public keys of a device, made for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Keys {
    /// For shares on their way to it.
    pub sealing: PublicKey,
    /// For the masks that it has in common with neighbours.
    pub masking: PublicKey,
}

/// To all devices: who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// What the session is for, so that its keys are of use for nothing else: any text.
    pub purpose: String,
    /// Neighbours and shares.
    pub topology: Topology,
    /// Values in a vector.
    pub length: u64,
    /// Everyone's keys.
    pub devices: Vec<Keys>,
}

/// Why a roster is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Neighbours or threshold that hide nothing.
    #[error(
        "{devices} devices with {} neighbours and threshold {}: expected {DEVICES_MIN} devices or \
         more, and a threshold above half of the neighbours", .topology.degree, .topology.threshold
    )]
    Topology {
        /// How many devices.
        devices: usize,
        /// Neighbours and shares.
        topology: Topology,
    },
    /// A key that is there twice.
    #[error("key {0:?} is there twice: expected two fresh ones of every device")]
    RepeatedKey(PublicKey),
}

impl Roster {
    /// The session's name.
    pub fn session(&self) -> SessionId {
        let mut text = digest::Context::new(&digest::SHA256);
        text.update(b"dunlin secagg roster 1\0");
        let numbers = [
            self.purpose.len() as u64,
            self.topology.degree as u64,
            self.topology.threshold as u64,
            self.length,
            self.devices.len() as u64,
        ];
        for number in numbers {
            text.update(&number.to_le_bytes());
        }
        text.update(self.purpose.as_bytes());
        for keys in &self.devices {
            text.update(&keys.sealing.0);
            text.update(&keys.masking.0);
        }
        let mut id = SessionId([0; 32]);
        id.0.copy_from_slice(text.finish().as_ref());
        id
    }

    /// Who is whose neighbour: drawn by the session's name, which no single device decides.
    pub fn graph(&self) -> Graph {
        Graph::new(self.devices.len(), self.topology.degree, self.session().0)
    }

    /// Whether a device may give its secrets into this session.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn check(&self) -> Result<(), RosterError> {
        let (devices, topology) = (self.devices.len(), self.topology);
        if !topology.is_sound(devices) {
            return Err(RosterError::Topology { devices, topology });
        }
        let both = |keys: &Keys| [keys.sealing, keys.masking];
        let mut keys: Vec<PublicKey> = self.devices.iter().flat_map(both).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(RosterError::RepeatedKey(pair[0])),
            None => Ok(()),
        }
    }
}

/// From a device: its secrets in shares, one entry for each neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Of which session.
    pub session: SessionId,
    /// Stands for the seed of the device's own mask, so that a wrong one is recognised.
    #[serde(with = "crate::bytes")]
    pub commitment: [u8; 32],
    /// What only the neighbour can read.
    pub sealed: Vec<(Party, Sealed)>,
}

/// To a device: what its neighbours sealed for it; who is not in it has dropped out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbox {
    /// Of which session.
    pub session: SessionId,
    /// By whom, in order.
    pub sealed: Vec<(Party, Sealed)>,
}

/// To a device: what became of those neighbours that it has a mask in common with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmaskRequest {
    /// Of which session.
    pub session: SessionId,
    /// Those whose masked vectors are in the sum; shares of their own masks are wanted.
    pub survivors: Vec<Party>,
    /// Those whose are not; shares of their private keys are wanted.
    pub dropped: Vec<Party>,
}

/// From a device: one share of each neighbour that was asked for, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmasking {
    /// Of which session.
    pub session: SessionId,
    /// Values of shares of own masks.
    pub survivors: Vec<ShareValues>,
    /// Values of shares of private keys.
    pub dropped: Vec<ShareValues>,
}

/// The values of a [`Share`](crate::Share); its point follows from the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareValues(#[serde(with = "crate::bytes")] pub [u8; 32]);
