//! The real helper, asked through its pipes as an agent asks it.
//!
//! Engines whose library or adapter is absent are not tested, and the tests say so:
//! `scripts/setup.sh tests` gets ONNX Runtime and a software Vulkan adapter.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it says what it measured and stops at the first surprise"
)]

mod conformance;
mod probing;
mod process;
mod serving;
