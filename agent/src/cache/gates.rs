//! One at a time for each digest: whoever comes second finds the work done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jobs::id::Digest;
use tokio::sync::OwnedMutexGuard;

/// The digests that someone works on.
#[derive(Debug, Default, Clone)]
pub(crate) struct Gates {
    gates: Arc<Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Lets the next one in when dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    gates: Gates,
    digest: Digest,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Gates {
    /// Waits until nobody else works on the digest.
    pub(crate) async fn enter(&self, digest: &Digest) -> Entered {
        let gate = self.lock().entry(digest.clone()).or_default().clone();
        let guard = Some(gate.lock_owned().await);
        Entered { gates: self.clone(), digest: digest.clone(), guard }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut gates = self.gates.lock();
        // Those who wait hold a copy.
        if gates.get(&self.digest).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_remains() {
        let gates = Gates::default();
        let digest = link::digest::of(b"x");
        let first = gates.enter(&digest).await;
        let mut second = Box::pin(gates.enter(&digest));
        assert!(futures::poll!(&mut second).is_pending());
        let _other = gates.enter(&link::digest::of(b"y")).await;
        drop(first);
        drop(second.await);
        assert_eq!(gates.lock().len(), 1);
    }
}
