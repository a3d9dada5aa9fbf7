//! Sums and means over axes.

use super::layout::Layout;
use super::sums::{count, narrow};
use super::{Backward, Forward, Kernel};

/// The sum or mean over axes of an example.
/// Shapes: `x [n, ...]` -> the same without these axes, or with 1 in their place.
/// Source: ONNX operators `ReduceSum`, opset 13, and `ReduceMean`, opset 18.
#[derive(Debug)]
pub(super) struct Reduce {
    /// For each element of an input's example the element of the output's that it is added to,
    /// both in row-major order.
    targets: Vec<usize>,
    input: Layout,
    output: Layout,
    /// 1, or one over the number of elements that are added.
    share: f32,
    sums: Vec<f64>,
}

impl Reduce {
    pub(super) fn new(axes: &[usize], mean: bool, input: &[usize], output: &[usize]) -> Self {
        let mut targets = vec![0];
        for (axis, extent) in input.iter().enumerate() {
            let (stretch, step) = if axes.contains(&axis) { (1, 0) } else { (*extent, 1) };
            targets = targets
                .iter()
                .flat_map(|base| (0..*extent).map(move |at| base * stretch + at * step))
                .collect();
        }
        let added = axes.iter().map(|axis| input[*axis]).product();
        let share = if mean { narrow(count(added).recip()) } else { 1.0 };
        let (input, output) = (Layout::new(input), Layout::new(output));
        Self { targets, input, output, share, sums: Vec::new() }
    }

    /// Visits `(from, to)`: places of an element and of the sum it is part of.
    fn visit(&self, n: usize, mut visit: impl FnMut(usize, usize)) {
        for (element, target) in self.targets.iter().enumerate() {
            let pairs = self.input.places(element, n).zip(self.output.places(*target, n));
            pairs.for_each(|(from, to)| visit(from, to));
        }
    }
}

impl Kernel for Reduce {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let mut sums = std::mem::take(&mut self.sums);
        sums.clear();
        sums.resize(call.output.len(), 0.0);
        self.visit(call.batch, |from, to| sums[to] += f64::from(x[from]));
        let share = f64::from(self.share);
        call.output.iter_mut().zip(&sums).for_each(|(y, sum)| *y = narrow(sum * share));
        self.sums = sums;
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (values, dy) = (&mut gradient.values, call.output_gradient);
        self.visit(call.batch, |from, to| values[from] += self.share * dy[to]);
    }
}
