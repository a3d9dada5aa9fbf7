//! The program `dunlin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    broker_api::cli::main()
}
