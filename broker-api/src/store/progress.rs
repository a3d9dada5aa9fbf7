//! How far whoever follows a bucket has come.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

/// What of a bucket is known to its follower, who notes each change after it has taken it up.
#[derive(Debug, Default)]
pub struct Progress(watch::Sender<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The revision up to which everything is known.
    revision: u64,
    /// Keys with values that cannot be read.
    unreadable: BTreeSet<String>,
}

impl Progress {
    /// A key has a value that was read, or none.
    pub fn note(&self, key: &str, revision: u64) {
        self.0.send_modify(|known| {
            known.unreadable.remove(key);
            known.revision = known.revision.max(revision);
        });
    }

    /// A key has a value that cannot be read.
    pub fn note_unreadable(&self, key: &str, revision: u64) {
        self.0.send_modify(|known| {
            known.unreadable.insert(key.to_owned());
            known.revision = known.revision.max(revision);
        });
    }

    /// The bucket is another one, of which nothing is known yet.
    pub fn begin_anew(&self) {
        self.0.send_replace(Known::default());
    }

    /// A key whose value cannot be read, if there is one.
    pub fn unreadable(&self) -> Option<String> {
        self.0.borrow().unreadable.first().cloned()
    }

    /// Waits until a condition holds, which is looked at with each change and the revision up to
    /// which everything is known; whether it did in time.
    pub async fn until(&self, within: Duration, mut holds: impl FnMut(u64) -> bool) -> bool {
        let mut known = self.0.subscribe();
        let held = known.wait_for(|known| holds(known.revision));
        tokio::time::timeout(within, held).await.is_ok_and(|held| held.is_ok())
    }
}
