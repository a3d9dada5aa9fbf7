//! The Gaussian mechanism, exactly.
//!
//! With noise of deviation `z` times the sensitivity, neighbours are told apart as `N(0, 1)` and
//! `N(mu, 1)` with `mu = 1 / z`. Releases of `mu_1`, `mu_2`, .. compose to one of
//! `sqrt(mu_1^2 + mu_2^2 + ..)`, also when later ones depend on earlier ones (Dong, Roth, Su 2019,
//! arXiv 1905.02383, corollary 3.3).

use super::special::log_normal_cdf;

/// The least `delta` at this `epsilon` (Balle and Wang 2018, arXiv 1805.06530, theorem 8).
pub fn delta(mu: f64, epsilon: f64) -> f64 {
    if mu <= 0.0 {
        return 0.0;
    }
    if !mu.is_finite() {
        return 1.0;
    }
    let above = log_normal_cdf(mu / 2.0 - epsilon / mu);
    let below = epsilon + log_normal_cdf(-mu / 2.0 - epsilon / mu);
    (-above.exp() * (below - above).exp_m1()).max(0.0)
}

/// The least `epsilon` at this `delta`, above 0 and below 1; rounded up.
pub fn epsilon(mu: f64, delta: f64) -> f64 {
    let fits = |epsilon: f64| self::delta(mu, epsilon) <= delta;
    if fits(0.0) {
        return 0.0;
    }
    if !mu.is_finite() {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while !fits(high) {
        (low, high) = (high, 2.0 * high);
        if !high.is_finite() {
            return high;
        }
    }
    // 60 halvings leave nothing of the interval.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}
