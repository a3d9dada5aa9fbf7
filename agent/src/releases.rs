//! Updates that the device gave away with noise: one small file per job and round, and the key that
//! their noise is made of.
//!
//! Another attempt at a round has the same noise on the same update, so that it gives nothing more
//! away. Another update for the same round, or the same with more noise or less, is refused: two of
//! them tell more than one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jobs::id::{Digest, JobId};
use jobs::report::{Failure, FailureCode};
use link::secret::Secret;

use crate::files;

/// Files that are kept, at most; a job's round is long over when its file goes.
const FILES_MAX: usize = 1000;
const SECRET: &str = "secret";
const SUFFIX: &str = "release";

/// The directory of these files.
#[derive(Debug)]
pub(crate) struct Releases {
    dir: PathBuf,
    /// Held while a file is looked for and written.
    secret: Mutex<Option<Secret>>,
}

impl Releases {
    /// Uses what is there; nobody but the agent's user may read it.
    pub(crate) fn open(dir: PathBuf) -> Self {
        files::remove_parts(&dir);
        let private = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
        if let Err(error) = private {
            tracing::warn!(dir = %dir.display(), %error, "others may read the key of the noise");
        }
        Self { dir, secret: Mutex::default() }
    }

    /// Seeds the noise of the update with this digest, which stands for how much noise it gets too, and
    /// notes that it is given away.
    pub(crate) fn release(
        &self,
        job: &JobId,
        round: u32,
        update: &Digest,
    ) -> Result<[u8; 32], Failure> {
        let mut secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = match secret.take() {
            Some(known) => secret.insert(known),
            None => secret.insert(self.secret()?),
        };
        let path = self.dir.join(format!("{job}.{round}.{SUFFIX}"));
        match fs::read_to_string(&path) {
            Ok(before) if before == update.as_str() => {}
            Ok(_) => {
                let message = format!(
                    "round {round} of job {job} got another update before, and two would tell more \
                     than one: the data set, the agent, or the noise asked for is another than then"
                );
                return Err(Failure::new(FailureCode::BudgetSpent, message));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                files::make_room(&self.dir, Some(&self.secret_path()), FILES_MAX, u64::MAX);
                write(&path, update.as_str())?;
            }
            Err(error) => return Err(failed(&path, &error)),
        }
        Ok(secret.derive(format!("{job} {round} {update}").as_bytes()))
    }

    /// The key, a new one at first.
    fn secret(&self) -> Result<Secret, Failure> {
        let path = self.secret_path();
        match fs::read_to_string(&path) {
            Ok(text) => Secret::try_from(text).map_err(|error| failed(&path, &error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = Secret::random().map_err(|error| failed(&path, &error))?;
                write(&path, &String::from(secret.clone()))?;
                Ok(secret)
            }
            Err(error) => Err(failed(&path, &error)),
        }
    }

    fn secret_path(&self) -> PathBuf {
        self.dir.join(SECRET)
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    files::replace(path, &[text.as_bytes()]).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("{}: an update cannot be given noise: {error}", path.display());
    Failure::new(FailureCode::DiskFull, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        link::digest::of(text.as_bytes())
    }

    fn job(name: &str) -> JobId {
        name.parse().unwrap()
    }

    #[test]
    fn a_round_gets_one_update_and_the_same_noise_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Releases::open(dir.path().into());
        let seed = open().release(&job("a"), 1, &digest("x")).unwrap();
        assert_eq!(open().release(&job("a"), 1, &digest("x")).unwrap(), seed);
        let refused = open().release(&job("a"), 1, &digest("y")).unwrap_err();
        assert_eq!(refused.code, FailureCode::BudgetSpent);
        let releases = open();
        for (name, round, update) in [("a", 2, "x"), ("b", 1, "x"), ("a", 3, "y")] {
            assert_ne!(releases.release(&job(name), round, &digest(update)).unwrap(), seed);
        }
        let other = tempfile::tempdir().unwrap();
        let elsewhere = Releases::open(other.path().into());
        assert_ne!(elsewhere.release(&job("a"), 1, &digest("x")).unwrap(), seed);
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn without_a_key_there_is_no_noise() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SECRET), "short").unwrap();
        let releases = Releases::open(dir.path().into());
        let failure = releases.release(&job("a"), 1, &digest("x")).unwrap_err();
        assert!(failure.message.contains("not a key"), "{failure:?}");
        let none = Releases::open(dir.path().join("none"));
        let failure = none.release(&job("a"), 1, &digest("x")).unwrap_err();
        assert_eq!(failure.code, FailureCode::DiskFull);
    }
}
