//! Softmax cross-entropy.

use super::sums::{count, narrow};

/// Loss and hits of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Judged {
    /// Mean over the batch.
    pub(crate) loss: f64,
    /// Examples whose largest logit is that of their label (the first of equal ones).
    pub(crate) correct: usize,
}

/// Mean over the batch of `log(sum(exp(z))) - z[label]`, and its gradient
/// `(softmax(z) - onehot) / n` where wanted.
/// Shapes: `logits [classes][n]`, labels `[n]`, each below `classes`.
pub(crate) fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[u32],
    mut gradient: Option<&mut [f32]>,
) -> Judged {
    let n = labels.len();
    let classes = logits.len() / n;
    let mut judged = Judged { loss: 0.0, correct: 0 };
    for (example, label) in labels.iter().enumerate() {
        let label = *label as usize;
        let logit = |class: usize| f64::from(logits[class * n + example]);
        let mut best = 0;
        for class in 1..classes {
            if logit(class) > logit(best) {
                best = class;
            }
        }
        judged.correct += usize::from(best == label);
        let sum: f64 = (0..classes).map(|class| (logit(class) - logit(best)).exp()).sum();
        judged.loss += sum.ln() + logit(best) - logit(label);
        if let Some(gradient) = &mut gradient {
            for class in 0..classes {
                let probability = (logit(class) - logit(best)).exp() / sum;
                let target = if class == label { 1.0 } else { 0.0 };
                gradient[class * n + example] = narrow((probability - target) / count(n));
            }
        }
    }
    judged.loss /= count(n);
    judged
}
