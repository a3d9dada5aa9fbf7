//! `dunlin data`
use super::{failure::CliError, output::Output};
use clap::Args;
#[derive(Debug, Args)]
pub(super) struct DataArgs {}
pub(super) fn run(_args: &DataArgs, _output: &mut Output) -> Result<(), CliError> {
    Ok(())
}
