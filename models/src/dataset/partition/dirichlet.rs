//! Shares of each class drawn from a symmetric Dirichlet distribution.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

use super::EXAMPLES_MIN;
use crate::dataset::order::shuffle;

/// Spreads each class over the devices, then fills up those below [`EXAMPLES_MIN`].
///
/// Needs at least one device and as many examples as devices.
pub(super) fn split(
    labels: &[u32],
    devices: usize,
    alpha: f64,
    random: &mut ChaCha8Rng,
) -> Vec<Vec<usize>> {
    let classes = labels.iter().max().map_or(0, |label| *label as usize + 1);
    let mut by_class = vec![Vec::new(); classes];
    for (index, label) in labels.iter().enumerate() {
        by_class[*label as usize].push(index);
    }
    let mut lists = vec![Vec::new(); devices];
    for mut indices in by_class {
        shuffle(&mut indices, random);
        let ends = ends(&shares(devices, alpha, random), indices.len());
        let mut start = 0;
        for (list, end) in lists.iter_mut().zip(ends) {
            list.extend_from_slice(&indices[start..end]);
            start = end;
        }
    }
    fill_up(&mut lists, EXAMPLES_MIN.min(labels.len() / devices));
    lists
}

/// Where each device's run of `count` examples ends, by the shares added up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "counts of examples are far below 2^52, shares lie between 0 and 1"
)]
fn ends(shares: &[f64], count: usize) -> Vec<usize> {
    let mut sum = 0.0;
    let mut ends: Vec<usize> = shares
        .iter()
        .map(|share| {
            sum += share;
            ((sum * count as f64).round() as usize).min(count)
        })
        .collect();
    if let Some(last) = ends.last_mut() {
        *last = count;
    }
    ends
}

/// Moves the last examples of the largest holder to those who have too few.
fn fill_up(lists: &mut [Vec<usize>], least: usize) {
    for poor in 0..lists.len() {
        while lists[poor].len() < least {
            let rich = (0..lists.len()).max_by_key(|at| lists[*at].len()).unwrap_or(poor);
            match lists[rich].pop() {
                Some(index) => lists[poor].push(index),
                None => return,
            }
        }
    }
}

/// `count` shares that sum to 1, drawn from Dirichlet(alpha, ..., alpha).
///
/// Gamma variates divided by their sum, in logarithms: with a small `alpha` most of them are
/// below what an `f64` can hold.
fn shares(count: usize, alpha: f64, random: &mut ChaCha8Rng) -> Vec<f64> {
    let logs: Vec<f64> = (0..count).map(|_| ln_gamma_variate(alpha, random)).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|log| (log - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// The logarithm of a Gamma(alpha, 1) variate.
/// Source: Marsaglia and Tsang 2000, with `G(a) = G(a + 1) U^(1/a)`.
fn ln_gamma_variate(alpha: f64, random: &mut ChaCha8Rng) -> f64 {
    let d = alpha + 1.0 - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let boost = uniform(random).ln() / alpha;
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(random).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln() + boost;
        }
    }
}

/// A standard normal variate. Source: Box and Muller 1958.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}

/// Above 0 and below 1, in steps of 2^-53.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}
