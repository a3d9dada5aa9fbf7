//! Batch normalisation.

use rayon::prelude::*;

use super::simd::vectorised;
use super::sums::{count, moments, narrow, sum_of};
use super::{Backward, Forward, Kernel, Reads};

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` per channel: with the batch's statistics
/// in training, with running ones otherwise.
/// Shapes: `x [n, c, ...]`, `scale`, `bias`, `mean`, `variance` all `[c]` -> that of `x`.
/// The batch's variance is the biased one; the running variance takes the unbiased one, as
/// PyTorch's does. Source: ONNX operator `BatchNormalization`, opset 15; Ioffe & Szegedy 2015.
#[derive(Debug)]
pub(super) struct BatchNormalization {
    epsilon: f32,
    /// Share of the old running statistics in the new ones.
    momentum: f32,
    /// Whether the last forward pass was one of training.
    training: bool,
    channels: Vec<Channel>,
}

/// The last batch's statistics of a channel.
#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    mean: f32,
    /// What rounding took from the mean.
    rest: f32,
    variance: f64,
    /// `1 / sqrt(variance + epsilon)`
    inverse: f32,
    /// Sums of the gradient, and of its product with the normalised input.
    gradient_sum: f32,
    gradient_dot: f32,
}

impl BatchNormalization {
    pub(super) fn new(channels: usize, epsilon: f32, momentum: f32) -> Self {
        Self { epsilon, momentum, training: true, channels: vec![Channel::default(); channels] }
    }

    fn measure(&mut self, x: &[f32], row_len: usize) {
        let epsilon = f64::from(self.epsilon);
        self.channels.par_iter_mut().zip(x.par_chunks_exact(row_len)).for_each(|(channel, x)| {
            channel.mean = narrow(sum_of(x, x, |x, _| x) / count(row_len));
            let mean = channel.mean;
            let (rest, squares) = moments(x, mean);
            let rest = rest / count(row_len);
            channel.rest = narrow(rest);
            channel.variance = (squares / count(row_len) - rest * rest).max(0.0);
            channel.inverse = narrow((channel.variance + epsilon).sqrt().recip());
        });
    }

    /// Moves the running statistics towards the batch's.
    fn track(&self, states: &mut [Vec<f32>], row_len: usize) {
        let [mean, variance] = states else { return };
        let unbiased = count(row_len) / count(row_len.max(2) - 1);
        let keep = f64::from(self.momentum);
        let mix = |old: &mut f32, new: f64| {
            *old = narrow(keep * f64::from(*old) + (1.0 - keep) * new);
        };
        for ((channel, mean), variance) in self.channels.iter().zip(mean).zip(variance) {
            mix(mean, f64::from(channel.mean) + f64::from(channel.rest));
            mix(variance, channel.variance * unbiased);
        }
    }
}

impl Kernel for BatchNormalization {
    fn reads(&self) -> Reads {
        Reads::INPUTS
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, scale, bias] = call.inputs else { return };
        let row_len = x.len() / self.channels.len();
        self.training = call.training;
        if call.training && call.again {
            // The last batch's statistics are still there.
        } else if call.training {
            self.measure(x, row_len);
            self.track(call.states, row_len);
        } else if let [mean, variance] = call.states {
            for ((channel, mean), variance) in self.channels.iter_mut().zip(mean).zip(variance) {
                (channel.mean, channel.rest) = (*mean, 0.0);
                channel.inverse = (*variance + self.epsilon).sqrt().recip();
            }
        }
        let rows = call.output.par_chunks_exact_mut(row_len).zip(x.par_chunks_exact(row_len));
        let parameters = self.channels.par_iter().zip(scale.par_iter().zip(*bias));
        rows.zip(parameters).for_each(|((y, x), (channel, (scale, bias)))| {
            let (mean, factor) = (channel.mean, channel.inverse * scale);
            let bias = bias - channel.rest * factor;
            vectorised(|| {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * factor + bias);
            });
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, scale, ..] = call.inputs else { return };
        let [x_gradient, scale_gradient, bias_gradient] = call.input_gradients else { return };
        let row_len = x.len() / self.channels.len();
        let rows = x.par_chunks_exact(row_len).zip(call.output_gradient.par_chunks_exact(row_len));
        self.channels.par_iter_mut().zip(rows.clone()).for_each(|(channel, (x, dy))| {
            let mean = channel.mean;
            channel.gradient_sum = narrow(sum_of(dy, dy, |dy, _| dy));
            let dot = sum_of(x, dy, |x, dy| (x - mean) * dy);
            let dot = dot - f64::from(channel.rest) * f64::from(channel.gradient_sum);
            channel.gradient_dot = narrow(dot * f64::from(channel.inverse));
        });
        if let Some(gradient) = scale_gradient {
            gradient.put(self.channels.iter().map(|channel| channel.gradient_dot));
        }
        if let Some(gradient) = bias_gradient {
            gradient.put(self.channels.iter().map(|channel| channel.gradient_sum));
        }
        let Some(gradient) = x_gradient else { return };
        let (add, training) = (gradient.add, self.training);
        let parameters = self.channels.par_iter().zip(scale.par_iter());
        let targets = gradient.values.par_chunks_exact_mut(row_len);
        targets.zip(rows.zip(parameters)).for_each(|(into, ((x, dy), (channel, scale)))| {
            // Statistics that were not the batch's do not depend on it.
            let share = if training { narrow(count(row_len).recip()) } else { 0.0 };
            let factor = scale * channel.inverse;
            let slope = channel.gradient_dot * share * channel.inverse;
            let level = channel.gradient_sum * share - channel.rest * slope;
            let mean = channel.mean;
            let dx = |(x, dy): (&f32, &f32)| factor * (dy - level - (x - mean) * slope);
            vectorised(|| super::Gradient { values: into, add }.put(x.iter().zip(dy).map(dx)));
        });
    }
}
