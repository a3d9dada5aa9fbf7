//! Functions of one element at a time.

use rayon::prelude::*;

use super::simd::vectorised;
use super::{Backward, Forward, Gradient, Kernel, Reads};
use crate::graph;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// A function of each element.
/// Where a function has a corner its gradient there is PyTorch's: 0 at the bounds of `Clip` (as
/// of `ReLU6`; `torch.clamp` has 1 there) and `HardSigmoid`, and at 0 for `Relu`.
/// Source: ONNX operators `Relu`, `LeakyRelu`, `Clip`, `Sigmoid`, `Tanh`, `HardSigmoid`,
/// `HardSwish` and `Neg`, opset 22.
#[derive(Debug)]
pub(super) struct Activation(pub(super) graph::Activation);

impl Kernel for Activation {
    fn reads(&self) -> Reads {
        use graph::Activation as A;
        match self.0 {
            A::Relu | A::Clip { .. } | A::Sigmoid | A::Tanh | A::HardSigmoid { .. } => {
                Reads::OUTPUT
            }
            A::LeakyRelu { .. } | A::HardSwish => Reads::INPUTS,
            A::Neg => Reads::NOTHING,
        }
    }

    fn forward(&mut self, call: Forward<'_>) {
        use graph::Activation as A;
        let Some(x) = call.inputs.first() else { return };
        let y = call.output;
        // NaN stays NaN, so that a loss that diverges is seen.
        match self.0 {
            A::Relu => map(y, x, |x| if x < 0.0 { 0.0 } else { x }),
            A::LeakyRelu { slope } => map(y, x, |x| if x < 0.0 { slope * x } else { x }),
            A::Clip { least, most } => map(y, x, |x| clip(x, least, most)),
            A::Sigmoid => map(y, x, |x| (exp(-x) + 1.0).recip()),
            A::Tanh => map(y, x, f32::tanh),
            A::HardSigmoid { slope, level } => map(y, x, |x| clip(slope * x + level, 0.0, 1.0)),
            A::HardSwish => map(y, x, |x| x * clip(x / 6.0 + 0.5, 0.0, 1.0)),
            A::Neg => map(y, x, |x| -x),
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        use graph::Activation as A;
        let ([x], Some(Some(gradient))) = (call.inputs, call.input_gradients.first_mut()) else {
            return;
        };
        let (y, dy) = (call.output, call.output_gradient);
        match self.0 {
            A::Relu => put(gradient, dy, y, |y| if y > 0.0 { 1.0 } else { 0.0 }),
            A::LeakyRelu { slope } => put(gradient, dy, x, |x| if x > 0.0 { 1.0 } else { slope }),
            A::Clip { least, most } => {
                put(gradient, dy, y, |y| f32::from(y > least) * f32::from(y < most));
            }
            A::Sigmoid => put(gradient, dy, y, |y| y * (1.0 - y)),
            A::Tanh => put(gradient, dy, y, |y| 1.0 - y * y),
            A::HardSigmoid { slope, .. } => {
                put(gradient, dy, y, |y| slope * f32::from(y > 0.0) * f32::from(y < 1.0));
            }
            A::HardSwish => put(gradient, dy, x, |x| {
                let inner = if x >= 3.0 { 1.0 } else { x / 3.0 + 0.5 };
                if x <= -3.0 { 0.0 } else { inner }
            }),
            A::Neg => put(gradient, dy, dy, |_| -1.0),
        }
    }
}

/// `e^x` within 2e-7 of its value, in operations that vectors have; at most `e^88`.
/// Source: Cephes, `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Added to a number of less than 2^22, it leaves the nearest whole one in the last bits.
    const ROUND: f32 = 12_582_912.0;
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // `ln 2` in two parts: products with whole numbers and the first are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = clip(x, -87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = x - whole * LN_2[0] - whole * LN_2[1];
    let series = COEFFICIENTS.iter().fold(0.0, |sum, coefficient| sum * rest + coefficient);
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    (series * rest * rest + rest + 1.0) * power
}

#[inline(always)]
pub(super) fn clip(x: f32, least: f32, most: f32) -> f32 {
    let x = if x < least { least } else { x };
    if x > most { most } else { x }
}

fn map(y: &mut [f32], x: &[f32], function: impl Fn(f32) -> f32 + Sync) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised(|| y.iter_mut().zip(x).for_each(|(y, x)| *y = function(*x)));
    });
}

/// The gradient by the input: `dy` times the slope, a function of the input or of the output.
fn put(gradient: &mut Gradient<'_>, dy: &[f32], at: &[f32], slope: impl Fn(f32) -> f32 + Sync) {
    let add = gradient.add;
    let chunks = gradient.values.par_chunks_mut(CHUNK);
    chunks.zip(dy.par_chunks(CHUNK).zip(at.par_chunks(CHUNK))).for_each(|(values, (dy, at))| {
        vectorised(|| {
            let terms = dy.iter().zip(at).map(|(dy, at)| dy * slope(*at));
            Gradient { values, add }.put(terms);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn powers_of_e_are_near() {
        for step in -870_000..=880_000_i32 {
            let x = f64::from(step) * 1e-4;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
            let x = x as f32;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2e-7, "{x}");
        }
        assert!((exp(f32::NEG_INFINITY) - 1.6e-38).abs() < 1e-38);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }
}
