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
    let Noised { norm, noise_multiplier } = noised;
    // The same noise, of which one of two updates has more, could be taken off both.
    let mut hasher = Hasher::new();
    hasher.update(&norm.to_le_bytes());
    hasher.update(&noise_multiplier.to_le_bytes());
    hasher.update(&Layout::of(&update).header());
    update.items().iter().for_each(|item| hasher.update(as_le_bytes(&item.values)));
    let digest = hasher.finish();
    let seed = releases.release(&id.job, id.round.0, &digest)?;
    protect(&received, &update, &fixed, (norm, noise_multiplier), seed)
        .map_err(|error| Failure::new(FailureCode::InvalidSpec, format!("noised: {error}")))
}

#[cfg(test)]
mod tests {
    use models::params::Parameter;

    use super::*;

    fn of(values: [f32; 2]) -> Parameters {
        let item = Parameter { name: "w".to_owned(), shape: vec![2], values: values.to_vec() };
        Parameters::new(vec![item]).unwrap()
    }

    /// Two of them, with the same noise and more or less of it, would tell the update.
    #[test]
    fn an_update_is_given_away_with_one_amount_of_noise() {
        let dir = tempfile::tempdir().unwrap();
        let releases = Releases::open(dir.path().into());
        let id: TaskId = "a-1-train-1".parse().unwrap();
        let given = |norm, noise_multiplier| {
            let noised = Noised { norm, noise_multiplier };
            let received = of([0.0, 0.0]).to_safetensors();
            let local = LocalTraining::default();
            protected(noised, &local, &received, of([0.25, 0.5]), (&releases, &id))
        };
        let first = given(1.0, 2.0).unwrap();
        assert_eq!(given(1.0, 2.0).unwrap(), first, "another attempt");
        for (norm, noise_multiplier) in [(4.0, 2.0), (1.0, 1.0), (2.0, 1.0)] {
            let refused = given(norm, noise_multiplier).unwrap_err();
            assert_eq!(refused.code, FailureCode::BudgetSpent, "{norm} {noise_multiplier}");
        }
    }
}
