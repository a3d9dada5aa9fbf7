//! Axes in another order.

use super::{Backward, Forward, Kernel};

/// Axis `i` of the output is axis `axes[i]` of the input, the batch axis staying the first.
/// Source: ONNX operator `Transpose`, opset 21.
#[derive(Debug)]
pub(super) struct Transpose {
    /// For each element of an output's example the element of the input's, both in row-major
    /// order.
    source: Vec<usize>,
    /// Elements of one example per step of the first axis, of input and output.
    from_rest: usize,
    to_rest: usize,
}

impl Transpose {
    pub(super) fn new(axes: &[usize], input: &[usize]) -> Self {
        let mut source = vec![0];
        for axis in axes {
            let step: usize = input[axis + 1..].iter().product();
            source = source
                .iter()
                .flat_map(|base| (0..input[*axis]).map(move |at| base + at * step))
                .collect();
        }
        let from_rest = input[1..].iter().product();
        let to_rest = axes[1..].iter().map(|axis| input[*axis]).product();
        Self { source, from_rest, to_rest }
    }

    /// Visits `(from, to)`: places of the same element in input and output.
    fn visit(&self, n: usize, mut visit: impl FnMut(usize, usize)) {
        for (channel, source) in self.source.chunks_exact(self.to_rest).enumerate() {
            for example in 0..n {
                let to = (channel * n + example) * self.to_rest;
                for (at, element) in source.iter().enumerate() {
                    let (first, rest) = (element / self.from_rest, element % self.from_rest);
                    visit((first * n + example) * self.from_rest + rest, to + at);
                }
            }
        }
    }
}

impl Kernel for Transpose {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let output = call.output;
        self.visit(call.batch, |from, to| output[to] = x[from]);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (values, dy) = (&mut gradient.values, call.output_gradient);
        self.visit(call.batch, |from, to| values[from] += dy[to]);
    }
}
