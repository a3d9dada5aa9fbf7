//! The same elements of each example under another shape, which in memory is another order.

use super::{Backward, Forward, Kernel};

/// Source: ONNX operators `Reshape` and `Flatten`, opset 21.
#[derive(Debug)]
pub(super) struct Reshape {
    /// Elements of one example per step of the first axis, before and after.
    from: usize,
    to: usize,
}

impl Reshape {
    pub(super) fn new(from: &[usize], to: &[usize]) -> Self {
        Self { from: from[1..].iter().product(), to: to[1..].iter().product() }
    }
}

impl Kernel for Reshape {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let output = call.output;
        reorder(x.len(), call.batch, self.from, self.to, |from, to, run| {
            output[to..to + run].copy_from_slice(&x[from..from + run]);
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let dy = call.output_gradient;
        gradient.clear_unless_adding();
        let values = &mut gradient.values;
        reorder(dy.len(), call.batch, self.from, self.to, |from, to, run| {
            values[from..from + run].iter_mut().zip(&dy[to..]).for_each(|(into, dy)| *into += dy);
        });
    }
}

/// Visits `(from, to, run)`: places of the same elements in `[.., n, from_rest]` and in
/// `[.., n, to_rest]`.
fn reorder(
    len: usize,
    n: usize,
    from_rest: usize,
    to_rest: usize,
    mut visit: impl FnMut(usize, usize, usize),
) {
    if from_rest == to_rest {
        visit(0, 0, len);
        return;
    }
    let elements = len / n;
    let mut at = 0;
    while at < elements {
        let (from, from_in) = (at / from_rest, at % from_rest);
        let (to, to_in) = (at / to_rest, at % to_rest);
        let run = (from_rest - from_in).min(to_rest - to_in);
        for example in 0..n {
            let source = (from * n + example) * from_rest + from_in;
            visit(source, (to * n + example) * to_rest + to_in, run);
        }
        at += run;
    }
}

/// Examples `[n, c, rest]` as people give them, put in the order `[c][n][rest]`.
pub(crate) fn from_examples(examples: &[f32], n: usize, rest: usize, out: &mut [f32]) {
    let channels = examples.len() / n / rest;
    for (example, pixels) in examples.chunks_exact(channels * rest).enumerate() {
        for (channel, row) in pixels.chunks_exact(rest).enumerate() {
            let to = (channel * n + example) * rest;
            out[to..to + rest].copy_from_slice(row);
        }
    }
}
