//! Noise on an update, before anyone but the device sees it.

use jobs::report::{Failure, FailureCode};
use jobs::spec::{LocalTraining, Noised, TaskId};
use link::digest::Hasher;
use models::federated::privacy::protect;
use models::params::{Layout, Parameters, as_le_bytes};

use super::prepare::wrong;
use crate::releases::Releases;

/// Shortens an update's difference from what was received and gives it noise, as the task asks.
/// What no update changes stays as it was received.
pub(super) fn protected(
    noised: Noised,
    local: &LocalTraining,
    received: &[u8],
    update: Parameters,
    (releases, id): (&Releases, &TaskId),
) -> Result<Parameters, Failure> {
    let received = Parameters::from_safetensors(received).map_err(wrong)?;
    let mut update = update;
    let fixed = [&local.frozen[..], &local.kept_local].concat();
    update.replace(received.named(&fixed)).map_err(wrong)?;
    let mut hasher = Hasher::new();
    hasher.update(&Layout::of(&update).header());
    update.items().iter().for_each(|item| hasher.update(as_le_bytes(&item.values)));
    let digest = hasher.finish();
    let seed = releases.release(&id.job, id.round.0, &digest)?;
    let Noised { norm, noise_multiplier } = noised;
    protect(&received, &update, &fixed, (norm, noise_multiplier), seed)
        .map_err(|error| Failure::new(FailureCode::InvalidSpec, format!("noised: {error}")))
}
