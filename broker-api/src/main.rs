//! The program `dunlin`.

use std::process::ExitCode;

/// The allocators of C libraries give large buffers back to the system at once and fetch them
/// again, which costs a round of a large model up to a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    broker_api::free_pages::suit(0);
    broker_api::cli::main()
}
