//! Memory that trainings and evaluations are promised.

use std::sync::Arc;

use jobs::report::Failure;
use models::dataset::Examples;
use models::train::Trainer;

use super::memory::{Need, Promise, Promises};

/// Memory that work may be promised.
#[derive(Clone)]
pub(super) struct Room {
    pub(super) promises: Arc<Promises>,
    /// See [`crate::config::Config::training_bytes`].
    pub(super) max: Option<u64>,
}

impl Room {
    /// Promises what a trainer takes for batches of some of these examples. The data set is
    /// decoded by now, so it is no part of what is free.
    pub(super) fn promise(
        &self,
        trainer: &Trainer,
        examples: &Examples,
        batch_size: u32,
    ) -> Result<Promise, Failure> {
        let batch = examples.len().min(batch_size as usize);
        let need = |batch| Need {
            trainer: trainer.memory(batch, rayon::current_num_threads()),
            batch: 4 * batch as u64 * examples.size() as u64,
        };
        self.promises.promise(batch, need, self.max)
    }
}
