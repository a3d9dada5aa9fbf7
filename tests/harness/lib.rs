//! A fleet of real processes for tests and benchmarks: nats-server, `dunlin`, `dunlin-agent`.
//!
//! [`world::World`] starts and kills them, [`process`] runs a program and keeps its log,
//! [`data`] makes data sets.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "test code stops at the first surprise"
)]

pub mod data;
pub mod process;
pub mod world;
