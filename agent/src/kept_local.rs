//! Parameters, or what an update left out of them, that stay on the device from round to round of
//! a job: one file per job and round.
//!
//! A round begins with those of the last round before it, so that another attempt at the same
//! round begins as the first one did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;

use jobs::id::JobId;
use jobs::report::{Failure, FailureCode};
use models::params::{Layout, Parameters, as_le_bytes};

use crate::files;

/// Files that are kept, at most.
const FILES_MAX: usize = 128;
const SUFFIX: &str = "safetensors";

/// The directory of these files.
#[derive(Debug)]
pub(crate) struct KeptLocal {
    dir: PathBuf,
    bytes_max: u64,
}

impl KeptLocal {
    /// Uses what is there; what a crash left half written is removed.
    pub(crate) fn open(dir: PathBuf, bytes_max: u64) -> Self {
        files::remove_parts(&dir);
        Self { dir, bytes_max }
    }

    /// The last round of a job before this one of which the device kept anything.
    pub(crate) fn last_before(&self, job: &JobId, round: u32) -> Option<u32> {
        self.last_to(job, round.checked_sub(1)?)
    }

    /// The same of this round or one before.
    pub(crate) fn last_to(&self, job: &JobId, round: u32) -> Option<u32> {
        self.rounds(job).into_iter().filter(|kept| *kept <= round).max()
    }

    /// What the device kept of a round of a job.
    pub(crate) fn of(&self, job: &JobId, round: u32) -> Option<Parameters> {
        let path = self.path(job, round);
        let read = fs::read(&path).map_err(|error| error.to_string());
        let parameters = read.and_then(|bytes| {
            Parameters::from_safetensors(&bytes).map_err(|error| error.to_string())
        });
        let damaged = |error: &String| {
            let file = path.display();
            tracing::warn!(%file, "parameters kept of round {round} cannot be used: {error}");
        };
        parameters.inspect_err(damaged).ok()
    }

    /// The same as a file, for whoever needs no more than a part at a time.
    pub(crate) fn file_of(&self, job: &JobId, round: u32) -> Option<File> {
        let path = self.path(job, round);
        let unreadable = |error: &std::io::Error| {
            tracing::warn!(file = %path.display(), "what is kept of round {round}: {error}");
        };
        File::open(&path).inspect_err(unreadable).ok()
    }

    /// Keeps parameters of a round. Of the job's others only those stay that it [follows](Follows).
    /// When there are too many, first those go that no round of their job begins with, then those of
    /// the oldest jobs.
    pub(crate) fn keep(
        &self,
        job: &JobId,
        round: u32,
        follows: Follows,
        parameters: &Parameters,
    ) -> Result<(), Failure> {
        let header = Layout::of(parameters).header();
        let values = parameters.items().iter().map(|item| as_le_bytes(&item.values));
        let parts: Vec<&[u8]> = std::iter::once(&header[..]).chain(values).collect();
        let size = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let path = self.path(job, round);
        let failed = |problem: String| {
            let message = format!("{}: parameters cannot be kept: {problem}", path.display());
            Failure::new(FailureCode::DiskFull, message)
        };
        if size > self.bytes_max {
            let max = self.bytes_max;
            return Err(failed(format!("{size} bytes, {max} are allowed: --cache-bytes")));
        }
        let known = self.rounds(job);
        for old in &known {
            if *old != round && !follows.keeps(*old, &known) {
                let _ = fs::remove_file(self.path(job, *old));
            }
        }
        let rest = (FILES_MAX - 1, self.bytes_max - size);
        let newest = self.newest(job, round);
        files::make_room_by(&self.dir, Some(&path), rest, |file| newest.contains(file));
        files::replace(&path, &parts).map_err(|error| failed(error.to_string()))
    }

    /// Files of the two newest rounds of each job, to which this round belongs: one of them is what the
    /// job's next round begins with.
    fn newest(&self, job: &JobId, round: u32) -> BTreeSet<PathBuf> {
        let mut rounds: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (job, round) in self.all().into_iter().chain([(job.to_string(), round)]) {
            rounds.entry(job).or_default().insert(round);
        }
        let newest = rounds.iter().flat_map(|(job, rounds)| {
            rounds.iter().rev().take(2).map(move |round| self.file(job, *round))
        });
        newest.collect()
    }

    fn rounds(&self, job: &JobId) -> Vec<u32> {
        let all = self.all().into_iter();
        all.filter(|(known, _)| known == job.as_str()).map(|(_, round)| round).collect()
    }

    /// Jobs and rounds of all files.
    fn all(&self) -> Vec<(String, u32)> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let read = |file: fs::DirEntry| {
            let name = file.file_name().into_string().ok()?;
            let (job, round) = name.strip_suffix(&format!(".{SUFFIX}"))?.rsplit_once('.')?;
            Some((job.to_owned(), round.parse().ok()?))
        };
        files.filter_map(read).collect()
    }

    fn path(&self, job: &JobId, round: u32) -> PathBuf {
        self.file(job.as_str(), round)
    }

    fn file(&self, job: &str, round: u32) -> PathBuf {
        self.dir.join(format!("{job}.{round}.{SUFFIX}"))
    }
}

/// What a round begins with, and which of what was kept before stays beside that.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Follows {
    /// The round of the same job that it begins with.
    pub(crate) round: Option<u32>,
    /// The oldest round from which others may go on. They begin with what was kept last until the
    /// round that they go on from.
    pub(crate) kept_since: Option<u32>,
}

impl Follows {
    /// The round that this one begins with, and nothing else.
    pub(crate) fn only(round: Option<u32>) -> Self {
        Self { round, kept_since: None }
    }

    /// Whether that of a round before stays, of all that are there. Those until the round that this
    /// one begins with have been begun with, too.
    fn keeps(self, old: u32, all: &[u32]) -> bool {
        let Some(begun) = self.round else { return false };
        let oldest = self.kept_since.unwrap_or(begun).min(begun);
        let oldest = all.iter().copied().filter(|round| *round <= oldest).max();
        old <= begun && oldest.is_none_or(|oldest| oldest <= old)
    }
}

#[cfg(test)]
mod tests {
    use models::params::Parameter;

    use super::*;

    fn of(value: f32) -> Parameters {
        let item = Parameter { name: "scale".to_owned(), shape: vec![1], values: vec![value] };
        Parameters::new(vec![item]).unwrap()
    }

    fn job(name: &str) -> JobId {
        name.parse().unwrap()
    }

    fn before(kept: &KeptLocal, name: &str, round: u32) -> Option<Parameters> {
        kept.of(&job(name), kept.last_before(&job(name), round)?)
    }

    fn keep(kept: &KeptLocal, name: &str, round: u32, value: f32) {
        let began_with = kept.last_before(&job(name), round);
        kept.keep(&job(name), round, Follows::only(began_with), &of(value)).unwrap();
    }

    #[test]
    fn a_round_begins_with_what_the_last_one_left_whichever_attempt_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptLocal::open(dir.path().into(), 10_000);
        assert_eq!(before(&kept, "a", 1), None);
        for round in [1_u8, 2, 4] {
            keep(&kept, "a", round.into(), round.into());
            keep(&kept, "a1", round.into(), -1.0);
        }
        // Another attempt at the last one.
        for _ in 0..3 {
            assert_eq!(before(&kept, "a", 4), Some(of(2.0)));
            keep(&kept, "a", 4, 4.5);
        }
        assert_eq!(before(&kept, "a", 5), Some(of(4.5)));
        assert_eq!(before(&kept, "a", 2), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        fs::write(dir.path().join("a.5.part"), b"half").unwrap();
        KeptLocal::open(dir.path().into(), 10_000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        fs::write(kept.path(&job("a"), 4), b"half").unwrap();
        assert_eq!(before(&kept, "a", 5), None);
    }

    #[test]
    fn files_are_few_and_small_together() {
        let dir = tempfile::tempdir().unwrap();
        let size = of(1.0).to_safetensors().len() as u64;
        let kept = KeptLocal::open(dir.path().into(), 3 * size);
        for number in 0..9 {
            keep(&kept, &format!("j{number}"), 1, 1.0);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let none = KeptLocal::open(dir.path().join("none"), 3 * size);
        let failure = none.keep(&job("a"), 1, Follows::default(), &of(1.0)).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskFull);
        let small = KeptLocal::open(dir.path().into(), size - 1);
        let failure = small.keep(&job("a"), 1, Follows::default(), &of(1.0)).unwrap_err();
        assert!(failure.message.contains("--cache-bytes"), "{failure:?}");
    }

    #[test]
    fn what_others_may_go_on_from_stays() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptLocal::open(dir.path().into(), 10_000);
        let there = || {
            let mut rounds = kept.rounds(&job("a"));
            rounds.sort_unstable();
            rounds
        };
        // The update of round 3 does not count; of three rounds each is kept.
        for (round, begun, kept_since, expected) in [
            (1, None, None, &[1][..]),
            (2, Some(1), Some(1), &[1, 2]),
            (3, Some(2), Some(1), &[1, 2, 3]),
            (4, Some(2), Some(2), &[2, 4]),
            (6, Some(4), Some(3), &[2, 4, 6]),
            (7, Some(6), Some(4), &[4, 6, 7]),
            (9, Some(7), Some(8), &[7, 9]),
            (10, Some(9), None, &[9, 10]),
            (11, None, Some(8), &[11]),
        ] {
            let follows = Follows { round: begun, kept_since };
            kept.keep(&job("a"), round, follows, &of(1.0)).unwrap();
            assert_eq!(there(), expected, "round {round}");
        }
    }

    #[test]
    fn what_only_others_may_need_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let size = of(1.0).to_safetensors().len() as u64;
        let kept = KeptLocal::open(dir.path().into(), 5 * size);
        keep(&kept, "old", 1, 1.0);
        for round in 1..=6_u32 {
            let follows = Follows { round: round.checked_sub(1), kept_since: Some(1) };
            kept.keep(&job("a"), round, follows, &of(1.0)).unwrap();
        }
        let mut rounds = kept.rounds(&job("a"));
        rounds.sort_unstable();
        assert_eq!((rounds, kept.rounds(&job("old"))), (vec![3, 4, 5, 6], vec![1]));
    }
}
