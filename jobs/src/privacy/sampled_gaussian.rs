//! The Gaussian mechanism over a Poisson sample, by Rényi differential privacy.
//!
//! Each device is in a release by chance `q`, on its own. The Rényi divergence of order `a`
//! between releases with and without a device is `ln(A) / (a - 1)` at most, `A` the `a`-th moment
//! of `(1 - q) + q exp((2 x - 1) / (2 z^2))` over `x` from `N(0, z^2)` (Mironov, Talwar, Zhang 2019,
//! arXiv 1908.10530). Divergences of one order add up over releases (Mironov 2017, arXiv
//! 1702.07476).

use std::f64::consts::{LN_2, SQRT_2};

use super::Releases;
use super::special::{log_add, log_erfc, log_sub};

/// Terms of a fractional moment, at most; the lowest order needs a few thousand.
const TERMS_MAX: u32 = 20_000;
/// Terms below this logarithm are nothing beside a moment, which is at least 1. Their signs
/// alternate, so all that follow one are less than it.
const VANISHED: f64 = -25.0;

/// Orders that are tried: 1.1 to 10.9, whole ones to 63, and some up to 1024.
fn orders() -> impl Iterator<Item = f64> {
    let low = (11..110_u32).map(|tenths| f64::from(tenths) / 10.0);
    let high = [64, 80, 96, 128, 192, 256, 384, 512, 768, 1024];
    low.chain((11..64).chain(high).map(f64::from))
}

/// The `epsilon` of all these releases at this `delta`: the least over the orders, by the
/// conversion of Canonne, Kamath, Steinke 2020 (arXiv 2004.00010, proposition 12; the same as
/// Balle et al. 2020, arXiv 1905.09982, theorem 21).
pub fn epsilon(releases: &[Releases], delta: f64) -> f64 {
    let of_order = |order: f64| {
        let divergence: f64 = releases
            .iter()
            .map(|it| {
                let one = divergence(it.sampling_rate, it.noise_multiplier, order);
                if it.count == 0 { 0.0 } else { f64::from(it.count) * one }
            })
            .sum();
        divergence + (-1.0 / order).ln_1p() - (delta.ln() + order.ln()) / (order - 1.0)
    };
    orders().map(of_order).fold(f64::INFINITY, f64::min).max(0.0)
}

/// The Rényi divergence of one release, of an order above 1, with sampling rate `q` and noise
/// multiplier `z`; infinite when it is too large to be told.
pub fn divergence(q: f64, z: f64, order: f64) -> f64 {
    if q <= 0.0 {
        return 0.0;
    }
    if q >= 1.0 {
        return order / (2.0 * z * z);
    }
    let whole = (order - order.round()).abs() <= 0.0;
    let log_moment = if whole { whole_moment(q, z, order) } else { fractional_moment(q, z, order) };
    (log_moment / (order - 1.0)).max(0.0)
}

/// `ln A` by the binomial theorem.
fn whole_moment(q: f64, z: f64, order: f64) -> f64 {
    let (log_q, log_rest) = (q.ln(), (-q).ln_1p());
    let (mut sum, mut coefficient, mut k) = (f64::NEG_INFINITY, 0.0, 0.0);
    while k <= order {
        let weight = coefficient + k * log_q + (order - k) * log_rest;
        sum = log_add(sum, weight + k * (k - 1.0) / (2.0 * z * z));
        coefficient += (order - k).ln() - (k + 1.0).ln();
        k += 1.0;
    }
    sum
}

/// `ln A` by two binomial series, one on each side of the point where both terms are equal
/// (section 3.3 of the paper).
fn fractional_moment(q: f64, z: f64, order: f64) -> f64 {
    let (log_q, log_rest) = (q.ln(), (-q).ln_1p());
    let half_erfc = |x: f64| log_erfc(x / (SQRT_2 * z)) - LN_2;
    let power = |k: f64| k * (k - 1.0) / (2.0 * z * z);
    let equal = z * z * (log_rest - log_q) + 0.5;
    let (mut positive, mut negative) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    // The binomial coefficient's logarithm and sign.
    let (mut coefficient, mut is_positive) = (0.0, true);
    for index in 0..TERMS_MAX {
        let i = f64::from(index);
        let j = order - i;
        let below = coefficient + i * log_q + j * log_rest + power(i) + half_erfc(i - equal);
        let above = coefficient + j * log_q + i * log_rest + power(j) + half_erfc(equal - j);
        let sum = if is_positive { &mut positive } else { &mut negative };
        *sum = log_add(*sum, log_add(below, above));
        if i > order && below.max(above) < VANISHED {
            return log_sub(positive, negative);
        }
        coefficient += j.abs().ln() - (i + 1.0).ln();
        is_positive ^= j < 0.0;
    }
    f64::INFINITY
}
