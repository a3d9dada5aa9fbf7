//! How many updates a strategy needs to be what it is called.

use super::{Byzantine, FedTrimmedAvg, MultiKrum, Strategy};

impl Strategy {
    /// Updates without which it cannot work, and why.
    pub(in crate::spec) fn quorum(&self) -> (u32, &'static str) {
        let needed = |factor, byzantine: u32| byzantine.saturating_mul(factor).saturating_add(3);
        match *self {
            Self::Krum(Byzantine { byzantine }) => {
                (needed(2, byzantine), "krum needs 2 byzantine + 3 updates")
            }
            Self::MultiKrum(MultiKrum { byzantine, selected }) => {
                let selected = selected.unwrap_or(1).saturating_add(byzantine);
                (
                    needed(2, byzantine).max(selected),
                    "multikrum needs 2 byzantine + 3 updates, and selected + byzantine",
                )
            }
            Self::Bulyan(Byzantine { byzantine }) => {
                (needed(4, byzantine), "bulyan needs 4 byzantine + 3 updates")
            }
            Self::FedTrimmedAvg(rule) => (
                rule.updates_min(),
                "fedtrimmedavg leaves nobody out of fewer than 1 / fraction updates",
            ),
            Self::FedMedian {} | Self::GeometricMedian {} => {
                (3, "of fewer updates no one has a majority against it")
            }
            Self::FedAvg {}
            | Self::FedAvgM(_)
            | Self::FedAdagrad(_)
            | Self::FedAdam(_)
            | Self::FedYogi(_)
            | Self::QFedAvg(_)
            | Self::FedNova {}
            | Self::Scaffold(_)
            | Self::FedBuff(_)
            | Self::CentredClipping(_)
            | Self::NormBound(_) => (1, "a round needs an update"),
        }
    }
}

/// Whether updates may be wrong at all, for a rule that is there for these.
pub(super) fn some_byzantine(byzantine: u32) -> (&'static str, f64, bool, &'static str) {
    let expected = "1 or above, as many updates as may be wrong: with 0 none is doubted";
    ("byzantine", f64::from(byzantine), byzantine > 0, expected)
}

impl FedTrimmedAvg {
    /// Of so many updates one is left out at each end; one where the fraction is out of range.
    fn updates_min(self) -> u32 {
        let Self { fraction } = self;
        if !(fraction > 0.0 && fraction < 0.5) {
            return 1;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let about = fraction.recip().ceil() as u32;
        // The quotient is rounded; what a round leaves out is the product.
        let is_enough = |updates: &u32| fraction * f64::from(*updates) >= 1.0;
        (about - 1..=about.saturating_add(1)).find(is_enough).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_mean_needs_as_many_as_it_takes_to_leave_one_out() {
        for (fraction, updates) in [
            (0.0, 1),
            (0.2, 5),
            (0.25, 4),
            (0.1, 10),
            (0.3, 4),
            (0.49, 3),
            (1e-12, u32::MAX),
            (0.5, 1),
            (-0.1, 1),
            (f64::NAN, 1),
        ] {
            let (needed, _) = Strategy::FedTrimmedAvg(FedTrimmedAvg { fraction }).quorum();
            assert_eq!(needed, updates, "{fraction}");
        }
        for number in 3..2000_u32 {
            let fraction = f64::from(number).recip();
            let (needed, _) = Strategy::FedTrimmedAvg(FedTrimmedAvg { fraction }).quorum();
            assert!(fraction * f64::from(needed) >= 1.0, "{needed} updates, {fraction}");
            assert!(fraction * f64::from(needed - 1) < 1.0, "{needed} updates, {fraction}");
        }
    }
}
