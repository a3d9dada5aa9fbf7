//! The language and the rules of a Dunlin fleet, in reading order.
//!
//! What is said: [`id`], [`hours`], [`subject`], [`selector`], [`device`], [`spec`], [`report`], [`held`],
//! [`wire`].
//! What follows from it: the pure machines [`job`], [`worker`], [`round`] and [`training`].
//! No I/O, no clock, no randomness and no tensors: time and seeds are arguments, weights stay
//! behind blob references.

pub mod device;
pub mod engine;
pub mod held;
pub mod hours;
pub mod id;
pub mod job;
pub mod privacy;
pub mod report;
pub mod round;
pub mod selector;
pub mod spec;
pub mod subject;
pub mod training;
pub mod wire;
pub mod worker;
