//! The log, on standard error: lines for people, or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_new(filter).map_err(|_| ConfigError::Value {
        option: "--log-level",
        value: config.log_level.clone(),
        expected: "error, warn, info, debug, trace, or module=level",
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A logger that is there already, in a test, stays.
    let _ = match config.log {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
