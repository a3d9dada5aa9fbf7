//! HTTP for people, NATS for devices: the broker and the operator's commands.
//!
//! [`broker`] is the broker as a handle: everything that HTTP handlers, the NATS front door and
//! the console may ask of it. [`http`] is its HTTP face, [`gateway`] its NATS face,
//! [`coordinator`] owns training jobs, [`store`] is the only place that knows JetStream's streams
//! and buckets, [`cli`] are the operator's commands.

pub mod broker;
pub mod cli;
pub mod coordinator;
pub mod error;
pub mod fleet;
pub mod free_pages;
pub mod gateway;
pub mod history;
pub mod http;
mod judge;
pub mod metrics;
pub mod nats_server;
pub mod record;
pub mod request;
mod room;
pub mod store;

#[cfg(test)]
#[path = "../../link/testing/server.rs"]
mod server;
#[cfg(test)]
mod testing;
