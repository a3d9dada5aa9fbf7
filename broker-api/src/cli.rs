//! The operator's commands, over HTTP; and `dunlin serve`.
//!
//! [`main`] is the program. Every command writes to an [`output::Output`] and ends with a
//! [`failure::CliError`] that knows its exit code: 0 done, 1 the job failed, 2 wrong usage or no
//! broker. Commands know the API only by HTTP; `serve` and `up` run the broker itself.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::broker::trial;
use failure::CliError;
use output::Output;

mod client;
mod data;
mod devices;
mod failure;
mod follow;
mod infer;
mod jobs;
mod models;
mod nats;
mod output;
mod picture;
mod rounds;
mod serve;
mod sse;
mod table;
mod train;

/// Edge devices learn together and answer together.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version, about = ABOUT, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const ABOUT: &str = "Edge devices learn together and answer together.";
const AFTER_HELP: &str = "\
First steps:
  dunlin up                                   a broker and NATS on this machine
  dunlin data digits --out digits             handwritten digits for three devices
  dunlin-agent --nats nats://127.0.0.1:4222 --name device-1 --data digits=digits/device-1
  dunlin train --dataset digits --model mlp --rounds 5
  dunlin infer --model mlp digits/held-out/*.png

Exit codes: 0 done, 1 the job failed, 2 wrong usage or no broker.";

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The broker's HTTP address.
    #[arg(
        long,
        global = true,
        env = "DUNLIN_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,
    /// Print JSON: one document, or one per line where more follows.
    #[arg(long, global = true)]
    json: bool,
    /// How log lines look; they go to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Human)]
    log: LogFormat,
    /// How much is logged, such as `debug` or `broker_api=debug,info`.
    #[arg(long, global = true, env = "DUNLIN_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker; with a nats-server of its own unless --nats is given.
    Serve(serve::ServeArgs),
    /// Run a broker and a nats-server that devices can reach.
    Up(serve::UpArgs),
    /// Show the devices.
    Devices(devices::DevicesArgs),
    /// Show, follow, cancel and retry jobs.
    Jobs(jobs::JobsArgs),
    /// Train a model on the devices, round by round.
    Train(Box<train::Given>),
    /// Show and export the rounds of a training.
    Rounds(rounds::RoundsArgs),
    /// Ask a model.
    Infer(infer::InferArgs),
    /// List, show, push, pull and remove models.
    Models(models::ModelsArgs),
    /// Prepare data sets for devices.
    Data(data::DataArgs),
    /// Talk to NATS itself, on machines without the nats tool.
    Nats(nats::NatsArgs),
    /// Load the model on standard input within so many bytes of memory, for a broker.
    #[command(name = trial::COMMAND, hide = true)]
    TryModel { memory: u64 },
}

/// The program: parses the arguments, runs the command, prints what went wrong.
pub fn main() -> ExitCode {
    run(std::env::args_os(), Output::stdout)
}

fn run<I, T>(arguments: I, output: impl FnOnce(bool) -> Output) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match parse(arguments.into_iter().map(Into::into).collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be done when even this cannot be written.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let json = cli.global.json;
    let mut output = output(json);
    let done = start_log(&cli).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CliError::usage(error.to_string(), ""))?;
        let done = runtime.block_on(perform(cli, &mut output));
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(json);
            ExitCode::from(error.code)
        }
    }
}

/// Parses the arguments. What is wrong with flags of `dunlin train` is found all at once, and told by the
/// command.
fn parse(mut words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let (mut mistyped, mut first) = (Vec::new(), None);
    let mut cli = loop {
        let error = match Cli::try_parse_from(&words) {
            Ok(cli) => break cli,
            Err(error) => error,
        };
        if !train::mistyped::set_aside(&mut words, &error, &mut mistyped) {
            return Err(error);
        }
        first.get_or_insert(error);
    };
    if let Command::Train(given) = &mut cli.command {
        given.mistyped = mistyped;
    } else if let Some(error) = first {
        return Err(error);
    }
    Ok(cli)
}

fn start_log(cli: &Cli) -> Result<(), CliError> {
    let usual = match cli.command {
        Command::Serve(_) | Command::Up(_) => "info",
        Command::Devices(_)
        | Command::Jobs(_)
        | Command::Train(_)
        | Command::Rounds(_)
        | Command::Infer(_)
        | Command::Models(_)
        | Command::Data(_)
        | Command::Nats(_)
        | Command::TryModel { .. } => "warn",
    };
    let level = cli.global.log_level.as_deref().unwrap_or(usual);
    let filter = level.parse::<Targets>().map_err(|error| {
        CliError::usage(
            format!("--log-level {level}: {error}"),
            "use error, warn, info, debug or trace, or module=level pairs",
        )
    })?;
    let builder =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(std::io::stderr);
    let done = match cli.global.log {
        LogFormat::Human => {
            builder.with_ansi(std::io::stderr().is_terminal()).finish().with(filter).try_init()
        }
        LogFormat::Json => builder.json().finish().with(filter).try_init(),
    };
    // A second start in one process (tests) keeps the first log.
    drop(done);
    Ok(())
}

async fn perform(cli: Cli, output: &mut Output) -> Result<(), CliError> {
    let client = || client::Client::new(&cli.global.server);
    match cli.command {
        Command::Serve(args) => serve::serve(args, output).await,
        Command::Up(args) => serve::up(args, output).await,
        Command::Devices(args) => devices::run(args, &client()?, output).await,
        Command::Jobs(args) => jobs::run(args, &client()?, output).await,
        Command::Train(args) => train::run(*args, &client()?, output).await,
        Command::Rounds(args) => rounds::run(args, &client()?, output).await,
        Command::Infer(args) => infer::run(args, &client()?, output).await,
        Command::Models(args) => models::run(args, &client()?, output).await,
        Command::Data(args) => data::run(&args, output),
        Command::Nats(args) => nats::run(args, output).await,
        Command::TryModel { memory } => Ok(trial::serve(memory)?),
    }
}

#[cfg(test)]
mod tests;
