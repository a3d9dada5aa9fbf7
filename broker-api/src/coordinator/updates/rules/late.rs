//! Updates that were trained from different versions of the parameters: each moves the newest ones
//! by its difference from what it was trained from, the less the older that is.

use jobs::id::BlobRef;
use jobs::round::{Base, Influence, Verdict};
use jobs::spec::{FedBuff, Strategy};
use models::federated::staleness::Staleness;

use super::{Combiner, ReadError, Rows, RuleError, Start, Updates, kept, shares_of};
use crate::coordinator::fold::content::Expected;
use crate::coordinator::fold::{Part, weight};

/// `x += learning_rate sum n_k s_k (w_k - x_k) / sum n_k`: `x_k` is what update `w_k` of `n_k`
/// examples was trained from, `s_k` its weight by age. Running statistics become
/// `sum n_k s_k w_k / sum n_k s_k`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::coordinator) struct Late {
    staleness: Staleness,
    learning_rate: f64,
    /// Whether all `n_k` are 1.
    equal: bool,
}

impl Late {
    pub(super) fn of(strategy: &Strategy, staleness: jobs::spec::Staleness) -> Self {
        let staleness = Staleness { exponent: staleness.exponent };
        if let Strategy::FedBuff(FedBuff { learning_rate, .. }) = *strategy {
            return Self { staleness, learning_rate, equal: true };
        }
        Self { staleness, learning_rate: 1.0, equal: false }
    }

    /// What each update counts of its difference, by its weight and age.
    fn coefficients(&self, updates: &[(f64, u32)]) -> Result<Vec<f64>, RuleError> {
        let weights = || updates.iter().map(|(weight, _)| if self.equal { 1.0 } else { *weight });
        let total: f64 = weights().sum();
        let shares = weights().zip(updates).map(|(weight, (_, age))| {
            let by_age = self.staleness.weight(*age)?;
            Ok(self.learning_rate * weight * by_age / total)
        });
        shares.collect()
    }
}

/// How many versions older than the newest one it is.
fn age(base: Option<&Base>, newest: u32) -> u32 {
    base.map_or(0, |base| newest.saturating_sub(base.version))
}

impl Updates {
    /// Late updates and those of the round, and how they move its parameters.
    pub(super) async fn late(
        &self,
        parts: &[Part],
        late: &Late,
        start: &Start,
        expected: &Expected,
    ) -> Result<(Rows, Combiner), ReadError> {
        let ages: Vec<u32> =
            parts.iter().map(|part| age(part.base.as_ref(), start.version)).collect();
        let weighed: Vec<(f64, u32)> = parts.iter().map(weight).zip(ages.iter().copied()).collect();
        let shares = late.coefficients(&weighed)?;
        // Rows: the centre, the updates, what they were trained from if that is not the centre.
        let mut bases: Vec<&Base> = Vec::new();
        let mut coefficients = shares.clone();
        let mut from = Vec::new();
        for (index, (part, share)) in parts.iter().zip(&shares).enumerate() {
            let Some(base) = &part.base else { continue };
            let place = bases.iter().position(|known| known.parameters == base.parameters);
            let place = place.unwrap_or_else(|| {
                bases.push(base);
                coefficients.push(0.0);
                bases.len() - 1
            });
            coefficients[parts.len() + place] -= share;
            from.push((1 + index, 1 + parts.len() + place, base));
        }
        let blobs: Vec<&BlobRef> = std::iter::once(&start.parameters)
            .chain(parts.iter().map(|part| &part.parameters))
            .chain(bases.iter().map(|base| &base.parameters))
            .collect();
        let differences = self.differences.then_some(&start.parameters);
        let mut rows = Rows::open(self, &blobs, true, expected, differences).await?;
        for (index, place, base) in from {
            rows = rows.with_base(index, place, base);
        }
        let influences = told(parts, late, &ages)?;
        let mut statistics = shares_of(&shares);
        statistics.resize(coefficients.len(), 0.0);
        Ok((rows, Combiner::moving(coefficients, statistics, influences)))
    }
}

/// What becomes of each update, if any is late.
fn told(parts: &[Part], late: &Late, ages: &[u32]) -> Result<Vec<Influence>, RuleError> {
    if parts.iter().all(|part| part.base.is_none()) {
        return Ok(Vec::new());
    }
    let told = parts.iter().zip(ages).map(|(part, age)| {
        let Some(Base { round, .. }) = &part.base else {
            return Ok(kept("trained from the newest parameters".to_owned()));
        };
        let by_age = late.staleness.weight(*age)?;
        let reason =
            format!("trained from round {round}, {age} versions ago: its weight is {by_age:.3}");
        let verdict = if by_age < 1.0 { Verdict::Reduced } else { Verdict::Kept };
        Ok(Influence { verdict, reason })
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_papers() {
        let fedbuff: Strategy = "fedbuff:learning_rate=0.5,exponent=0.5".parse().unwrap();
        let staleness = jobs::spec::Staleness { exponent: 0.5, staleness_max: 9 };
        let shares = |strategy: &Strategy| {
            Late::of(strategy, staleness).coefficients(&[(30.0, 0), (10.0, 3)]).unwrap()
        };
        // Nguyen et al. 2022: eta / K s(tau), s = 1 / sqrt(1 + tau).
        assert_eq!(shares(&fedbuff), [0.5 / 2.0, 0.5 / 2.0 / 2.0]);
        // The mean weighted by examples, of which the older one gives half.
        assert_eq!(shares(&Strategy::FedAvg {}), [30.0 / 40.0, 10.0 / 40.0 / 2.0]);
    }
}
