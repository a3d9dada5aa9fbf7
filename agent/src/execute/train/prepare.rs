//! A trainer that fits the data set, with the parameters it begins with.

use jobs::report::Failure;
use jobs::spec::TaskId;
use models::params::{Parameters, ParametersError};
use models::train::{TrainError, Trainer};

use crate::execute::failures;
use crate::kept_local::{Follows, KeptLocal};

/// Parameters of a round that stay on the device.
pub(super) struct Kept<'a> {
    store: &'a KeptLocal,
    id: &'a TaskId,
    /// Names, `*` stands for any characters.
    patterns: &'a [String],
    /// What the broker has in their place.
    received: Parameters,
}

/// Gives a trainer its parameters: those that were received, but the device's own where it
/// keeps them, as the last round before `round` left them.
pub(super) fn begin<'a>(
    trainer: &mut Trainer,
    received: &[u8],
    store: &'a KeptLocal,
    (id, round): (&'a TaskId, u32),
    patterns: &'a [String],
) -> Result<Kept<'a>, Failure> {
    let mut parameters = Parameters::from_safetensors(received).map_err(wrong)?;
    let received = parameters.named(patterns);
    if !patterns.is_empty()
        && let Some(last) = store.last_before(&id.job, round)
        && let Some(own) = store.of(&id.job, last)
    {
        parameters.replace(own).map_err(wrong)?;
    }
    let set = trainer.set_parameters(&parameters);
    set.map_err(|error| failures::of_training(&error))?;
    Ok(Kept { store, id, patterns, received })
}

impl Kept<'_> {
    /// Keeps what stays here, and leaves in its place what was received.
    pub(super) fn keep(self, parameters: &mut Parameters) -> Result<(), Failure> {
        if self.patterns.is_empty() {
            return Ok(());
        }
        let own = parameters.named(self.patterns);
        let (job, round) = (&self.id.job, self.id.round.0);
        let follows = Follows::only(self.store.last_before(job, round));
        self.store.keep(job, round, follows, &own)?;
        parameters.replace(self.received).map_err(wrong)
    }
}

pub(super) fn wrong(error: ParametersError) -> Failure {
    failures::of_training(&TrainError::Parameters(error))
}
