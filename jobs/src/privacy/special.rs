//! Functions of statistics as logarithms, so that tails do not vanish.

use std::f64::consts::{LN_2, PI, SQRT_2};

/// `ln(exp(a) + exp(b))`.
pub(super) fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln(exp(a) - exp(b))`, minus infinity where `b` is not below `a`.
pub(super) fn log_sub(a: f64, b: f64) -> f64 {
    if b == f64::NEG_INFINITY {
        a
    } else if a <= b {
        f64::NEG_INFINITY
    } else {
        a + (-(b - a).exp()).ln_1p()
    }
}

/// `ln erfc(x)`. Source of the tail: Abramowitz and Stegun 1964, 7.1.23.
pub(super) fn log_erfc(x: f64) -> f64 {
    const TAIL: f64 = 12.0;
    if x < TAIL {
        return libm::erfc(x).ln();
    }
    // The terms fall by a factor of 288 at least; what follows the last one is below 1e-16.
    let step = 1.0 / (2.0 * x * x);
    let (mut sum, mut term) = (1.0, 1.0);
    for odd in [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0] {
        term *= -odd * step;
        sum += term;
    }
    -x * x - x.ln() - 0.5 * PI.ln() + sum.ln()
}

/// `ln P(X <= x)` of a standard normal `X`.
pub(super) fn log_normal_cdf(x: f64) -> f64 {
    log_erfc(-x / SQRT_2) - LN_2
}
