//! Trainings that can go on after the agent was killed: one file per job and round.
//!
//! ```text
//! sha256:<of all that follows the line>\n
//! {"key": .., "step": ..}\n
//! a trainer's state
//! ```
//! Files appear by renaming, so that one that has its name is whole; it is checked all the same
//! when it is read. A key that is another's, or a damaged file, means to begin anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jobs::id::Digest;
use jobs::spec::TaskId;
use serde::{Deserialize, Serialize};

use crate::files;

/// Files that are kept, at most.
const FILES_MAX: usize = 16;
/// A training that was not offered again for so long will not be.
const AGE_MAX: Duration = Duration::from_hours(7 * 24);
/// Writing takes at most one of so many parts of the time.
const PARTS: u32 = 50;
const SUFFIX: &str = "checkpoint";

/// The directory of checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    dir: PathBuf,
    every: Duration,
    bytes_max: u64,
}

/// Where a training is, beside its trainer's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Stands for the work: what is trained, how, on what.
    pub(crate) key: Digest,
    /// Steps taken.
    pub(crate) step: u64,
    /// Sums over the batches of the epoch: the loss as the bits of an `f64`, right answers,
    /// examples.
    pub(crate) sums: (u64, u64, u64),
}

/// The checkpoints of one training.
#[derive(Debug)]
pub(crate) struct Saver {
    path: PathBuf,
    key: Digest,
    every: Duration,
    bytes_max: u64,
    saved: Instant,
    /// What the last one took.
    took: Duration,
    failed: bool,
}

impl Checkpoints {
    /// Uses what is there; what is old, or was half written, is removed. `every` zero writes none.
    pub(crate) fn open(dir: PathBuf, every: Duration, bytes_max: u64) -> Self {
        files::remove_parts(&dir);
        files::remove_older(&dir, AGE_MAX);
        Self { dir, every, bytes_max }
    }

    /// The checkpoints of a task, whichever attempt it is; those of the job's other rounds go.
    pub(crate) fn of(&self, task: &TaskId, key: Digest) -> Saver {
        let path = self.dir.join(format!("{}.{}.{SUFFIX}", task.job, task.round));
        let others = format!("{}.", task.job);
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_of_job = file.file_name().to_str().is_some_and(|it| it.starts_with(&others));
            if is_of_job && file.path() != path {
                let _ = fs::remove_file(file.path());
            }
        }
        Saver {
            path,
            key,
            every: self.every,
            bytes_max: self.bytes_max,
            saved: Instant::now(),
            took: Duration::ZERO,
            failed: false,
        }
    }
}

impl Saver {
    /// Where the same work was when it was saved last, with the trainer's state.
    pub(crate) fn load(&self) -> Option<(Position, Vec<u8>)> {
        let bytes = fs::read(&self.path).ok()?;
        let found = parse(bytes).filter(|(position, _)| position.key == self.key);
        if found.is_none() {
            tracing::warn!(file = %self.path.display(), "a checkpoint cannot be used: beginning anew");
            self.remove();
        }
        found
    }

    /// Whether it is time to save.
    pub(crate) fn is_due(&self) -> bool {
        self.every > Duration::ZERO && self.saved.elapsed() >= self.every.max(self.took * PARTS)
    }

    /// Saves; a disk that does not take it is no failure of the training.
    pub(crate) fn save(&mut self, step: u64, sums: (u64, u64, u64), state: &[u8]) {
        if self.every == Duration::ZERO {
            return;
        }
        let began = Instant::now();
        let position = Position { key: self.key.clone(), step, sums };
        match self.write(&position, state) {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(file = %self.path.display(), "no checkpoint: {error}");
                }
            }
        }
        self.took = began.elapsed();
        self.saved = Instant::now();
        tracing::debug!(step, took = ?self.took, "checkpoint");
    }

    /// Forgets the training.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn write(&self, position: &Position, state: &[u8]) -> std::io::Result<()> {
        let mut header = serde_json::to_vec(position)?;
        header.push(b'\n');
        let size = (header.len() + state.len()) as u64;
        if size > self.bytes_max {
            let problem = format!("{size} bytes, {} are allowed: --cache-bytes", self.bytes_max);
            return Err(std::io::Error::other(problem));
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        files::make_room(dir, Some(&self.path), FILES_MAX - 1, self.bytes_max - size);
        // A state may be large: it is not copied.
        let mut digest = link::digest::Hasher::new();
        digest.update(&header);
        digest.update(state);
        let first = format!("{}\n", digest.finish());
        files::replace(&self.path, &[first.as_bytes(), &header, state])
    }
}

fn parse(mut bytes: Vec<u8>) -> Option<(Position, Vec<u8>)> {
    let line = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n');
    let end = line(&bytes)?;
    let (digest, rest) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    if Digest::parse(digest).ok()? != link::digest::of(rest) {
        return None;
    }
    let length = line(rest)?;
    let position = serde_json::from_slice(&rest[..length]).ok()?;
    bytes.drain(..=end + 1 + length);
    Some((position, bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    fn task(job: &str, round: u32, attempt: u32) -> TaskId {
        format!("{job}-{round}-train-{attempt}").parse().unwrap()
    }

    fn key(seed: &[u8]) -> Digest {
        link::digest::of(seed)
    }

    fn open(dir: &tempfile::TempDir) -> Checkpoints {
        Checkpoints::open(dir.path().into(), Duration::from_millis(1), 10_000)
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        fs::read_dir(dir.path()).unwrap().count()
    }

    #[test]
    fn the_same_work_goes_on_whichever_attempt_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = open(&dir).of(&task("a", 3, 1), key(b"work"));
        assert_eq!(saver.load(), None);
        saver.save(7, (0.5_f64.to_bits(), 3, 4), b"state\nof bytes");
        saver.save(8, (0.25_f64.to_bits(), 5, 6), b"newer");
        let (position, state) = open(&dir).of(&task("a", 3, 2), key(b"work")).load().unwrap();
        assert_eq!((position.step, position.sums), (8, (0.25_f64.to_bits(), 5, 6)));
        assert_eq!(state, b"newer");
        assert_eq!(files(&dir), 1);
        // Work of another kind under the same name begins anew.
        let other = open(&dir).of(&task("a", 3, 2), key(b"other work"));
        assert_eq!((other.load(), files(&dir)), (None, 0));
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = open(&dir).of(&task("a", 1, 1), key(b"work"));
        saver.save(1, (0, 0, 0), b"state");
        let whole = fs::read(&saver.path).unwrap();
        for bad in [&whole[..whole.len() - 1], &whole[1..], b"", b"sha256:\n{}\n"] {
            fs::write(&saver.path, bad).unwrap();
            assert_eq!(saver.load(), None);
            assert!(!saver.path.exists());
        }
        fs::write(&saver.path, &whole).unwrap();
        assert!(saver.load().is_some());
    }

    #[test]
    fn what_is_old_or_of_another_round_goes() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = open(&dir);
        for (job, round) in [("a", 1), ("ab", 1), ("a-b", 1), ("b", 1)] {
            checkpoints.of(&task(job, round, 1), key(b"x")).save(1, (0, 0, 0), b"s");
        }
        fs::write(dir.path().join("a.2.part"), b"half").unwrap();
        checkpoints.of(&task("a", 2, 1), key(b"x"));
        assert_eq!(files(&dir), 3);
        let aged = File::options().append(true).open(dir.path().join("b.1.checkpoint")).unwrap();
        aged.set_modified(SystemTime::now() - AGE_MAX - Duration::from_secs(9)).unwrap();
        fs::write(dir.path().join("c.2.part"), b"half").unwrap();
        open(&dir);
        assert_eq!(files(&dir), 2);
    }

    #[test]
    fn files_are_few_and_small_together() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = open(&dir);
        for job in 0..30 {
            checkpoints.of(&task(&format!("j{job}"), 1, 1), key(b"x")).save(1, (0, 0, 0), b"s");
        }
        assert_eq!(files(&dir), FILES_MAX);
        checkpoints.of(&task("big", 1, 1), key(b"x")).save(1, (0, 0, 0), &[1; 9500]);
        let total: u64 =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 10_000 + 100, "{total}");
        let mut huge = checkpoints.of(&task("huge", 1, 1), key(b"x"));
        huge.save(1, (0, 0, 0), &[1; 10_001]);
        assert!(huge.failed && !huge.path.exists());
    }

    #[test]
    fn writing_takes_a_small_part_of_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = open(&dir).of(&task("a", 1, 1), key(b"x"));
        saver.saved = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        saver.took = Duration::from_millis(30);
        assert!(!saver.is_due());
        saver.took = Duration::from_millis(10);
        assert!(saver.is_due());
        saver.every = Duration::ZERO;
        assert!(!saver.is_due());
        saver.save(1, (0, 0, 0), b"s");
        assert_eq!(files(&dir), 0);
    }
}
