//! The part of the cache on disk: one file per blob, named by the hexadecimal digest.
//!
//! Files appear by renaming, so that one that has its name is whole; each is checked when it is
//! read, since disks lie.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use jobs::id::Digest;

use crate::files;

/// A directory of blobs; copies share one lock.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    dir: PathBuf,
    bytes_max: u64,
    writing: Arc<Mutex<()>>,
}

/// Why a blob is not on disk.
#[derive(Debug)]
pub(super) enum DiskError {
    /// No space, also after everything else was removed.
    Full { dir: PathBuf },
    /// Something else is wrong with the disk.
    Failed { path: PathBuf, source: std::io::Error },
}

impl Disk {
    /// Uses what is there; what a crash left half written is removed.
    pub(super) fn open(dir: PathBuf, bytes_max: u64) -> Self {
        files::remove_parts(&dir);
        Self { dir, bytes_max, writing: Arc::default() }
    }

    /// A blob whose bytes match; a file that does not is removed.
    pub(super) fn read(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.dir.join(digest.hex());
        let bytes = fs::read(&path).ok()?;
        if link::digest::of(&bytes) != *digest {
            tracing::warn!(%digest, "cached blob is damaged: fetching it again");
            let _ = fs::remove_file(&path);
            return None;
        }
        if let Ok(file) = File::options().append(true).open(&path) {
            // The time of the last use decides what goes first.
            let _ = file.set_modified(SystemTime::now());
        }
        Some(bytes.into())
    }

    /// Keeps a blob, removing others to stay within the bound; one above the bound is not kept.
    pub(super) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), DiskError> {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bytes.len() as u64;
        if size > self.bytes_max {
            return Ok(());
        }
        files::make_room(&self.dir, None, usize::MAX, self.bytes_max - size);
        let path = self.dir.join(digest.hex());
        let part = path.with_extension("part");
        let mut written = write_whole(&part, bytes);
        let make_room = || files::make_room(&self.dir, Some(&part), usize::MAX, 0);
        if written.as_ref().is_err_and(is_full) && make_room() > 0 {
            let _ = fs::remove_file(&part);
            written = write_whole(&part, bytes);
        }
        let written = written.and_then(|()| fs::rename(&part, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&part);
            if is_full(&source) {
                DiskError::Full { dir: self.dir.clone() }
            } else {
                DiskError::Failed { path, source }
            }
        })
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.flush()
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(seed: u8, size: usize) -> (Digest, Vec<u8>) {
        let bytes = vec![seed; size];
        (link::digest::of(&bytes), bytes)
    }

    fn age(disk: &Disk, digest: &Digest, seconds: u64) {
        let file = File::options().append(true).open(disk.dir.join(digest.hex())).unwrap();
        let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
        file.set_modified(then).unwrap();
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().into(), 300);
        let blobs: Vec<_> = (0..4).map(|seed| blob(seed, 100)).collect();
        for (index, (digest, bytes)) in blobs[..3].iter().enumerate() {
            disk.write(digest, bytes).unwrap();
            age(&disk, digest, 100 - index as u64);
        }
        assert!(disk.read(&blobs[0].0).is_some());
        disk.write(&blobs[3].0, &blobs[3].1).unwrap();
        let there: Vec<bool> =
            blobs.iter().map(|(digest, _)| disk.read(digest).is_some()).collect();
        assert_eq!(there, [true, false, true, true]);
        let (large, bytes) = blob(9, 301);
        disk.write(&large, &bytes).unwrap();
        assert!(disk.read(&large).is_none());
        assert!(disk.read(&blobs[3].0).is_some());
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().into(), 1000);
        let (digest, bytes) = blob(1, 100);
        disk.write(&digest, &bytes).unwrap();
        fs::write(dir.path().join(digest.hex()), vec![1; 99]).unwrap();
        assert!(disk.read(&digest).is_none());
        assert!(!dir.path().join(digest.hex()).exists());
        disk.write(&digest, &bytes).unwrap();
        assert_eq!(disk.read(&digest).unwrap(), bytes);
    }

    #[test]
    fn a_full_disk_is_told_apart_and_leaves_nothing_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().into(), 1000);
        let (digest, bytes) = blob(1, 100);
        let part = dir.path().join(digest.hex()).with_extension("part");
        std::os::unix::fs::symlink("/dev/full", &part).unwrap();
        let error = disk.write(&digest, &bytes).unwrap_err();
        assert!(matches!(error, DiskError::Full { .. }), "{error:?}");
        assert!(!part.exists() && disk.read(&digest).is_none());
        disk.write(&digest, &bytes).unwrap();
        assert!(disk.read(&digest).is_some());
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ab.part"), b"half").unwrap();
        Disk::open(dir.path().into(), 1000);
        assert!(!dir.path().join("ab.part").exists());
    }
}
