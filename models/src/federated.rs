//! Aggregation of updates: numbers only, no protocol.

pub mod mean;
