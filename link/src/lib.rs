//! The way to NATS, the same for agents and brokers.
//!
//! [`connect`] opens connections, [`layout`] knows the streams and buckets, [`blobs`] moves blobs
//! by digest, [`limit`] how fast,
//! [`publish`] sends messages that are sure to fit. Holds no rule about jobs.

pub mod blobs;
pub mod connect;
pub mod digest;
pub mod layout;
pub mod limit;
pub mod publish;
pub mod secret;

#[cfg(test)]
#[path = "../testing/proxy.rs"]
mod proxy;
#[cfg(test)]
#[path = "../testing/server.rs"]
mod server;
