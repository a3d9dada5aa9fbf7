//! Axes in another order.

use rayon::prelude::*;

use super::{Backward, Forward, Gradient, Kernel, Reads};

/// Axis `i` of the output is axis `axes[i]` of the input, the batch axis staying the first.
/// Source: ONNX operator `Transpose`, opset 21.
#[derive(Debug)]
pub(super) struct Transpose {
    /// For each element of an output's example the element of the input's, both in row-major
    /// order; and the other way round.
    sources: Vec<usize>,
    targets: Vec<usize>,
}

impl Transpose {
    pub(super) fn new(axes: &[usize], input: &[usize]) -> Self {
        let mut sources = vec![0];
        for axis in axes {
            let step: usize = input[axis + 1..].iter().product();
            sources = sources
                .iter()
                .flat_map(|base| (0..input[*axis]).map(move |at| base + at * step))
                .collect();
        }
        let mut targets = vec![0; sources.len()];
        for (to, from) in sources.iter().enumerate() {
            targets[*from] = to;
        }
        Self { sources, targets }
    }
}

/// Puts or adds element `from[i]` of each example to element `i`.
fn reorder(from: &[usize], n: usize, values: &[f32], into: &mut [f32], add: bool) {
    let rows = into.par_chunks_exact_mut(n).with_min_len(1 << 10).zip(from);
    rows.for_each(|(into, from)| {
        Gradient { values: into, add }.put(values[from * n..(from + 1) * n].iter().copied());
    });
}

impl Kernel for Transpose {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        reorder(&self.sources, call.batch, x, call.output, false);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let (dy, add) = (call.output_gradient, gradient.add);
        reorder(&self.targets, call.batch, dy, gradient.values, add);
    }
}
