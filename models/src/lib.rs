//! What is computed on and for a Dunlin fleet: models, training, aggregation, data sets.
//!
//! Bytes and numbers in, bytes and numbers out: no I/O, no clock, no async, and no knowledge of
//! jobs, devices or NATS. Read in this order: [`tensor`], [`onnx`], [`graph`], [`zoo`],
//! [`params`], [`train`], [`engine`], [`dataset`], [`picture`], [`federated`], [`artifact`].

pub mod artifact;
pub mod dataset;
pub mod digest;
pub mod engine;
pub mod federated;
pub mod graph;
pub mod onnx;
pub mod params;
pub mod picture;
pub mod tensor;
pub mod train;
pub mod zoo;

mod kernels;
