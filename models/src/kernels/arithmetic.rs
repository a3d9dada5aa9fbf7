//! Operators on two operands, each broadcast to the output.

use rayon::prelude::*;

use super::broadcast::{Frame, Operand, Rest};
use super::sums::sum;
use super::{Backward, Forward, Gradient, Kernel};
use crate::graph;
use crate::graph::Shape;

/// Elements that a thread takes at least.
const ELEMENTS_MIN: usize = 1 << 14;

/// `a + b`, `a - b`, `a b` or `a / b`.
/// Shapes: as numpy broadcasts them, to an output with a batch axis.
/// Source: ONNX operators `Add`, `Sub`, `Mul` and `Div`, opset 14.
#[derive(Debug)]
pub(super) struct Arithmetic {
    operator: graph::Arithmetic,
    operands: [Operand; 2],
    frame: Frame,
}

/// One row of the output with what it is made of.
#[derive(Clone, Copy)]
struct Row<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
}

impl Arithmetic {
    pub(super) fn new(operator: graph::Arithmetic, a: &Shape, b: &Shape, output: &[usize]) -> Self {
        let frame = Frame { channels: output[0], rest: output[1..].iter().product() };
        Self { operator, operands: [Operand::new(a, output), Operand::new(b, output)], frame }
    }

    fn rows_min(&self) -> usize {
        ELEMENTS_MIN.div_ceil(self.frame.rest)
    }

    /// The output's row `row` and the rows of the operands that belong to it.
    fn row<'a>(&self, call: &Backward<'a>, row: usize) -> Row<'a> {
        let (channel, example, n) = (row / call.batch, row % call.batch, call.batch);
        let (at, len) = (row * self.frame.rest, self.frame.rest);
        Row {
            a: self.operands[0].row(call.inputs[0], channel, example, n),
            b: self.operands[1].row(call.inputs[1], channel, example, n),
            y: &call.output[at..at + len],
            dy: &call.output_gradient[at..at + len],
        }
    }

    /// The gradient by one operand, as if it were not broadcast; in `terms` unless it is `dy`.
    fn terms<'a>(&self, which: usize, row: Row<'a>, terms: &'a mut [f32]) -> &'a [f32] {
        use graph::Arithmetic as A;
        let (a, b) = (&self.operands[0].rest, &self.operands[1].rest);
        let same = &Rest::Same;
        match (self.operator, which) {
            (A::Add, _) | (A::Sub, 0) => return row.dy,
            (A::Sub, _) => combine(terms, row.dy, same, row.dy, same, |dy, _| -dy),
            (A::Mul, 0) => combine(terms, row.dy, same, row.b, b, |dy, b| dy * b),
            (A::Mul, _) => combine(terms, row.dy, same, row.a, a, |dy, a| dy * a),
            (A::Div, 0) => combine(terms, row.dy, same, row.b, b, |dy, b| dy / b),
            (A::Div, _) => {
                combine(terms, row.dy, same, row.y, same, |dy, y| -dy * y);
                for (at, term) in terms.iter_mut().enumerate() {
                    *term /= row.b[b.index(at)];
                }
            }
        }
        terms
    }

    /// The gradient by an operand with a row of its own for each row of the output.
    fn own_rows(&self, which: usize, call: &Backward<'_>, gradient: &mut Gradient<'_>) {
        let operand = &self.operands[which];
        let (add, rest) = (gradient.add, self.frame.rest);
        let rows = gradient.values.par_chunks_exact_mut(operand.rest_len).enumerate();
        rows.with_min_len(self.rows_min()).for_each_init(
            || vec![0.0; rest],
            |terms, (row, values)| {
                let terms = self.terms(which, self.row(call, row), terms);
                match &operand.rest {
                    Rest::Same => Gradient { values, add }.put(terms.iter().copied()),
                    Rest::One => Gradient { values, add }.put(std::iter::once(sum(terms))),
                    Rest::Table(table) => {
                        Gradient { values: &mut *values, add }.clear_unless_adding();
                        table.iter().zip(terms).for_each(|(at, term)| values[*at] += term);
                    }
                }
            },
        );
    }

    /// The gradient by an operand whose rows are shared by rows of the output.
    fn shared_rows(&self, which: usize, call: &Backward<'_>, gradient: &mut Gradient<'_>) {
        let operand = &self.operands[which];
        let n = call.batch;
        gradient.clear_unless_adding();
        let mut terms = vec![0.0; self.frame.rest];
        for row in 0..self.frame.channels * n {
            let terms = self.terms(which, self.row(call, row), &mut terms);
            let start = operand.row_start(row / n, row % n, n);
            let into = &mut gradient.values[start..][..operand.rest_len];
            match &operand.rest {
                Rest::Same => into.iter_mut().zip(terms).for_each(|(into, term)| *into += term),
                Rest::One => into[0] += sum(terms),
                Rest::Table(table) => {
                    table.iter().zip(terms).for_each(|(at, term)| into[*at] += term);
                }
            }
        }
    }
}

impl Kernel for Arithmetic {
    fn forward(&mut self, call: Forward<'_>) {
        use graph::Arithmetic as A;
        let [a, b] = call.inputs else { return };
        let [left, right] = &self.operands;
        let n = call.batch;
        let whole = left.is_whole() && right.is_whole();
        // Without broadcasting a row may be of any length.
        let rest = if whole { ELEMENTS_MIN } else { self.frame.rest };
        let rows = call.output.par_chunks_mut(rest).enumerate();
        rows.with_min_len(self.rows_min()).for_each(|(row, y)| {
            let (a, b) = if whole {
                (&a[row * rest..], &b[row * rest..])
            } else {
                (left.row(a, row / n, row % n, n), right.row(b, row / n, row % n, n))
            };
            match self.operator {
                A::Add => combine(y, a, &left.rest, b, &right.rest, |a, b| a + b),
                A::Sub => combine(y, a, &left.rest, b, &right.rest, |a, b| a - b),
                A::Mul => combine(y, a, &left.rest, b, &right.rest, |a, b| a * b),
                A::Div => combine(y, a, &left.rest, b, &right.rest, |a, b| a / b),
            }
        });
    }

    fn backward(&mut self, mut call: Backward<'_>) {
        let gradients = std::mem::take(&mut call.input_gradients);
        for (which, gradient) in gradients.iter_mut().enumerate() {
            let operand = &self.operands[which];
            let Some(gradient) = gradient else { continue };
            if operand.batched && operand.channels {
                self.own_rows(which, &call, gradient);
            } else {
                self.shared_rows(which, &call, gradient);
            }
        }
    }
}

/// `out = function(a, b)` along one row.
fn combine(
    out: &mut [f32],
    a: &[f32],
    a_rest: &Rest,
    b: &[f32],
    b_rest: &Rest,
    function: impl Fn(f32, f32) -> f32,
) {
    match (a_rest, b_rest) {
        (Rest::Same, Rest::Same) => {
            let pairs = a.iter().zip(b);
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = function(*a, *b));
        }
        (Rest::Same, Rest::One) => {
            let b = b[0];
            out.iter_mut().zip(a).for_each(|(out, a)| *out = function(*a, b));
        }
        (Rest::One, Rest::Same) => {
            let a = a[0];
            out.iter_mut().zip(b).for_each(|(out, b)| *out = function(a, *b));
        }
        (a_rest, b_rest) => {
            for (at, out) in out.iter_mut().enumerate() {
                *out = function(a[a_rest.index(at)], b[b_rest.index(at)]);
            }
        }
    }
}
