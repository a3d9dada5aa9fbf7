//! What a device keeps of a secure aggregation, two files for each job and round: its update in
//! levels, and the session, which is the seed of its secrets and what it was asked.
//!
//! An update is written once, before the seed; what is asked is written before it is answered. So
//! an agent that was started again gives the same answers, and to another question none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs::id::{JobId, RoundNumber};
use jobs::report::{Failure, FailureCode, UpdateReport};
use secagg::{Client, Inbox, Roster, Secret, UnmaskRequest};
use serde::{Deserialize, Serialize};

use crate::files;

/// Sessions that are kept, at most.
const SESSIONS_MAX: usize = 16;
/// A round that did not end for so long will not.
const AGE_MAX: Duration = Duration::from_hours(7 * 24);
const LEVELS: &str = "levels";
const SESSION: &str = "session";

/// The directory of these files.
#[derive(Debug)]
pub(crate) struct MaskingStore {
    dir: PathBuf,
    bytes_max: u64,
    /// Held while a session is begun, and while it is asked.
    asking: Mutex<()>,
}

/// A session of a device, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    seed: [u8; 32],
    /// What the round was told of the training.
    pub(crate) report: UpdateReport,
    /// Devices whose sum has room in 32 bits.
    pub(crate) devices: u32,
    #[serde(default)]
    pub(crate) roster: Option<Roster>,
    #[serde(default)]
    pub(crate) inbox: Option<Inbox>,
    #[serde(default)]
    pub(crate) request: Option<UnmaskRequest>,
}

impl Session {
    /// A new one with a fresh seed.
    pub(crate) fn new(seed: [u8; 32], report: UpdateReport, devices: u32) -> Self {
        Self { seed, report, devices, roster: None, inbox: None, request: None }
    }

    /// The client, told all that this session was told.
    pub(crate) fn client(&self) -> Result<Client, secagg::Refusal> {
        let seed = Secret::new(self.seed);
        let (roster, inbox, request) =
            (self.roster.as_ref(), self.inbox.as_ref(), self.request.as_ref());
        Client::restored(seed, roster, inbox, request)
    }
}

impl MaskingStore {
    /// Uses what is there; what is old, or was half written, is removed. Nobody else may read it.
    pub(crate) fn open(dir: PathBuf, bytes_max: u64) -> Self {
        files::remove_parts(&dir);
        files::remove_older(&dir, AGE_MAX);
        if let Err(error) = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)) {
            tracing::warn!(dir = %dir.display(), "secrets of rounds may be read by others: {error}");
        }
        Self { dir, bytes_max, asking: Mutex::default() }
    }

    /// The session of a round, if its update was written.
    pub(crate) fn load(&self, job: &JobId, round: RoundNumber) -> Option<Session> {
        let path = self.path(job, round, SESSION);
        let session = serde_json::from_slice(&fs::read(&path).ok()?);
        let damaged = |error: &serde_json::Error| {
            tracing::warn!(file = %path.display(), "a session cannot be used: {error}");
        };
        session.inspect_err(damaged).ok()
    }

    /// Begins a session with an update, whose levels are little-endian bytes; those of the job's other rounds go.
    pub(crate) fn begin(
        &self,
        job: &JobId,
        round: RoundNumber,
        levels: &[u8],
        session: &Session,
    ) -> Result<(), Failure> {
        let _alone = self.alone();
        self.remove_rounds_of(job);
        let (path, size) = (self.path(job, round, LEVELS), levels.len() as u64);
        if size > self.bytes_max {
            let max = self.bytes_max;
            let problem = format!("{size} bytes, {max} are allowed: --cache-bytes");
            return Err(unwritten(&path, &problem));
        }
        let room = self.bytes_max - size;
        files::make_room(&self.dir, Some(&path), 2 * SESSIONS_MAX - 2, room);
        files::replace(&path, &[levels]).map_err(|error| unwritten(&path, &error))?;
        self.save(job, round, session)
    }

    /// Asks the session of a round, which notes what it is asked; that is kept before the answer is
    /// given. One question at a time: of two that know nothing of each other both would be answered.
    pub(crate) fn ask<T>(
        &self,
        job: &JobId,
        round: RoundNumber,
        question: impl FnOnce(&mut Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _alone = self.alone();
        let Some(mut session) = self.load(job, round) else {
            let message = "this device has no update of this round";
            return Err(Failure::new(FailureCode::InvalidInput, message));
        };
        let answer = question(&mut session)?;
        self.save(job, round, &session)?;
        Ok(answer)
    }

    fn save(&self, job: &JobId, round: RoundNumber, session: &Session) -> Result<(), Failure> {
        let path = self.path(job, round, SESSION);
        let bytes = serde_json::to_vec(session).map_err(|error| unwritten(&path, &error))?;
        files::replace(&path, &[&bytes]).map_err(|error| unwritten(&path, &error))
    }

    /// The update of a session, as it was given.
    pub(crate) fn levels(&self, job: &JobId, round: RoundNumber) -> Result<Vec<u8>, Failure> {
        let path = self.path(job, round, LEVELS);
        fs::read(&path).map_err(|error| unread(&path, &error))
    }

    /// How many levels it has.
    pub(crate) fn length(&self, job: &JobId, round: RoundNumber) -> Result<u64, Failure> {
        let path = self.path(job, round, LEVELS);
        let size = fs::metadata(&path).map_err(|error| unread(&path, &error))?.len();
        Ok(size / 4)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_rounds_of(&self, job: &JobId) {
        let prefix = format!("{job}.");
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if file.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn path(&self, job: &JobId, round: RoundNumber, kind: &str) -> PathBuf {
        self.dir.join(format!("{job}.{round}.{kind}"))
    }
}

fn unread(path: &Path, problem: &std::io::Error) -> Failure {
    let message = format!("{}: the update cannot be read: {problem}", path.display());
    Failure::new(FailureCode::Internal, message)
}

fn unwritten(path: &Path, problem: &dyn std::fmt::Display) -> Failure {
    let message = format!("{}: the masked update cannot be kept: {problem}", path.display());
    Failure::new(FailureCode::DiskFull, message)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use jobs::id::{BlobRef, Bytes, Millis};

    use super::*;

    fn session(byte: u8) -> Session {
        let report = UpdateReport {
            parameters: BlobRef::by_digest(link::digest::of(b"keys"), Bytes(4)),
            examples: 7,
            loss: 0.5,
            accuracy: 0.25,
            steps: 3,
            duration_ms: Millis(9),
            engine: "native".to_owned(),
            initial_loss: None,
            control_change: None,
            held: false,
            crc32: None,
            control_anew: false,
        };
        Session::new([byte; 32], report, 5)
    }

    #[test]
    fn a_session_comes_back_and_goes_with_its_round() {
        let dir = tempfile::tempdir().unwrap();
        let store = MaskingStore::open(dir.path().into(), 10_000);
        let job: JobId = "a".parse().unwrap();
        assert_eq!(store.load(&job, RoundNumber(1)), None);
        let levels = [1, 0, 0, 0, 255, 255, 255, 255];
        store.begin(&job, RoundNumber(1), &levels, &session(1)).unwrap();
        assert_eq!(store.load(&job, RoundNumber(1)), Some(session(1)));
        assert_eq!(store.levels(&job, RoundNumber(1)).unwrap(), levels);
        assert_eq!(store.length(&job, RoundNumber(1)).unwrap(), 2);
        let other: JobId = "ab".parse().unwrap();
        store.begin(&other, RoundNumber(1), &[2; 4], &session(2)).unwrap();
        store.begin(&job, RoundNumber(2), &[3; 4], &session(3)).unwrap();
        assert_eq!(store.load(&job, RoundNumber(1)), None);
        assert_eq!(store.load(&other, RoundNumber(1)), Some(session(2)));
        let again = MaskingStore::open(dir.path().into(), 10_000);
        assert_eq!(again.load(&job, RoundNumber(2)), Some(session(3)));
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(dir.path().join("a.2.session"), b"half").unwrap();
        assert_eq!(again.load(&job, RoundNumber(2)), None);
    }

    /// Nobody asks for a last round's update and seed, and no round after it takes their place.
    #[test]
    fn what_is_left_of_a_job_that_is_over_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = MaskingStore::open(dir.path().into(), 10_000);
        for (job, days) in [("old", 8), ("new", 6)] {
            store.begin(&job.parse().unwrap(), RoundNumber(1), &[0; 4], &session(1)).unwrap();
            for kind in [LEVELS, SESSION] {
                let path = dir.path().join(format!("{job}.1.{kind}"));
                let file = fs::File::options().append(true).open(path).unwrap();
                let then = SystemTime::now() - Duration::from_hours(24 * days);
                file.set_modified(then).unwrap();
            }
        }
        let again = MaskingStore::open(dir.path().into(), 10_000);
        assert!(again.load(&"new".parse().unwrap(), RoundNumber(1)).is_some());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing of the old one");
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = MaskingStore::open(dir.path().into(), 10);
        let job = "a".parse().unwrap();
        let failure = store.begin(&job, RoundNumber(1), &[0; 12], &session(1)).unwrap_err();
        assert!(failure.message.contains("--cache-bytes"), "{failure:?}");
        for number in 0..40 {
            let store = MaskingStore::open(dir.path().into(), 1000);
            let job = format!("j{number}").parse().unwrap();
            store.begin(&job, RoundNumber(1), &[0; 12], &session(1)).unwrap();
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() <= 2 * SESSIONS_MAX);
    }
}
