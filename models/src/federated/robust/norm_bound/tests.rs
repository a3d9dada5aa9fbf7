//! What is promised of every update.

use proptest::prelude::*;

use super::*;
use crate::federated::distances::UpdateNorms;
use crate::federated::tests::{combined, slices, updates};

fn norms(rows: &[Vec<f32>]) -> Vec<f64> {
    let mut norms = UpdateNorms::new(rows.len());
    norms.add(0, None, &slices(rows)).unwrap();
    norms.norms()
}

proptest! {
    #[test]
    fn no_update_is_longer(rows in updates(1..6), bound in 0.1..500.0_f64) {
        let bound = NormBound::new(bound).unwrap();
        for row in rows {
            let rows = [row];
            let clipped = bound.clip(&norms(&rows), &[1.0]).unwrap();
            let found = combined(None, &rows, &clipped.coefficients);
            let norm = norms(std::slice::from_ref(&found))[0];
            prop_assert!(norm <= bound.bound() * (1.0 + 1e-6));
            if clipped.norms[0] <= bound.bound() {
                prop_assert_eq!(&found, &rows[0]);
            } else {
                prop_assert!(norm >= bound.bound() * (1.0 - 1e-6));
            }
        }
    }
}

#[test]
fn shares_are_kept_and_the_long_are_named() {
    let clipped = NormBound::new(2.0).unwrap().clip(&[1.0, 8.0, 0.0, 2.0], &[0.25; 4]).unwrap();
    assert_eq!(clipped.coefficients, [0.25, 0.0625, 0.25, 0.25]);
    let verdicts: Vec<Verdict> = clipped.influences().iter().map(|it| it.verdict).collect();
    assert_eq!(verdicts, [Verdict::Kept, Verdict::Reduced, Verdict::Kept, Verdict::Kept]);
    assert_eq!(clipped.influences()[1].measure, Measure::Norm { norm: 8.0, limit: 2.0 });
}

#[test]
fn bad_input_is_refused() {
    for bound in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(NormBound::new(bound), Err(NormBoundError::Bound(_))));
    }
    let bound = NormBound::new(1.0).unwrap();
    let shares = NormBoundError::Shares { norms: 1, shares: 0 };
    assert_eq!(bound.clip(&[1.0], &[]), Err(shares));
    let norm = NormBoundError::Norm { device: 0, norm: -1.0 };
    assert_eq!(bound.clip(&[-1.0], &[1.0]), Err(norm));
}
