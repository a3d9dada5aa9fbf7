//! Secure aggregation: many devices send vectors of `u32`, masked, and who adds them up learns
//! their sum modulo 2^32 and nothing else, also when some devices drop out on the way.
//!
//! The protocol is `SecAgg+` (Bell et al. 2020, eprint 2020/704) on a regular graph of few
//! neighbours, which is that of Bonawitz et al. 2017 (eprint 2017/281) where everyone is
//! everyone's neighbour. No I/O, clock or randomness: seeds are arguments.
//!
//! ```text
//!  Client                                  Server
//!    │ Keys ──────────────────────────────▶ │  two public keys
//!    │ ◀───────────────────────────── Roster │  everyone's keys; its digest names the session
//!    │ Shares ────────────────────────────▶ │  two secrets, in shares, sealed for neighbours
//!    │ ◀────────────────────────────── Inbox │  what neighbours sealed for this device
//!    │ masked vector ─────────────────────▶ │  x + PRG(b) +- PRG(s_uv) for each neighbour
//!    │ ◀────────────────────── UnmaskRequest │  who sent a masked vector, and who did not
//!    │ Unmasking ─────────────────────────▶ │  shares of b of the former, of s of the latter
//!                                          sum of the vectors that arrived
//! ```
//!
//! What holds whatever the server says: a device answers each stage once (the same question
//! gets the same answer), so it gives away one of the two shares of a neighbour and never both,
//! and a threshold above half of the neighbours keeps a server that tells devices different
//! stories from collecting both elsewhere. Devices that have seen different rosters are in
//! different sessions: what one seals the other cannot open. Who has the keys of a device under
//! another's name is not known here: a server that invents devices is out of scope.

mod bytes;
mod client;
mod graph;
mod key;
mod mask;
mod message;
mod quantise;
mod seal;
mod server;
mod shamir;

pub use self::client::{Client, Refusal};
pub use self::graph::{DEGREE_MAX, DEVICES_MIN, Graph, Risk, Topology, TopologyError};
pub use self::key::{AgreementError, PublicKey, Secret};
pub use self::mask::{Masks, PIECE, add};
pub use self::message::{
    Inbox, Keys, Party, Roster, RosterError, SessionId, ShareValues, Shares, UnmaskRequest,
    Unmasking,
};
pub use self::quantise::{Quantisation, QuantisationError, Rounding, count};
pub use self::seal::Sealed;
pub use self::server::{Server, ServerError};
pub use self::shamir::{SHARES_MAX, Share, ShareError, recover, split};

#[cfg(test)]
mod tests;
