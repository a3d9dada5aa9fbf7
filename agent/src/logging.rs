//! The log, on standard error: lines for people, or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Config, ConfigError, LogFormat};

/// Starts logging.
///
/// # Errors
/// When the level is not one.
pub fn start(config: &Config) -> Result<(), ConfigError> {
    let filter = match config.log_level.as_str() {
        // The libraries' own words are for those who ask for them.
        level @ ("error" | "warn" | "info" | "debug" | "trace") => {
            format!("warn,async_nats=error,agent={level},link={level}")
        }
        custom => custom.to_owned(),
    };
    let filter = filter.parse::<Targets>().map_err(|_| ConfigError::Value {
        option: "--log-level",
        value: config.log_level.clone(),
        expected: "error, warn, info, debug, trace, or module=level",
    })?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A logger that is there already, in a test, stays.
    let _ = match config.log {
        LogFormat::Human => builder.with_target(false).finish().with(filter).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(filter).try_init(),
    };
    Ok(())
}
