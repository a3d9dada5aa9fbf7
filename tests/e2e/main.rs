//! The system as a whole: real programs, a real nats-server, real data.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test program: it stops at the first surprise, and what is not tested is said"
)]

use tests::sums;

mod bad_files;
mod bad_requests;
mod bodies;
mod cluster;
mod commands;
mod continued;
mod deploy;
mod disk;
mod download;
mod emulated;
mod engines;
mod evaluate;
mod faults;
mod formats;
mod kills;
mod lost_store;
mod main_job;
mod network;
mod onnx_runtime;
mod operators;
mod plans;
mod private;
mod secure;
mod service;
mod story;
mod systemd;
mod transfer;
