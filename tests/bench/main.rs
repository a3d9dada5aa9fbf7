//! Measures the promises of the README with real processes and prints them beside their bars.
//!
//! `bench [start] [answer] [round] [memory] [bytes] [aggregate] [attack] [takeover] [scale] [infer]
//! [train] [secagg] [privacy] [accuracy] [reference]`; without a word those that take a quarter of
//! an hour together. Each figure is taken together with its limit in one interleaved run, so that
//! both meet the same noise. At the end are the bars that were missed; with `BENCH_STRICT=1` the exit
//! code is 3 then.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring program: it says what it found and stops at the first surprise"
)]

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

mod accuracy;
mod aggregate;
mod answer;
mod attack;
mod bytes;
mod draws;
mod figures;
mod infer;
mod memory;
mod privacy;
mod pytorch;
mod reference;
mod round;
mod scale;
mod secagg;
mod start;
mod takeover;
mod train;

/// The exit code of bars that were missed, if it is to tell.
const MISSED: u8 = 3;

/// Measures the promises of the README.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; start, answer, round, infer and train when absent
    #[arg(value_enum)]
    sections: Vec<Section>,
    #[command(flatten)]
    attack: attack::Options,
    #[command(flatten)]
    bytes: bytes::Options,
    #[command(flatten)]
    memory: memory::Options,
    #[command(flatten)]
    infer: infer::Options,
    #[command(flatten)]
    train: train::Options,
    #[command(flatten)]
    secagg: secagg::Options,
    #[command(flatten)]
    reference: reference::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// The agent's start and its memory when idle
    Start,
    /// An answer over NATS and HTTP
    Answer,
    /// A round without training
    Round,
    /// What rounds of a large model take of memory, by strategy
    Memory,
    /// The mean of ten large updates in memory
    Aggregate,
    /// Encodings of updates: bytes, time, accuracy
    Bytes,
    /// Digits with devices that send the opposite of what they learnt
    Attack,
    /// How soon a killed broker or device is missed
    Takeover,
    /// A round of a thousand devices, and ten thousand that are there
    Scale,
    /// An answer of each engine beside ONNX Runtime's
    Infer,
    /// Training steps beside PyTorch
    Train,
    /// Secure aggregation, device and server
    Secagg,
    /// Digits with differential privacy: accuracy beside epsilon
    Privacy,
    /// Federated against central training
    Accuracy,
    /// ResNet-50 on CIFAR-10 beside PyTorch
    Reference,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.sections.is_empty() {
        args.sections =
            vec![Section::Start, Section::Answer, Section::Round, Section::Infer, Section::Train];
    }
    println!("{}", figures::machine());
    for section in &args.sections {
        match section {
            Section::Start => start::measure().await,
            Section::Answer => answer::measure().await,
            Section::Round => round::measure().await,
            Section::Memory => memory::measure(&args.memory).await,
            Section::Aggregate => aggregate::measure(),
            Section::Bytes => bytes::measure(&args.bytes).await,
            Section::Attack => attack::measure(&args.attack).await,
            Section::Takeover => takeover::measure().await,
            Section::Scale => scale::measure().await,
            Section::Infer => infer::measure(&args.infer).await,
            Section::Train => train::measure(&args.train),
            Section::Secagg => secagg::measure(&args.secagg),
            Section::Privacy => privacy::measure().await,
            Section::Accuracy => accuracy::measure().await,
            Section::Reference => reference::measure(&args.reference).await,
        }
    }
    let held = figures::conclude();
    let is_strict = std::env::var_os("BENCH_STRICT").is_some_and(|value| value == "1");
    if is_strict && !held { ExitCode::from(MISSED) } else { ExitCode::SUCCESS }
}
