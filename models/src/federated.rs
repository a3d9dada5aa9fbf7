//! Aggregation of updates: numbers only, no protocol.
//!
//! A round's result is computed in two steps. First, what needs whole vectors is summed over
//! tiles, the same range of every device's vector at a time: [`distances`]. From these few numbers
//! a rule gives each device a coefficient: [`q_fed_avg`], [`fed_nova`], [`robust`],
//! [`staleness`]. Then tiles are combined, one after the other: [`mean`], [`combination`],
//! [`robust::trimmed_mean`], [`robust::bulyan`], [`privacy`]. What comes out moves the global parameters by a
//! [`server`] optimizer. No step holds more than a tile of every update.
//!
//! Running [`statistics`] are no parameters that a step moves: they stay within what devices have.
//!
//! Results depend on the order of devices, which the caller keeps, and on nothing else: neither on
//! the order of arrival, nor on how vectors are cut, nor on the number of threads.

pub mod combination;
pub mod distances;
pub mod encoding;
pub mod fed_nova;
pub mod mean;
pub mod privacy;
pub mod q_fed_avg;
pub mod robust;
pub mod scaffold;
pub mod server;
pub mod staleness;
pub mod statistics;
pub mod tile;

#[cfg(test)]
mod tests;
