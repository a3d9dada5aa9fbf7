//! The state directory: made, locked for one agent, and laid out.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or written.
    #[error("state directory {dir}: {source}: choose another one with --state-dir", dir = dir.display())]
    Unusable {
        /// Which.
        dir: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Another agent uses it.
    #[error(
        "state directory {dir} is in use by another agent: stop it, or give this one another --name or --state-dir",
        dir = dir.display()
    )]
    InUse {
        /// Which.
        dir: PathBuf,
    },
}

/// A state directory that is ours as long as this value lives.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    _lock: File,
}

impl State {
    /// Makes and locks the directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        let unusable = |source| StateError::Unusable { dir: dir.to_owned(), source };
        let parts = [
            "blobs",
            "checkpoints",
            "kept_local",
            "controls",
            "residuals",
            "releases",
            "masking",
            "held",
        ];
        for part in parts {
            std::fs::create_dir_all(dir.join(part)).map_err(unusable)?;
        }
        let lock = File::create(dir.join("lock")).map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::InUse { dir: dir.to_owned() }),
            Err(error) => Err(unusable(error.into())),
        }
    }

    /// Downloaded blobs.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// Trainings that can go on.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Parameters that stay on the device.
    pub(crate) fn kept_local(&self) -> PathBuf {
        self.dir.join("kept_local")
    }

    /// Control variates of trainings.
    pub(crate) fn controls(&self) -> PathBuf {
        self.dir.join("controls")
    }

    /// What updates left out.
    pub(crate) fn residuals(&self) -> PathBuf {
        self.dir.join("residuals")
    }

    /// Updates that were given away with noise.
    pub(crate) fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// Secrets and updates of secure aggregations.
    pub(crate) fn masking(&self) -> PathBuf {
        self.dir.join("masking")
    }

    /// Updates that wait for the broker.
    pub(crate) fn held(&self) -> PathBuf {
        self.dir.join("held")
    }

    /// Telemetry that waits for a connection.
    pub(crate) fn telemetry(&self) -> PathBuf {
        self.dir.join("telemetry.jsonl")
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        let first = State::open(&path).unwrap();
        let error = State::open(&path).unwrap_err();
        assert!(error.to_string().contains("another agent"), "{error}");
        drop(first);
        State::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_says_what_to_do() {
        let error = State::open(Path::new("/dev/null/state")).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }
}
