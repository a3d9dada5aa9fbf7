//! Plays devices for tests and benchmarks, until it is killed.

use clap::Parser as _;
use tests::simulated::{Options, play};

#[tokio::main]
async fn main() {
    play(Options::parse()).await;
}
