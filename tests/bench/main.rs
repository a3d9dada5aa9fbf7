//! Measures the promises of the README with real processes and prints them beside their bars.
//!
//! `bench [start] [answer] [round] [accuracy]`; without a word all but `accuracy`. Each figure
//! is taken together with its limit in one interleaved run, so that both meet the same noise.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring program: it says what it found and stops at the first surprise"
)]

mod accuracy;
mod answer;
mod figures;
mod round;
mod start;

#[tokio::main]
async fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.is_empty() {
        wanted = ["start", "answer", "round"].map(str::to_owned).to_vec();
    }
    println!("{}", figures::machine());
    for what in wanted {
        match what.as_str() {
            "start" => start::measure().await,
            "answer" => answer::measure().await,
            "round" => round::measure().await,
            "accuracy" => accuracy::measure().await,
            other => panic!("{other} is not measured here: start, answer, round, accuracy"),
        }
    }
}
