//! Softmax inside of a graph.

use super::sums::narrow;
use super::{Backward, Forward, Gradient, Kernel, Reads};

/// `exp(x) / sum(exp(x))` along one axis, or its logarithm.
/// Shapes: `x [n, ...]` -> that of `x`.
/// Source: ONNX operators `Softmax` and `LogSoftmax`, opset 13.
#[derive(Debug)]
pub(super) struct Softmax {
    log: bool,
    /// Elements along the axis, of an example, and of an example per step of the axis.
    extent: usize,
    elements: usize,
    inner: usize,
    /// Places of a line along the axis.
    line: Vec<usize>,
}

impl Softmax {
    pub(super) fn new(axis: usize, log: bool, dims: &[usize]) -> Self {
        let (elements, inner) = (dims.iter().product(), dims[axis + 1..].iter().product());
        Self { log, extent: dims[axis], elements, inner, line: Vec::new() }
    }

    /// Visits the places of each line along the axis.
    fn visit(&mut self, n: usize, mut visit: impl FnMut(&[usize])) {
        let mut line = std::mem::take(&mut self.line);
        let block = self.inner * self.extent;
        let firsts = (0..self.elements).filter(|element| element % block < self.inner);
        for first in firsts {
            let along = (first..first + block).step_by(self.inner);
            for example in 0..n {
                line.clear();
                line.extend(along.clone().map(|at| at * n + example));
                visit(&line);
            }
        }
        self.line = line;
    }
}

impl Kernel for Softmax {
    fn reads(&self) -> Reads {
        Reads::OUTPUT
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let (log, y) = (self.log, call.output);
        self.visit(call.batch, |line| {
            let most = line.iter().fold(f32::NEG_INFINITY, |most, at| most.max(x[*at]));
            let sum: f64 = line.iter().map(|at| f64::from(x[*at] - most).exp()).sum();
            for at in line {
                let above = f64::from(x[*at] - most);
                y[*at] = narrow(if log { above - sum.ln() } else { above.exp() / sum });
            }
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(Gradient { values, add })) = call.input_gradients.first_mut() else {
            return;
        };
        let (log, y, dy) = (self.log, call.output, call.output_gradient);
        self.visit(call.batch, |line| {
            let weight = |at: usize| if log { 1.0 } else { y[at] };
            let sum: f32 = line.iter().map(|at| dy[*at] * weight(*at)).sum();
            for at in line {
                let at = *at;
                let term = if log { dy[at] - y[at].exp() * sum } else { y[at] * (dy[at] - sum) };
                values[at] = if *add { values[at] + term } else { term };
            }
        });
    }
}
