//! `dunlin-tract`: runs models on tract, for the agent that started it.
//!
//! `serve tract` speaks frames on standard input and output until the input is closed. Exit codes:
//! 0 done, 1 the pipe failed, 2 wrong usage, 101 a panic.

use std::process::ExitCode;

use tract_helper::{ENGINE, OnProcessor};

const PROGRAM: &str = "dunlin-tract";

/// See the agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match *arguments {
        ["serve", ENGINE] => {
            helper::run(ENGINE, || Ok(Box::new(OnProcessor::start(helper::threads()?))))
        }
        ["--version"] => {
            #[expect(clippy::print_stdout, reason = "what the flag is for")]
            {
                println!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
            }
            Ok(())
        }
        _ => return helper::misused(PROGRAM, "serve tract"),
    };
    helper::ended(PROGRAM, outcome)
}
