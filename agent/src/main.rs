//! `dunlin-agent`: reads the command line, runs the agent until a signal ends it.

use std::process::ExitCode;

use agent::config::{Args, Command, Config};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

/// The allocators of C libraries give large buffers back to the system at once and fetch them
/// again, which costs a round of a large model up to a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        Some(Command::Bench(bench)) => return show(agent::bench::run(&bench)),
        Some(Command::Probe(probe)) => {
            return show::<std::convert::Infallible>(Ok(agent::engines::table::run(&probe)));
        }
        Some(Command::Service(service)) => return manage(&service),
        None => {}
    }
    match Config::resolve(args.settings).map_err(agent::AgentError::from).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have begun yet")]
            {
                eprintln!("dunlin-agent: {error}");
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
fn manage(service: &agent::service::ServiceArgs) -> ExitCode {
    match agent::service::run(service, &mut std::io::stdout()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(config: Config) -> Result<(), agent::AgentError> {
    agent::logging::start(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dunlin")
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .map_err(agent::AgentError::Runtime)?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(agent::AgentError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(agent::AgentError::Runtime)?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        agent::run(config, shutdown).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    outcome
}
