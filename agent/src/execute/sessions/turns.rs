//! Whose turn it is to be tried: of each engine there is one trial at a time, and trials of two
//! engines come one after the other, so that none takes the time that another one measures. But
//! nobody waits for long behind an engine that hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

#[derive(Debug)]
pub(super) struct Turns {
    engines: BTreeMap<&'static str, Arc<Mutex<()>>>,
    alone: Arc<Mutex<()>>,
}

/// Lets the next one in when dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    pub(super) fn new(engines: impl IntoIterator<Item = &'static str>) -> Self {
        let engines = engines.into_iter().map(|engine| (engine, Arc::default())).collect();
        Self { engines, alone: Arc::default() }
    }

    /// Waits until nobody else tries the engine.
    pub(super) async fn of(&self, engine: &str) -> Turn {
        let turn = self.engines.get(engine).cloned().unwrap_or_default();
        turn.lock_owned().await
    }

    /// Waits until no engine is tried that was to be tried alone; `None` after `patience`.
    pub(super) async fn alone(&self, patience: Duration) -> Option<Turn> {
        tokio::time::timeout(patience, self.alone.clone().lock_owned()).await.ok()
    }
}
