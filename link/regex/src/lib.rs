//! `regex-lite` under the name of `regex`, which `async-nats` asks for.
//!
//! It checks names of buckets and reads versions and credentials with it, all of them ASCII. The
//! automata and tables of Unicode that `regex` has for long texts would be 0.9 MB of each agent.

pub use regex_lite::*;
