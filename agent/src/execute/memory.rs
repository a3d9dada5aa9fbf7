//! Memory that is free, and what of it is promised.

use std::sync::{Arc, Mutex, PoisonError};

use sysinfo::{CGroupLimits, MemoryRefreshKind, System};

use crate::facts;

/// Bytes that the system and the control group of this process have left; `None` when nobody knows.
pub(super) fn free() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let available = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let left = |limits: CGroupLimits| limits.total_memory.saturating_sub(limits.rss);
    let groups = facts::control_groups(&mut system);
    available.into_iter().chain(groups.into_iter().map(left)).min()
}

/// What was promised to work that has not taken it yet, so that two that begin at the same time do
/// not both count on the same memory.
#[derive(Debug, Default)]
pub(crate) struct Promises(Mutex<u64>);

/// Memory that counts as taken until this is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    promises: Arc<Promises>,
    bytes: u64,
}

/// Bytes that are free beside those that are promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) free: u64,
    pub(super) promised: u64,
}

impl Promises {
    /// Promises as many bytes as `need` says, which is told how many are promised.
    pub(super) fn promise<E>(
        self: &Arc<Self>,
        need: impl FnOnce(u64) -> Result<u64, E>,
    ) -> Result<Promise, E> {
        let mut promised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = need(*promised)?;
        *promised = promised.saturating_add(bytes);
        Ok(Promise { promises: self.clone(), bytes })
    }

    /// Promises so many bytes.
    ///
    /// # Errors
    /// What there is, if that is less.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Promise, Lacking> {
        self.promise(|promised| {
            let left = free().map(|free| free.saturating_sub(promised));
            match left.filter(|left| *left < bytes) {
                Some(free) => Err(Lacking { free, promised }),
                None => Ok(bytes),
            }
        })
    }

    /// How many are promised.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.promises.0.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.bytes);
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
