//! Functions of one element at a time.

use rayon::prelude::*;

use super::{Backward, Forward, Gradient, Kernel};
use crate::graph;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// A function of each element.
/// Where a function has a corner its gradient there is PyTorch's: 0 at the bounds of `Clip` (as
/// of `ReLU6`) and `HardSigmoid`, and at 0 for `Relu`.
/// Source: ONNX operators `Relu`, `LeakyRelu`, `Clip`, `Sigmoid`, `Tanh`, `HardSigmoid`,
/// `HardSwish` and `Neg`, opset 22.
#[derive(Debug)]
pub(super) struct Activation(pub(super) graph::Activation);

impl Kernel for Activation {
    fn forward(&mut self, call: Forward<'_>) {
        use graph::Activation as A;
        let Some(x) = call.inputs.first() else { return };
        let y = call.output;
        // NaN stays NaN, so that a loss that diverges is seen.
        match self.0 {
            A::Relu => map(y, x, |x| if x < 0.0 { 0.0 } else { x }),
            A::LeakyRelu { slope } => map(y, x, |x| if x < 0.0 { slope * x } else { x }),
            A::Clip { least, most } => map(y, x, |x| clip(x, least, most)),
            A::Sigmoid => map(y, x, |x| ((-x).exp() + 1.0).recip()),
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
                put(gradient, dy, x, |x| f32::from(x > least) * f32::from(x < most));
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
            A::Neg => put(gradient, dy, y, |_| -1.0),
        }
    }
}

fn clip(x: f32, least: f32, most: f32) -> f32 {
    let x = if x < least { least } else { x };
    if x > most { most } else { x }
}

fn map(y: &mut [f32], x: &[f32], function: impl Fn(f32) -> f32 + Sync) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = function(*x));
    });
}

/// The gradient by the input: `dy` times the slope, a function of the input or of the output.
fn put(gradient: &mut Gradient<'_>, dy: &[f32], at: &[f32], slope: impl Fn(f32) -> f32 + Sync) {
    let add = gradient.add;
    let chunks = gradient.values.par_chunks_mut(CHUNK);
    chunks.zip(dy.par_chunks(CHUNK).zip(at.par_chunks(CHUNK))).for_each(|(values, (dy, at))| {
        let terms = dy.iter().zip(at).map(|(dy, at)| dy * slope(*at));
        Gradient { values, add }.put(terms);
    });
}
