//! A fleet of real processes for tests and benchmarks: nats-server, `dunlin`, `dunlin-agent`.
//!
//! [`world::World`] starts and kills them, [`process`] runs a program and keeps its log,
//! [`cluster::Cluster`] has three NATS servers and two brokers, [`proxy`] stands between programs,
//! [`simulated`] plays many devices, [`helper`] starts engines in processes, [`data`] makes data
//! sets, [`disk::Disk`] can be full, [`writes`] sees what is stored of a training as it is written,
//! [`sums`] tells from parameters whose updates were counted, [`untested`] says what a machine lets
//! nobody test.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "test code stops at the first surprise"
)]

pub mod cluster;
pub mod data;
pub mod disk;
pub mod helper;
pub mod process;
#[path = "../../link/testing/proxy.rs"]
pub mod proxy;
pub mod simulated;
pub mod sums;
pub mod untested;
pub mod world;
pub mod writes;
