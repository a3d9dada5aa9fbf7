//! Losses and their gradients.

use super::sums::{count, narrow};
use crate::train::{Loss, Targets};

/// Loss and hits of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Judged {
    /// Mean over the batch.
    pub(crate) loss: f64,
    /// Examples whose largest output is that of their target (the first of equal ones). With one
    /// output: those on the target's side of even odds for a binary loss, none otherwise.
    pub(crate) correct: usize,
}

/// The loss of outputs `[outputs][n]`, and its gradient where wanted.
/// Source: PyTorch's `CrossEntropyLoss`, `MSELoss` and `BCEWithLogitsLoss`, reduced to means.
pub(crate) fn judge(
    loss: Loss,
    outputs: &[f32],
    n: usize,
    targets: Targets<'_>,
    mut gradient: Option<&mut [f32]>,
) -> Judged {
    let width = outputs.len() / n;
    let mut judged = Judged { loss: 0.0, correct: 0 };
    let (mut z, mut t, mut dz) = (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
    for example in 0..n {
        for (output, z) in z.iter_mut().enumerate() {
            *z = f64::from(outputs[output * n + example]);
        }
        read_targets(targets, example, &mut t);
        judged.correct += usize::from(is_hit(loss, &z, &t));
        judged.loss += match loss {
            Loss::SoftmaxCrossEntropy { label_smoothing } => {
                let smoothing = f64::from(label_smoothing);
                let even = smoothing / count(width);
                for t in &mut t {
                    *t = *t * (1.0 - smoothing) + even;
                }
                softmax_cross_entropy(&z, &t, &mut dz)
            }
            Loss::MeanSquaredError => mean(&z, &t, &mut dz, squared_error),
            Loss::BinaryCrossEntropy => mean(&z, &t, &mut dz, binary_cross_entropy),
        };
        if let Some(gradient) = &mut gradient {
            for (output, dz) in dz.iter().enumerate() {
                gradient[output * n + example] = narrow(dz / count(n));
            }
        }
    }
    judged.loss /= count(n);
    judged
}

fn read_targets(targets: Targets<'_>, example: usize, into: &mut [f64]) {
    match targets {
        Targets::Labels(labels) => {
            let label = labels[example];
            if let [single] = into {
                *single = f64::from(label);
                return;
            }
            into.fill(0.0);
            into[label as usize] = 1.0;
        }
        Targets::Values(values) => {
            let row = values[example * into.len()..].iter();
            into.iter_mut().zip(row).for_each(|(into, value)| *into = f64::from(*value));
        }
    }
}

fn is_hit(loss: Loss, z: &[f64], t: &[f64]) -> bool {
    if let ([z], [t]) = (z, t) {
        return match loss {
            Loss::BinaryCrossEntropy => (*z > 0.0) == (*t > 0.5),
            Loss::SoftmaxCrossEntropy { .. } => true,
            Loss::MeanSquaredError => false,
        };
    }
    largest(z) == largest(t)
}

/// The first of the largest.
fn largest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

fn softmax_cross_entropy(z: &[f64], t: &[f64], dz: &mut [f64]) -> f64 {
    let most = z[largest(z)];
    let sum: f64 = z.iter().map(|z| (z - most).exp()).sum();
    let level = sum.ln() + most;
    let total: f64 = t.iter().sum();
    let mut loss = 0.0;
    for ((z, t), dz) in z.iter().zip(t).zip(dz) {
        // A class without a share has none in the loss, even if its output is infinite.
        if *t > 0.0 {
            loss += t * (level - z);
        }
        *dz = (z - most).exp() / sum * total - t;
    }
    // Outputs that are no numbers must show.
    if sum.is_finite() { loss } else { f64::NAN }
}

/// The mean over the outputs of a loss of one output and its slope.
fn mean(z: &[f64], t: &[f64], dz: &mut [f64], one: fn(f64, f64) -> (f64, f64)) -> f64 {
    let share = count(z.len()).recip();
    let mut sum = 0.0;
    for ((z, t), dz) in z.iter().zip(t).zip(dz) {
        let (loss, slope) = one(*z, *t);
        sum += loss * share;
        *dz = slope * share;
    }
    sum
}

fn squared_error(z: f64, t: f64) -> (f64, f64) {
    ((z - t).powi(2), 2.0 * (z - t))
}

fn binary_cross_entropy(z: f64, t: f64) -> (f64, f64) {
    let small = (-z.abs()).exp();
    let sigmoid = if z >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
    (z.max(0.0) - z * t + small.ln_1p(), sigmoid - t)
}
