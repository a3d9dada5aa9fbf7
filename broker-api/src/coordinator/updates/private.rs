//! A private mean: updates are read side by side, once for their norms and once to be combined,
//! and noise is added before anything is stored. No more than a tile of each is in memory.
//!
//! The noise follows from the training's secret, the round, and which updates are combined: a
//! broker that takes over makes the same parameters of the same updates, bit by bit, and others
//! never get the same noise, so that nobody can take it off by comparing two of them.

use std::ops::Range;

use jobs::id::{BlobRef, DeviceId};
use jobs::round::Aggregate;
use jobs::spec::{Clip, PrivacyMode};
use jobs::training::Training;
use link::secret::Secret;
use models::federated::privacy::{PrivacyError, PrivateMean, PrivateSum, Protection, Within};
use models::federated::robust::norm_bound::NormBound;
use models::params::{Layout, is_named};

use super::rules::{self, Combiner, Rows, RuleError};
use super::server::{self, Base};
use super::{ReadError, Updates};
use crate::coordinator::fold::Part;
use crate::coordinator::fold::content::Expected;
use crate::coordinator::fold::masked::Noised;
use crate::coordinator::state::mean_beside;

/// How a round is kept private.
#[derive(Debug, Clone)]
pub(in crate::coordinator) struct Private {
    /// The longest update that counts.
    norm: f64,
    planned: u32,
    noise_multiplier: f64,
    /// Of the noise on the number of updates that are not longer, where the norm is adaptive.
    count_deviation: Option<f64>,
    /// What steps against the mean, if it is not the result.
    optimizer: Option<Base>,
    /// Names of parameters that no update changes.
    fixed: Vec<String>,
    round: u32,
    pub(super) base: BlobRef,
    secret: Secret,
}

impl Private {
    /// As the round at work needs it; none where the broker adds no noise.
    pub(in crate::coordinator) fn of(training: &Training, secret: &Secret) -> Option<Self> {
        let spec = training.spec();
        let privacy = spec.privacy.filter(|privacy| privacy.mode == PrivacyMode::Central)?;
        let planned = spec.participation.devices.unwrap_or_default();
        let count_deviation = match privacy.clip {
            Clip::Norm(_) => None,
            Clip::Adaptive(clip) => Some(clip.count_deviation(planned)),
        };
        let parameters = training.parameters().clone();
        let optimizer = server::optimizer(&spec.strategy).map(|optimizer| Base {
            optimizer,
            parameters,
            state: training.server_state().cloned(),
        });
        Some(Self {
            optimizer,
            norm: training.norm().unwrap_or_else(|| privacy.initial_norm()),
            planned,
            noise_multiplier: privacy.update_noise_multiplier(planned),
            count_deviation,
            fixed: [&spec.local.frozen[..], &spec.local.kept_local].concat(),
            round: training.round().map_or(0, |round| round.plan().round.0),
            base: training.parameters().clone(),
            secret: secret.clone(),
        })
    }

    /// Seeds the noise of one vector of this round, made of these updates.
    fn seed(&self, vector: &str, parts: &[Part]) -> [u8; 32] {
        self.seed_of(vector, parts.iter().map(|part| (&part.device, &part.parameters)))
    }

    fn seed_of<'a>(
        &self,
        vector: &str,
        updates: impl Iterator<Item = (&'a DeviceId, &'a BlobRef)>,
    ) -> [u8; 32] {
        let updates: Vec<_> = updates.map(|(device, blob)| (device, &blob.digest)).collect();
        let norm = self.norm.to_bits();
        let context = serde_json::to_vec(&(vector, self.round, norm, &self.base.digest, updates));
        self.secret.derive(&context.expect("names and numbers are JSON"))
    }

    /// What steps against the mean, if it is not the result.
    pub(super) fn optimizer(&self) -> Option<&Base> {
        self.optimizer.as_ref()
    }

    /// The noise on the sum of these masked updates, which their devices have shortened to the
    /// norm before levels were made of them: a level may lie so far beside its value.
    pub(in crate::coordinator) fn of_sum(
        &self,
        model: &Layout,
        beside: f64,
        masked: &[(DeviceId, BlobRef)],
    ) -> Result<Noised, PrivacyError> {
        let fixed = self.fixed_values(model);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let farthest = beside * (model.total_len() as f64).sqrt();
        let norm = self.norm + farthest;
        let bound = NormBound::new(norm).map_err(|_| PrivacyError::Setting {
            name: "norm",
            value: norm,
            expected: "a finite number above 0",
        })?;
        let Self { planned, noise_multiplier, .. } = *self;
        let protection = Protection { bound, planned, noise_multiplier };
        let updates = masked.iter().map(|(device, blob)| (device, blob));
        let sum = PrivateSum::new(protection, self.seed_of("masked", updates))?;
        Ok(Noised { sum, fixed })
    }

    /// With an adaptive norm, the noised share of these masked updates of which so many were not
    /// longer, as their devices said in what was added up.
    pub(in crate::coordinator) fn within_sum(
        &self,
        within: Option<u32>,
        masked: &[(DeviceId, BlobRef)],
    ) -> Result<Option<f64>, PrivacyError> {
        let Some((within, deviation)) = within.zip(self.count_deviation) else { return Ok(None) };
        let devices = u32::try_from(masked.len()).unwrap_or(u32::MAX);
        let count = Within { within, devices, planned: self.planned };
        let updates = masked.iter().map(|(device, blob)| (device, blob));
        count.noised(deviation, self.seed_of("masked count", updates)).map(Some)
    }

    /// Values of parameters that no update changes: their differences are nothing, whatever was
    /// sent, and so need no noise.
    fn fixed_values(&self, model: &Layout) -> Vec<Range<usize>> {
        let fixed = model.spans().iter().filter(|span| is_named(&self.fixed, &span.name));
        fixed.map(|span| span.elements.clone()).collect()
    }
}

impl Updates {
    /// Stores a round's parameters moved by the private mean of updates, or by an optimizer's step
    /// against it; what that keeps is under the second name. With an adaptive norm it tells the
    /// noised share of updates that were not longer.
    pub(super) async fn private(
        &self,
        names: (String, String),
        parts: &[Part],
        private: &Private,
    ) -> Result<Aggregate, ReadError> {
        let Some(base) = &private.optimizer else {
            let (parameters, within) = self.private_mean(names.0, parts, private).await?;
            return Ok(Aggregate { within, ..Aggregate::of(parameters) });
        };
        let name = mean_beside(&names.0);
        let (mean, within) = self.private_mean(name, parts, private).await?;
        let (parameters, server_state) = self.step_against(names, &mean, base).await?;
        Ok(Aggregate { server_state, within, ..Aggregate::of(parameters) })
    }

    async fn private_mean(
        &self,
        name: String,
        parts: &[Part],
        private: &Private,
    ) -> Result<(BlobRef, Option<f64>), ReadError> {
        let model = self.ask(|fold| fold.model().clone()).await?;
        let fixed = private.fixed_values(&model);
        let blobs = rules::blobs(parts, Some(&private.base));
        let mut expected = Expected::parameters(model);
        expected.or_differences_from(self.differences.then(|| private.base.digest.clone()));
        let rows = || Rows::open(self, &blobs, true, &expected, None);
        let norms = if parts.is_empty() {
            Vec::new()
        } else {
            rows().await?.with_fixed(&fixed).norms().await?
        };
        let Private { norm, planned, noise_multiplier, .. } = *private;
        let bound = NormBound::new(norm).map_err(RuleError::from)?;
        let protection = Protection { bound, planned, noise_multiplier };
        let mean = PrivateMean::new(protection, &norms, private.seed("mean", parts))?;
        let within = private
            .count_deviation
            .map(|deviation| mean.within().noised(deviation, private.seed("count", parts)));
        let within = within.transpose()?;
        let combiner = Combiner::Private { mean, fixed };
        let (parameters, _) = self.combined(name, rows().await?, combiner).await?;
        Ok((parameters, within))
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::Bytes;

    use super::*;

    fn blob(text: &str) -> BlobRef {
        BlobRef::by_digest(link::digest::of(text.as_bytes()), Bytes(1))
    }

    fn part(device: &str, update: &str) -> Part {
        Part {
            device: device.parse().unwrap(),
            parameters: blob(update),
            examples: 1,
            steps: 1,
            initial_loss: 0.0,
            control_change: None,
            held: false,
            crc32: None,
            base: None,
        }
    }

    fn private(secret: &Secret) -> Private {
        Private {
            norm: 1.0,
            planned: 2,
            noise_multiplier: 1.0,
            count_deviation: None,
            optimizer: None,
            fixed: Vec::new(),
            round: 1,
            base: blob("base"),
            secret: secret.clone(),
        }
    }

    /// Two results of different updates tell nothing when they are compared.
    #[test]
    fn the_same_noise_is_only_for_the_same_result() {
        let secret = Secret::random().unwrap();
        let both = [part("a", "x"), part("b", "y")];
        let seed = private(&secret).seed("mean", &both);
        assert_eq!(private(&secret).seed("mean", &both), seed);
        let sets = [
            vec![],
            vec![part("a", "x")],
            vec![part("a", "x"), part("b", "z")],
            vec![part("a", "y"), part("b", "x")],
        ];
        let mut seeds = vec![seed, private(&secret).seed("count", &both)];
        seeds.push(private(&secret).seed("masked count", &both));
        seeds.extend(sets.iter().map(|parts| private(&secret).seed("mean", parts)));
        seeds.push(private(&secret).seed("masked", &both));
        for other in [
            Private { round: 2, ..private(&secret) },
            Private { norm: 1.5, ..private(&secret) },
            Private { base: blob("other"), ..private(&secret) },
            private(&Secret::random().unwrap()),
        ] {
            seeds.push(other.seed("mean", &both));
        }
        let count = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!((count, seeds.len()), (12, 12));
    }
}
