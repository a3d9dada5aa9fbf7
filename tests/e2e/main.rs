//! The system as a whole: real programs, a real nats-server, real data.

#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::print_stderr,
    reason = "a test program: it stops at the first surprise, equal answers are equal, and what is not tested is said"
)]

mod bad_files;
mod bad_requests;
mod commands;
mod faults;
mod main_job;
mod onnx_runtime;
mod operators;
mod story;
