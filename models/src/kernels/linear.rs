//! Products of features and weights.

use super::matrix::{Matrix, MatrixMut, Write, multiply};
use super::sums::sum;
use super::{Backward, Forward, Gradient, Kernel};

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

impl Kernel for Linear {
    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let (d, m, n) = (self.d, self.m, call.batch);
        if self.bias.is_some() {
            let bias = call.inputs[2].iter().cycle();
            for (row, bias) in call.output.chunks_exact_mut(n).zip(bias) {
                row.fill(self.beta * bias);
            }
        }
        let weights = if self.transposed {
            Matrix::new(weights, m, d, d)
        } else {
            Matrix::new(weights, d, m, m).transposed()
        };
        let into = if self.bias.is_some() { Write::Add } else { Write::Put };
        let mut out = MatrixMut::new(call.output, m, n, n);
        multiply(&mut out, into, self.alpha, weights, Matrix::new(x, d, n, n), true);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let [x_gradient, w_gradient, rest @ ..] = call.input_gradients else { return };
        let (d, m, n) = (self.d, self.m, call.batch);
        let x = Matrix::new(x, d, n, n);
        let gradient = Matrix::new(call.output_gradient, m, n, n);
        if let Some(Gradient { values, add }) = x_gradient {
            let weights = if self.transposed {
                Matrix::new(weights, m, d, d).transposed()
            } else {
                Matrix::new(weights, d, m, m)
            };
            let into = if *add { Write::Add } else { Write::Put };
            multiply(
                &mut MatrixMut::new(values, d, n, n),
                into,
                self.alpha,
                weights,
                gradient,
                true,
            );
        }
        if let Some(Gradient { values, add }) = w_gradient {
            let into = if *add { Write::Add } else { Write::Put };
            let (mut out, left, right) = if self.transposed {
                (MatrixMut::new(values, m, d, d), gradient, x)
            } else {
                (MatrixMut::new(values, d, m, m), x, gradient)
            };
            multiply(&mut out, into, self.alpha, left, right.transposed(), true);
        }
        if let Some(Some(gradient)) = rest.first_mut() {
            if self.bias == Some(self.m) {
                let rows = call.output_gradient.chunks_exact(n);
                gradient.put(rows.map(|row| self.beta * sum(row)));
            } else {
                gradient.put(std::iter::once(self.beta * sum(call.output_gradient)));
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
    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights] = call.inputs else { return };
        let (d, m, rows) = (self.d, self.m, x.len() / self.d);
        let mut out = MatrixMut::new(call.output, rows, m, m);
        let (x, weights) = (Matrix::new(x, rows, d, d), Matrix::new(weights, d, m, m));
        multiply(&mut out, Write::Put, 1.0, x, weights, true);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights] = call.inputs else { return };
        let [x_gradient, w_gradient] = call.input_gradients else { return };
        let (d, m, rows) = (self.d, self.m, x.len() / self.d);
        let gradient = Matrix::new(call.output_gradient, rows, m, m);
        if let Some(Gradient { values, add }) = x_gradient {
            let into = if *add { Write::Add } else { Write::Put };
            let weights = Matrix::new(weights, d, m, m).transposed();
            multiply(&mut MatrixMut::new(values, rows, d, d), into, 1.0, gradient, weights, true);
        }
        if let Some(Gradient { values, add }) = w_gradient {
            let into = if *add { Write::Add } else { Write::Put };
            let x = Matrix::new(x, rows, d, d).transposed();
            multiply(&mut MatrixMut::new(values, d, m, m), into, 1.0, x, gradient, true);
        }
    }
}
