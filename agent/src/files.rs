//! Files of the state directory that are whole whenever they are there, and few.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Puts `parts` one behind another into a file, which appears by renaming; it outlives a loss of
/// power.
///
/// # Errors
/// When the disk does not take it; what was there before is there still.
pub(crate) fn replace(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let written = write(&part, parts).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written?;
    // The name too.
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn write(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

/// Removes the oldest files beside `path` until with it there are `count` at most, and the others
/// have `bytes` at most.
pub(crate) fn make_room(path: &Path, count: usize, bytes: u64) {
    let dir = path.parent().map(fs::read_dir);
    let mut files: Vec<(SystemTime, u64, PathBuf)> = dir
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .filter(|file| file.path() != path)
        .filter_map(|file| {
            let metadata = file.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), file.path()))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    let mut left = files.len();
    for (_, size, path) in files {
        if total <= bytes && left < count {
            break;
        }
        let _ = fs::remove_file(path);
        total -= size;
        left -= 1;
    }
}
