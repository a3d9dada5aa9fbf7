//! Files of the state directory that are whole whenever they are there, and few.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

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

/// Puts bytes into a file, which appears by renaming. A loss of power may take it: whoever reads it
/// has to know its digest.
///
/// # Errors
/// When the disk does not take it.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// The same over a file that is not needed any more, which saves the system to find new room.
///
/// # Errors
/// When the disk does not take it; the other file is gone all the same.
pub(crate) fn put_over(old: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let written = fs::rename(old, &part)
        .and_then(|()| File::options().write(true).open(&part))
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.set_len(bytes.len() as u64)
        })
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Removes what was not written for so long.
pub(crate) fn remove_older(dir: &Path, age_max: Duration) {
    for file in fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = file.metadata().and_then(|it| it.modified()).map(|at| at.elapsed());
        if age.is_ok_and(|age| age.is_ok_and(|age| age > age_max)) {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Removes what a crash left half written.
pub(crate) fn remove_parts(dir: &Path) {
    for file in fs::read_dir(dir).into_iter().flatten().flatten() {
        if file.path().extension().is_some_and(|extension| extension == "part") {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Removes the oldest of a directory's files but `spared` until they are `count` at most and have
/// `bytes` at most; how many went.
pub(crate) fn make_room(dir: &Path, spared: Option<&Path>, count: usize, bytes: u64) -> usize {
    make_room_by(dir, spared, (count, bytes), |_| false)
}

/// The same, where those that are needed go last.
pub(crate) fn make_room_by(
    dir: &Path,
    spared: Option<&Path>,
    (count, bytes): (usize, u64),
    is_needed: impl Fn(&Path) -> bool,
) -> usize {
    let mut files: Vec<(bool, SystemTime, u64, PathBuf)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|file| spared != Some(&*file.path()))
        .filter_map(|file| {
            let metadata = file.metadata().ok()?;
            let (modified, path) = (metadata.modified().ok()?, file.path());
            Some((is_needed(&path), modified, metadata.len(), path))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, _, size, _)| size).sum();
    let (mut left, before) = (files.len(), files.len());
    for (_, _, size, path) in files {
        if total <= bytes && left <= count {
            break;
        }
        if fs::remove_file(path).is_ok() {
            total -= size;
            left -= 1;
        }
    }
    before - left
}
