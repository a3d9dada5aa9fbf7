//! A helper: a program that holds engines for the agent that started it, in a process of its own.
//! What fails there, or takes too much memory, takes that process along and no other.
//!
//! Here is what helpers have in common, whichever engines they hold: [`serve`] answers an agent's
//! frames, [`batch`] runs batches that a model takes in pieces, [`engine`] is what is asked of an
//! engine, [`streams`] are the pipes, [`memory`] is for what is too long for them.

use std::fmt::Display;
use std::process::ExitCode;

use self::engine::{Engine, Refusal};

pub mod batch;
pub mod engine;
pub mod memory;
pub mod serve;
pub mod streams;

/// Starts an engine and serves it on standard input and output until the input is closed.
///
/// # Errors
/// [`Refusal`] when the engine cannot be started, or the pipe broke.
pub fn run(
    name: &str,
    start: impl FnOnce() -> Result<Box<dyn Engine>, Refusal>,
) -> Result<(), Refusal> {
    end_first();
    let replies = streams::take_stdout().map_err(Refusal::of)?;
    let requests = streams::take_stdin().map_err(Refusal::of)?;
    let memory = memory::Memory::open();
    let started = start()?;
    serve::serve(name, started.as_ref(), requests, replies, memory).map_err(Refusal::of)
}

/// Has the kernel end this process before all others where memory lacks: models are in it, and the
/// agent goes on without. Source: `proc_pid_oom_score_adj(5)`; to be ended sooner is allowed to all.
fn end_first() {
    // A system without that ends whom it likes.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Threads of a run on the processor.
const THREADS: &str = "DUNLIN_THREADS";

/// How many threads a run on the processor takes: the number in `DUNLIN_THREADS`, or one for each
/// processor.
///
/// # Errors
/// [`Refusal`] when the variable holds something else.
pub fn threads() -> Result<usize, Refusal> {
    match std::env::var(THREADS) {
        Ok(text) => match text.parse() {
            Ok(threads @ 1..) => Ok(threads),
            Ok(0) | Err(_) => {
                Err(Refusal::of(format!("{THREADS} is {text:?}, expected a number from 1 on")))
            }
        },
        Err(_) => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
    }
}

/// The exit code of a program after what it did: 0, or 1 with the reason in its log, whose last
/// line the agent keeps.
pub fn ended(program: &str, outcome: Result<(), Refusal>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(program, reason);
            ExitCode::FAILURE
        }
    }
}

/// Shows how a program is used; the exit code of wrong usage, 2.
pub fn misused(program: &str, usage: &str) -> ExitCode {
    say(program, format!("usage: {program} {usage}"));
    ExitCode::from(2)
}

#[expect(clippy::print_stderr, reason = "the agent keeps what a helper says last")]
fn say(program: &str, text: impl Display) {
    eprintln!("{program}: {text}");
}
