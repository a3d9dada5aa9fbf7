use std::f64::consts::TAU;

use proptest::prelude::*;

use super::*;

fn releases(sampling_rate: f64, noise_multiplier: f64, count: u32) -> [Releases; 1] {
    [Releases { sampling_rate, noise_multiplier, count }]
}

fn assert_near(found: f64, expected: f64, tolerance: f64, what: &str) {
    let close = (found - expected).abs() <= tolerance * expected.abs();
    assert!(close, "{what}: {found}, expected {expected}");
}

/// Sums `f` over the real line from `-edge` to `edge`: the trapezoid rule, which is exact to
/// rounding for what falls like a normal density.
fn integral(edge: f64, f: impl Fn(f64) -> f64) -> f64 {
    let steps = 20_000;
    let width = 2.0 * edge / f64::from(steps);
    (0..=steps).map(|step| f(-edge + f64::from(step) * width) * width).sum()
}

/// The moment by its definition.
fn moment(q: f64, z: f64, order: f64) -> f64 {
    let edge = 40.0 * z + order;
    integral(edge, |x| {
        let ratio = (1.0 - q) + q * ((2.0 * x - 1.0) / (2.0 * z * z)).exp();
        (order * ratio.ln() - x * x / (2.0 * z * z)).exp() / (z * TAU.sqrt())
    })
}

/// `rdp_accountant_test.py` of TensorFlow Privacy.
#[test]
fn divergences_are_those_of_tensorflow_privacy() {
    assert_near(20.0 * sampled_gaussian::divergence(1.0, 10.0, 1.0), 0.1, 1e-12, "q = 1");
    let one = sampled_gaussian::divergence(0.1, 2.0, 5.0);
    assert!((10.0 * one - 0.07737).abs() < 5e-6, "{one}");
    let orders = [(1.5, 0.00065), (2.5, 0.001_085), (5.0, 0.002_180_75), (50.0, 0.023_846)];
    for (order, expected) in orders.into_iter().chain([(100.0, 167.416_307)]) {
        let found = 50.0 * sampled_gaussian::divergence(0.01, 2.5, order);
        assert!((found - expected).abs() < 1e-5, "order {order}: {found}, {expected}");
    }
    assert!(sampled_gaussian::divergence(0.0, 2.5, 5.0) <= 0.0);
}

/// `accountants_test.py` of Opacus, which has orders from 1.1 to 63.
#[test]
fn epsilons_are_those_of_opacus() {
    assert_near(epsilon(&releases(0.04, 1.5, 2250), 1e-5), 7.329_111_171_43, 1e-9, "Opacus");
}

/// Abadi et al. 2016 (arXiv 1607.00133), figure 2: 1.26 after 100 epochs of `q = 0.01` with
/// `z = 4`, by the older conversion; ours is better.
#[test]
fn epsilons_are_not_above_the_moments_accountants() {
    let found = epsilon(&releases(0.01, 4.0, 10_000), 1e-5);
    assert!((1.0..1.26).contains(&found), "{found}");
}

#[test]
fn moments_are_their_definition() {
    for (q, z) in [(0.001, 0.8), (0.01, 1.1), (0.1, 2.0), (0.5, 1.0), (0.9, 3.0), (0.99, 1.5)] {
        for order in [1.1, 1.5, 2.0, 3.7, 8.0, 10.9] {
            let expected = moment(q, z, order).ln() / (order - 1.0);
            let found = sampled_gaussian::divergence(q, z, order);
            let error = (found - expected).abs();
            assert!(error <= 2e-9 + 1e-7 * expected, "{q} {z} {order}: {found}, {expected}");
        }
    }
}

/// By the definition of `delta`: the integral over what exceeds `exp(epsilon)` times the other.
#[test]
fn the_gaussian_mechanism_is_its_definition() {
    for (mu, epsilon) in [(0.1, 0.05), (0.5, 0.5), (1.0, 1.0), (2.0, 4.0), (4.0, 10.0)] {
        let excess = |x: f64| {
            let near = (-(x - mu) * (x - mu) / 2.0).exp();
            let far = (-x * x / 2.0 + epsilon).exp();
            (near - far).max(0.0) / TAU.sqrt()
        };
        let found = gaussian::delta(mu, epsilon);
        assert_near(found, integral(40.0, excess), 1e-4, &format!("{mu} {epsilon}"));
        assert_near(gaussian::epsilon(mu, found), epsilon, 1e-9, "epsilon");
    }
}

#[test]
fn tails_do_not_vanish() {
    // ln erfc(20), erfc(30) and erfc(100), to 12 digits by continued fractions.
    for x in [11.999, 12.0, 15.0, 20.0, 25.0] {
        let found = super::special::log_erfc(x);
        assert_near(found, libm::erfc(x).ln(), 1e-14, "erfc");
    }
    // erfc(x) lies between these bounds (Abramowitz and Stegun 7.1.13).
    for x in [30.0_f64, 100.0, 1e6] {
        let scaled = super::special::log_erfc(x) + x * x + TAU.sqrt().ln() - 2_f64.sqrt().ln();
        let bound = |by: f64| 1.0 / (x + (x * x + by).sqrt());
        let (low, high) = (2.0 * bound(2.0), 2.0 * bound(4.0 / std::f64::consts::PI));
        let slack = 1e-13 * x * x;
        assert!(scaled >= low.ln() - slack && scaled <= high.ln() + slack, "{x}");
    }
    let cost = epsilon(&releases(1.0, 0.01, 10), 1e-9);
    assert!(cost.is_finite() && cost > 10_000.0, "{cost}");
    assert!(epsilon(&releases(1.0, 1e-200, 1), 1e-9).is_infinite());
}

/// Flower's figures: `compute_adaptive_noise_params` of its unit tests and of a run of 1.41.
#[test]
fn adaptive_norms_take_a_part_of_the_noise() {
    for (noise, deviation, expected) in [
        (1.0, 5.0, 1.005_037_815_259_212),
        (3.0, 5.0, 3.144_854_510_165_755),
        (1.1, 1.0, 1.317_105_548_196_349_4),
    ] {
        assert_near(update_noise_multiplier(noise, deviation), expected, 1e-14, "noise");
    }
    for noise in [10.0, 11.0] {
        assert!(!update_noise_multiplier(noise, 5.0).is_finite());
    }
    let both = [
        releases(1.0, update_noise_multiplier(1.1, 3.0), 4)[0],
        // The count, whose noise is 6 times what one device changes.
        releases(1.0, 6.0, 4)[0],
    ];
    assert_near(epsilon(&both, 1e-5), epsilon(&releases(1.0, 1.1, 4), 1e-5), 1e-9, "both");
}

#[test]
fn nothing_costs_nothing() {
    assert!(epsilon(&[], 1e-5) <= 0.0);
    assert!(epsilon(&releases(0.5, 1.0, 0), 1e-5) <= 0.0);
    assert_eq!(noise_multiplier(1, 1.0, 0.0, 1e-300), None);
}

/// Dwork and Roth 2014, theorem A.1, for `epsilon` up to 1: more noise than is needed.
fn classical_noise_multiplier(epsilon: f64, delta: f64) -> f64 {
    (2.0 * (1.25 / delta).ln()).sqrt() / epsilon
}

/// Bun and Steinke 2016 (arXiv 1605.02065), proposition 1.3.
fn zero_concentrated(count: u32, z: f64, delta: f64) -> f64 {
    let rho = f64::from(count) / (2.0 * z * z);
    rho + 2.0 * (rho * (1.0 / delta).ln()).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Exact is below Rényi's bound, which is below that of zero-concentrated privacy.
    #[test]
    fn bounds_are_in_order(z in 0.5..50.0_f64, count in 1..200_u32, exponent in 2..10_i32) {
        let delta = 10_f64.powi(-exponent);
        let exact = epsilon(&releases(1.0, z, count), delta);
        let renyi = sampled_gaussian::epsilon(&releases(1.0, z, count), delta);
        prop_assert!(exact <= renyi, "{} {}", exact, renyi);
        let zero = zero_concentrated(count, z, delta);
        // Orders are not any number: where the best lies between two, or beyond them, a little is
        // lost.
        prop_assert!(renyi <= 1.02 * zero + 0.02, "{} {}", renyi, zero);
    }

    #[test]
    fn sampling_helps_and_releases_cost(
        q in 0.001..0.999_f64, z in 0.4..10.0_f64, count in 1..100_u32,
    ) {
        let of = |q, z, count| epsilon(&releases(q, z, count), 1e-6);
        let found = of(q, z, count);
        prop_assert!(found.is_finite() && found >= 0.0);
        let all = sampled_gaussian::epsilon(&releases(1.0, z, count), 1e-6);
        prop_assert!(found <= all * (1.0 + 1e-9));
        prop_assert!(found <= of(q, z, count + 1) && of(q, z * 1.1, count) <= found);
        prop_assert!(found <= of((q * 1.1).min(0.9999), z, count) + 1e-9);
        let split = [releases(q, z, count)[0], releases(q, z, 3)[0]];
        prop_assert!((epsilon(&split, 1e-6) - of(q, z, count + 3)).abs() <= 1e-9 * found.max(1.0));
    }

    #[test]
    fn the_noise_for_a_budget_is_the_least(
        target in 0.1..20.0_f64, count in 1..50_u32, sampled in any::<bool>(),
    ) {
        let q = if sampled { 0.1 } else { 1.0 };
        let noise = noise_multiplier(count, q, target, 1e-6).unwrap();
        prop_assert!(epsilon(&releases(q, noise, count), 1e-6) <= target);
        prop_assert!(epsilon(&releases(q, noise * 0.999, count), 1e-6) > target);
    }

    #[test]
    fn the_classical_noise_is_enough(target in 0.01..1.0_f64, exponent in 2..10_i32) {
        let delta = 10_f64.powi(-exponent);
        let noise = classical_noise_multiplier(target, delta);
        prop_assert!(epsilon(&releases(1.0, noise, 1), delta) <= target);
    }
}
