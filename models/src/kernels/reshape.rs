//! The same elements of each example under another shape, which in memory is the same order.

use super::{Backward, Forward, Kernel, Reads};

/// Source: ONNX operators `Reshape` and `Flatten`, opset 21.
#[derive(Debug)]
pub(super) struct Reshape;

impl Kernel for Reshape {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        call.output.copy_from_slice(x);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.put(call.output_gradient.iter().copied());
    }
}

/// Examples `[n][d]` as people give them, in the order `[d][n]`.
pub(crate) fn from_examples(examples: &[f32], n: usize, out: &mut [f32]) {
    /// Elements that are written side by side.
    const SIDE: usize = 16;
    let d = examples.len() / n;
    for (part, out) in out.chunks_mut(SIDE * n).enumerate() {
        for (example, values) in examples.chunks_exact(d).enumerate() {
            let values = &values[part * SIDE..];
            for (into, value) in out[example..].iter_mut().step_by(n).zip(values) {
                *into = *value;
            }
        }
    }
}
