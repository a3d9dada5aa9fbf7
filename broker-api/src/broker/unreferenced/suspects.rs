//! Which of the blobs in a list are removed: those that are old and that nothing refers to.

use std::collections::BTreeMap;

use jobs::id::{Digest, Millis};
use link::blobs::Listed;

/// Old blobs of a list, until something is found that refers to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Suspects {
    blobs: BTreeMap<[u8; 32], Listed>,
    /// What is left of blobs that were removed, whatever refers to them.
    deleted: Vec<Listed>,
}

impl Suspects {
    /// Those whose descriptions were written so long before `now`, or longer.
    pub(super) fn of(listed: impl IntoIterator<Item = Listed>, now: Millis, kept: Millis) -> Self {
        let old = listed.into_iter().filter(|blob| now.since(blob.written_at) >= kept);
        let (deleted, stored): (Vec<_>, Vec<_>) = old.partition(|blob| blob.deleted);
        let blobs = stored.into_iter().map(|blob| (blob.digest.to_bytes(), blob)).collect();
        Self { blobs, deleted }
    }

    /// Something refers to this digest.
    pub(super) fn spare(&mut self, digest: &[u8; 32]) {
        self.blobs.remove(digest);
    }

    /// Something refers to these digests.
    pub(super) fn spare_all<'a>(&mut self, digests: impl IntoIterator<Item = &'a Digest>) {
        for digest in digests {
            self.spare(&digest.to_bytes());
        }
    }

    /// Whether there is none that a further reference could spare.
    pub(super) fn are_judged(&self) -> bool {
        self.blobs.is_empty()
    }

    /// What is to be removed, once all that refers to anything has been looked at.
    pub(super) fn unreferenced(self) -> impl Iterator<Item = Listed> {
        self.blobs.into_values().chain(self.deleted)
    }
}
