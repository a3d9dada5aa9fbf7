//! Operators that work on one element at a time, with broadcasting where there are two operands.

use super::sums::sum;
use super::{Backward, Forward, Gradient, Kernel};
use crate::graph::Shape;

/// `max(x, 0)`.
/// Source: ONNX operator `Relu`, opset 14; its gradient is 0 where `x` is 0, as PyTorch's.
#[derive(Debug)]
pub(super) struct Relu;

impl Kernel for Relu {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        // NaN stays NaN, so that a loss that diverges is seen.
        let relu = |x: &f32| if *x < 0.0 { 0.0 } else { *x };
        call.output.iter_mut().zip(*x).for_each(|(y, x)| *y = relu(x));
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let pairs = call.output_gradient.iter().zip(call.output);
        gradient.put(pairs.map(|(dy, y)| if *y > 0.0 { *dy } else { 0.0 }));
    }
}

/// `a + b`, broadcast.
/// Source: ONNX operator `Add`, opset 14.
#[derive(Debug)]
pub(super) struct Add {
    operands: [Operand; 2],
    frame: Frame,
}

impl Add {
    pub(super) fn new(a: &Shape, b: &Shape, output: &[usize]) -> Self {
        let frame = Frame { channels: output[0], rest: output[1..].iter().product() };
        Self { operands: [Operand::new(a, output), Operand::new(b, output)], frame }
    }
}

impl Kernel for Add {
    fn forward(&mut self, call: Forward<'_>) {
        let [a, b] = call.inputs else { return };
        let [left, right] = &self.operands;
        if left.is_whole() && right.is_whole() {
            let pairs = a.iter().zip(*b);
            call.output.iter_mut().zip(pairs).for_each(|(y, (a, b))| *y = a + b);
            return;
        }
        let n = call.batch;
        let rows = call.output.chunks_exact_mut(self.frame.rest).enumerate();
        for (row, y) in rows {
            let a = left.row(a, row / n, row % n, n);
            let b = right.row(b, row / n, row % n, n);
            for (at, y) in y.iter_mut().enumerate() {
                *y = a[left.rest.index(at)] + b[right.rest.index(at)];
            }
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        for (operand, gradient) in self.operands.iter().zip(call.input_gradients) {
            if let Some(gradient) = gradient {
                operand.reduce(call.output_gradient, gradient, self.frame, call.batch);
            }
        }
    }
}

/// The output's extents in memory: `[channels][n][rest]`.
#[derive(Debug, Clone, Copy)]
struct Frame {
    channels: usize,
    rest: usize,
}

/// How an operand is read while the output is walked.
#[derive(Debug)]
struct Operand {
    batched: bool,
    /// Whether it has a row of its own for each channel.
    channels: bool,
    rest: Rest,
    /// Elements of one row.
    rest_len: usize,
}

/// Which element of an operand's row belongs to an element of the output's row.
#[derive(Debug)]
enum Rest {
    Same,
    One,
    Table(Vec<usize>),
}

impl Rest {
    fn index(&self, at: usize) -> usize {
        match self {
            Rest::Same => at,
            Rest::One => 0,
            Rest::Table(table) => table[at],
        }
    }
}

impl Operand {
    /// # Panics
    /// When the shape does not broadcast to the output's; the graph's reader has checked it.
    fn new(shape: &Shape, output: &[usize]) -> Self {
        let dims = shape.aligned(output.len()).expect("the graph's reader aligned it");
        let rest_len = dims[1..].iter().product();
        let rest = if dims[1..] == output[1..] {
            Rest::Same
        } else if rest_len == 1 {
            Rest::One
        } else {
            Rest::Table(table(&dims[1..], &output[1..]))
        };
        let channels = dims[0] == output[0];
        Self { batched: shape.batched, channels, rest, rest_len }
    }

    /// Whether it has the output's shape.
    fn is_whole(&self) -> bool {
        self.batched && self.channels && matches!(self.rest, Rest::Same)
    }

    fn row_start(&self, channel: usize, example: usize, n: usize) -> usize {
        let channel = if self.channels { channel } else { 0 };
        let row = if self.batched { channel * n + example } else { channel };
        row * self.rest_len
    }

    fn row<'a>(&self, values: &'a [f32], channel: usize, example: usize, n: usize) -> &'a [f32] {
        &values[self.row_start(channel, example, n)..][..self.rest_len]
    }

    /// Sums the output's gradient over the axes that this operand was broadcast along.
    fn reduce(&self, dy: &[f32], gradient: &mut Gradient<'_>, frame: Frame, n: usize) {
        if self.is_whole() {
            gradient.put(dy.iter().copied());
            return;
        }
        gradient.clear_unless_adding();
        if self.channels && !self.batched && matches!(self.rest, Rest::One) {
            let rows = dy.chunks_exact(n * frame.rest);
            gradient.values.iter_mut().zip(rows).for_each(|(into, row)| *into += sum(row));
            return;
        }
        for (row, dy) in dy.chunks_exact(frame.rest).take(frame.channels * n).enumerate() {
            let into = &mut gradient.values[self.row_start(row / n, row % n, n)..][..self.rest_len];
            if matches!(self.rest, Rest::One) {
                into[0] += sum(dy);
                continue;
            }
            for (at, dy) in dy.iter().enumerate() {
                into[self.rest.index(at)] += dy;
            }
        }
    }
}

/// For each element of the output's row-major `output`, the element of `dims` broadcast to it.
fn table(dims: &[usize], output: &[usize]) -> Vec<usize> {
    let mut table = vec![0];
    for (extent, dim) in output.iter().zip(dims) {
        let step = |at: usize| if *dim == 1 { 0 } else { at };
        table = table
            .iter()
            .flat_map(|base| (0..*extent).map(move |at| base * dim + step(at)))
            .collect();
    }
    table
}
