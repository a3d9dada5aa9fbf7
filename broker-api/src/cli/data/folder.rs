//! A data set's files on disk.

use std::path::Path;

use datasets::Folder;
use models::dataset::{self, Dataset, Limits};

use crate::cli::failure::CliError;

/// Bytes of memory that examples may take.
const MEMORY: u64 = 16 << 30;

/// The data set of a folder, or of a file alone.
///
/// # Errors
/// When it cannot be read or is no data set.
pub(super) fn read(from: &Path) -> Result<Dataset, CliError> {
    let folder = Folder::open(from).map_err(|error| CliError::file(from, &error))?;
    let limits = Limits { bytes: usize::try_from(MEMORY).unwrap_or(usize::MAX / 2) };
    dataset::decode(&folder, limits)
        .map_err(|error| CliError::usage(format!("{}: {error}", from.display()), ""))
}
