//! Products of features and weights.

use super::product::{Left, Right, product, right_len};
use super::sums::sum;
use super::{Backward, Forward, Gradient, Kernel, Reads};

/// `alpha x w + beta bias`.
/// Shapes: `x [n, d]`, `w [d, m]` (`[m, d]` if `transposed`), `bias [m]` or one value -> `[n, m]`.
/// Source: ONNX operators `Gemm` and `MatMul`, opset 13.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) d: usize,
    pub(super) m: usize,
    pub(super) alpha: f32,
    pub(super) beta: f32,
    pub(super) transposed: bool,
    /// Elements of the bias, if there is one.
    pub(super) bias: Option<usize>,
}

impl Linear {
    /// The right factor times `alpha`.
    fn scale(&self, room: &mut [f32]) {
        if (self.alpha - 1.0).abs() > 0.0 {
            for value in room.iter_mut() {
                *value *= self.alpha;
            }
        }
    }
}

/// `f32`s for the right factors of a product with weights `[d, m]` and of its gradients.
fn factors_len(d: usize, m: usize, n: usize) -> usize {
    right_len(d.max(m), n).max(right_len(n, d.max(m)))
}

impl Kernel for Linear {
    fn scratch(&self, batch: usize, _threads: usize) -> usize {
        factors_len(self.d, self.m, batch)
    }

    fn reads(&self) -> Reads {
        Reads::INPUTS
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let (n, room) = (call.batch, call.scratch);
        if self.bias.is_some() {
            let bias = call.inputs[2].iter().cycle();
            for (row, bias) in call.output.chunks_exact_mut(n).zip(bias) {
                row.fill(self.beta * bias);
            }
        }
        let left = if self.transposed { Left::Rows(weights) } else { Left::Columns(weights) };
        Right::rows(x, n, room);
        self.scale(room);
        product(call.output, left, self.d, Right::of(room, n), self.bias.is_some());
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let [x_gradient, w_gradient, rest @ ..] = call.input_gradients else { return };
        let (d, m, n, room) = (self.d, self.m, call.batch, call.scratch);
        let dy = call.output_gradient;
        if let Some(Gradient { values, add }) = x_gradient {
            Right::rows(dy, n, room);
            self.scale(room);
            let left = if self.transposed { Left::Columns(weights) } else { Left::Rows(weights) };
            product(values, left, m, Right::of(room, n), *add);
        }
        if let Some(Gradient { values, add }) = w_gradient {
            let (left, right, columns) = if self.transposed { (dy, *x, d) } else { (*x, dy, m) };
            Right::transposed(right, columns, room);
            self.scale(room);
            product(values, Left::Rows(left), n, Right::of(room, columns), *add);
        }
        if let Some(Some(gradient)) = rest.first_mut() {
            if self.bias == Some(self.m) {
                gradient.put(dy.chunks_exact(n).map(|row| self.beta * sum(row)));
            } else {
                gradient.put(std::iter::once(self.beta * sum(dy)));
            }
        }
    }
}

/// `x w` for each row of the last axis.
/// Shapes: `x [n, .., d]`, `w [d, m]` -> `[n, .., m]`.
/// Source: ONNX operator `MatMul`, opset 13.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) d: usize,
    pub(super) m: usize,
}

impl Kernel for Rows {
    fn scratch(&self, batch: usize, _threads: usize) -> usize {
        factors_len(self.d, self.m, batch)
    }

    fn reads(&self) -> Reads {
        Reads::INPUTS
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights] = call.inputs else { return };
        let (d, m, n) = (self.d, self.m, call.batch);
        for (y, x) in call.output.chunks_exact_mut(m * n).zip(x.chunks_exact(d * n)) {
            let x = Right::rows(x, n, call.scratch);
            product(y, Left::Columns(weights), d, x, false);
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights] = call.inputs else { return };
        let [x_gradient, w_gradient] = call.input_gradients else { return };
        let (d, m, n) = (self.d, self.m, call.batch);
        let dy = call.output_gradient;
        if let Some(Gradient { values, add }) = x_gradient {
            for (values, dy) in values.chunks_exact_mut(d * n).zip(dy.chunks_exact(m * n)) {
                let dy = Right::rows(dy, n, call.scratch);
                product(values, Left::Rows(weights), m, dy, *add);
            }
        }
        if let Some(gradient) = w_gradient {
            gradient.clear_unless_adding();
            for (x, dy) in x.chunks_exact(d * n).zip(dy.chunks_exact(m * n)) {
                let dy = Right::transposed(dy, m, call.scratch);
                product(gradient.values, Left::Rows(x), n, dy, true);
            }
        }
    }
}
