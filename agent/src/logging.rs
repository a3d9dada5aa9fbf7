//! The log, on standard error: lines for people, or JSON. Those for the journal have their level as
//! it wants it, and no time, which it has itself.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Config, ConfigError, LogFormat};
use crate::systemd;

/// Starts logging.
///
/// # Errors
/// When the level is not one.
pub fn start(config: &Config) -> Result<(), ConfigError> {
    let filter = match config.log_level.as_str() {
        // The libraries' own words are for those who ask for them. The client's are the link's
        // state, but told at each attempt.
        level @ ("error" | "warn" | "info" | "debug" | "trace") => {
            format!("warn,async_nats=off,agent={level},link={level}")
        }
        custom => custom.to_owned(),
    };
    let filter = filter.parse::<Targets>().map_err(|_| ConfigError::Value {
        option: "--log-level",
        value: config.log_level.clone(),
        expected: "error, warn, info, debug, trace, or module=level",
    })?;
    let journal = systemd::reads_the_log();
    let writer = if journal {
        BoxMakeWriter::new(systemd::Journal)
    } else {
        BoxMakeWriter::new(std::io::stderr)
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal());
    // A logger that is there already, in a test, stays.
    let _ = match config.log {
        LogFormat::Human if journal => {
            builder.with_target(false).without_time().finish().with(filter).try_init()
        }
        LogFormat::Human => builder.with_target(false).finish().with(filter).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(filter).try_init(),
    };
    Ok(())
}
