//! The command line: runs the agent until a signal ends it, or one of the commands.

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::AgentError;
use crate::config::{Args, Command, Config};

/// Does what the command line says; exit code 0: done, 2: wrong usage, or an agent that cannot run.
///
/// What is generic is compiled where it is called, and the program itself is linked at a level of
/// optimisation that makes code larger: hence not in `main.rs`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        Some(Command::Bench(bench)) => return show(crate::bench::run(&bench)),
        Some(Command::Probe(probe)) => {
            return show::<std::convert::Infallible>(Ok(crate::engines::table::run(&probe)));
        }
        Some(Command::Service(service)) => return manage(&service),
        None => {}
    }
    let program = std::env::current_exe().ok();
    let config = Config::resolve(args.settings).map(|config| Config { program, ..config });
    match config.map_err(AgentError::from).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have begun yet")]
            {
                eprintln!("{}dunlin-agent: {error}", crate::systemd::mark(tracing::Level::ERROR));
            }
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the command is for")]
fn show<E: std::fmt::Display>(result: Result<String, E>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stderr, reason = "what the command is for")]
fn manage(service: &crate::service::ServiceArgs) -> ExitCode {
    match crate::service::run(service, &mut std::io::stdout()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(config: Config) -> Result<(), AgentError> {
    crate::logging::start(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dunlin")
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Runtime)?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        crate::run(config, shutdown).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    outcome
}
