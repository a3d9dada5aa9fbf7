//! Values behind each other along an axis.

use super::{Backward, Forward, Gradient, Kernel};

/// Shapes: `[n, .., d1, ..]`, `[n, .., d2, ..]`, ... -> `[n, .., d1 + d2 + ..., ..]`.
/// Source: ONNX operator `Concat`, opset 13.
#[derive(Debug)]
pub(super) struct Concat {
    /// Whether the axis is the first, before the examples in memory.
    first_axis: bool,
    /// Elements of each input that lie together, of all examples if the axis is the first.
    blocks: Vec<usize>,
}

impl Concat {
    pub(super) fn new(axis: usize, inputs: &[&[usize]]) -> Self {
        let blocks = inputs.iter().map(|dims| dims[axis..].iter().product()).collect();
        Self { first_axis: axis == 0, blocks }
    }

    /// For each input, elements that lie together and where they begin in the output's stretch
    /// of so many elements.
    fn blocks(&self, n: usize) -> (Vec<(usize, usize)>, usize) {
        let factor = if self.first_axis { n } else { 1 };
        let mut end = 0;
        let blocks = self.blocks.iter().map(|block| {
            let start = end;
            end += block * factor;
            (start, block * factor)
        });
        (blocks.collect(), end)
    }
}

impl Kernel for Concat {
    fn forward(&mut self, call: Forward<'_>) {
        let (blocks, stretch) = self.blocks(call.batch);
        for (x, (start, len)) in call.inputs.iter().zip(blocks) {
            for (y, x) in call.output.chunks_exact_mut(stretch).zip(x.chunks_exact(len)) {
                y[start..start + len].copy_from_slice(x);
            }
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        let (blocks, stretch) = self.blocks(call.batch);
        for (gradient, (start, len)) in call.input_gradients.iter_mut().zip(blocks) {
            let Some(Gradient { values, add }) = gradient else { continue };
            let stretches = call.output_gradient.chunks_exact(stretch);
            for (values, dy) in values.chunks_exact_mut(len).zip(stretches) {
                Gradient { values, add: *add }.put(dy[start..start + len].iter().copied());
            }
        }
    }
}
