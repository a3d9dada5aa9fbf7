//! Padding that no window takes in.

use super::layout::Layout;
use super::{Backward, Forward, Kernel};

/// A constant before and behind each axis of an example.
/// Shapes: `x [n, d1, ...]` -> `[n, begin1 + d1 + end1, ...]`.
/// Source: ONNX operator `Pad`, opset 21, mode `constant`.
#[derive(Debug)]
pub(super) struct Pad {
    value: f32,
    /// For each element of an input's example the element of the output's, both in row-major
    /// order.
    targets: Vec<usize>,
    input: Layout,
    output: Layout,
}

impl Pad {
    pub(super) fn new(begin: &[usize], value: f32, input: &[usize], output: &[usize]) -> Self {
        let mut targets = vec![0];
        for ((extent, padded), begin) in input.iter().zip(output).zip(begin) {
            targets = targets
                .iter()
                .flat_map(|base| (0..*extent).map(move |at| base * padded + begin + at))
                .collect();
        }
        Self { value, targets, input: Layout::new(input), output: Layout::new(output) }
    }

    /// Visits `(from, to)`: places of the same element in input and output.
    fn visit(&self, n: usize, mut visit: impl FnMut(usize, usize)) {
        for (element, target) in self.targets.iter().enumerate() {
            let pairs = self.input.places(element, n).zip(self.output.places(*target, n));
            pairs.for_each(|(from, to)| visit(from, to));
        }
    }
}

impl Kernel for Pad {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let output = call.output;
        output.fill(self.value);
        self.visit(call.batch, |from, to| output[to] = x[from]);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (values, dy) = (&mut gradient.values, call.output_gradient);
        self.visit(call.batch, |from, to| values[from] += dy[to]);
    }
}
