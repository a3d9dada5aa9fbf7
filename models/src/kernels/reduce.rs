//! Sums and means over axes.

use super::sums::{count, narrow};
use super::{Backward, Forward, Kernel, Reads};

/// The sum or mean over axes of an example.
/// Shapes: `x [n, ...]` -> the same without these axes, or with 1 in their place.
/// Source: ONNX operators `ReduceSum`, opset 13, and `ReduceMean`, opset 18.
#[derive(Debug)]
pub(super) struct Reduce {
    /// For each element of an input's example the element of the output's that it is added to,
    /// both in row-major order.
    targets: Vec<usize>,
    /// 1, or one over the number of elements that are added.
    share: f32,
    sums: Vec<f64>,
}

impl Reduce {
    pub(super) fn new(axes: &[usize], mean: bool, input: &[usize]) -> Self {
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
        Self { targets, share, sums: Vec::new() }
    }

    /// Visits `(from, to)`: places of an element and of the sum it is part of.
    fn visit(&self, n: usize, mut visit: impl FnMut(usize, usize)) {
        for (element, target) in self.targets.iter().enumerate() {
            (0..n).for_each(|example| visit(element * n + example, target * n + example));
        }
    }
}

impl Kernel for Reduce {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

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
