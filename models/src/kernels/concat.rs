//! Values behind each other along an axis.

use super::{Backward, Forward, Gradient, Kernel, Reads};

/// Shapes: `[n, .., d1, ..]`, `[n, .., d2, ..]`, ... -> `[n, .., d1 + d2 + ..., ..]`.
/// Source: ONNX operator `Concat`, opset 13.
#[derive(Debug)]
pub(super) struct Concat {
    /// Elements of each input that lie together, and where they begin in the output's stretch.
    blocks: Vec<(usize, usize)>,
    /// Elements of the output that lie together.
    stretch: usize,
}

impl Concat {
    pub(super) fn new(axis: usize, inputs: &[&[usize]]) -> Self {
        let mut stretch = 0;
        let blocks = inputs.iter().map(|dims| {
            let (start, len) = (stretch, dims[axis..].iter().product());
            stretch += len;
            (start, len)
        });
        let blocks = blocks.collect();
        Self { blocks, stretch }
    }
}

impl Kernel for Concat {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let n = call.batch;
        for (x, (start, len)) in call.inputs.iter().zip(&self.blocks) {
            let stretches = call.output.chunks_exact_mut(self.stretch * n);
            for (y, x) in stretches.zip(x.chunks_exact(len * n)) {
                y[start * n..(start + len) * n].copy_from_slice(x);
            }
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        let n = call.batch;
        for (gradient, (start, len)) in call.input_gradients.iter_mut().zip(&self.blocks) {
            let Some(Gradient { values, add }) = gradient else { continue };
            let stretches = call.output_gradient.chunks_exact(self.stretch * n);
            for (values, dy) in values.chunks_exact_mut(len * n).zip(stretches) {
                let dy = &dy[start * n..(start + len) * n];
                Gradient { values, add: *add }.put(dy.iter().copied());
            }
        }
    }
}
