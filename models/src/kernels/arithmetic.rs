//! Operators on two operands, each broadcast to the output.

use rayon::prelude::*;

use super::broadcast::{Factor, Frame, Operand};
use super::simd::vectorised;
use super::sums::{narrow, sum};
use super::{Backward, Forward, Gradient, Kernel, Reads};
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

impl Arithmetic {
    pub(super) fn new(operator: graph::Arithmetic, a: &Shape, b: &Shape, output: &[usize]) -> Self {
        let frame = Frame { channels: output[0], rest: output[1..].iter().product() };
        Self { operator, operands: [Operand::new(a, output), Operand::new(b, output)], frame }
    }

    /// Whether a channel's elements can be worked on in one stretch.
    fn by_channels(&self) -> bool {
        self.operands.iter().all(|operand| operand.is_whole() || operand.is_channels())
    }

    /// Stretches of a channel.
    fn stretches(&self) -> usize {
        if self.by_channels() { 1 } else { self.frame.rest }
    }

    fn factor<'a>(
        &self,
        which: usize,
        values: &'a [f32],
        channel: usize,
        at: usize,
        n: usize,
    ) -> Factor<'a> {
        let operand = &self.operands[which];
        if self.by_channels() {
            operand.channel(values, channel, self.frame.rest * n)
        } else {
            operand.factor(values, channel, at, n)
        }
    }

    /// The gradient by one operand in a stretch of the output, as if the operand were not
    /// broadcast; in `terms` unless it is that of the output.
    fn terms<'a>(
        &self,
        which: usize,
        call: &'a Backward<'_>,
        (channel, at): (usize, usize),
        terms: &'a mut [f32],
    ) -> &'a [f32] {
        use graph::Arithmetic as A;
        let n = call.batch;
        let len = self.frame.rest / self.stretches() * n;
        let from = (channel * self.stretches() + at) * len;
        let dy = &call.output_gradient[from..from + len];
        let dy_each = Factor::Each(dy);
        let operand = |which: usize| self.factor(which, call.inputs[which], channel, at, n);
        match (self.operator, which) {
            (A::Add, _) | (A::Sub, 0) => return dy,
            (A::Sub, _) => combine(terms, dy_each, dy_each, |dy, _| -dy),
            (A::Mul, _) => combine(terms, dy_each, operand(1 - which), |dy, other| dy * other),
            (A::Div, 0) => combine(terms, dy_each, operand(1), |dy, b| dy / b),
            (A::Div, _) => {
                let y = Factor::Each(&call.output[from..from + len]);
                combine(terms, dy_each, y, |dy, y| -dy * y);
                match operand(1) {
                    Factor::Each(b) => terms.iter_mut().zip(b).for_each(|(term, b)| *term /= b),
                    Factor::One(b) => terms.iter_mut().for_each(|term| *term /= b),
                }
            }
        }
        terms
    }

    /// The gradient by an operand for some of the output's channels, into the part of the
    /// operand that belongs to them, which begins at `origin`.
    fn channels_gradient(
        &self,
        which: usize,
        call: &Backward<'_>,
        channels: std::ops::Range<usize>,
        origin: usize,
        gradient: &mut Gradient<'_>,
    ) {
        let (operand, n) = (&self.operands[which], call.batch);
        let len = self.frame.rest / self.stretches() * n;
        let mut room = vec![0.0; len];
        if operand.is_whole() {
            let stretches = self.stretches();
            for (at, values) in gradient.values.chunks_exact_mut(len).enumerate() {
                let channel = channels.start + at / stretches;
                let terms = self.terms(which, call, (channel, at % stretches), &mut room);
                Gradient { values, add: gradient.add }.put(terms.iter().copied());
            }
            return;
        }
        gradient.clear_unless_adding();
        // Many terms may meet in one element.
        let mut totals = vec![0.0_f64; if operand.batched { 0 } else { gradient.values.len() }];
        for channel in channels {
            for at in 0..self.stretches() {
                let terms = self.terms(which, call, (channel, at), &mut room);
                let element = operand.element(channel, at);
                if operand.batched {
                    let into = &mut gradient.values[element * n - origin..][..n];
                    into.iter_mut().zip(terms).for_each(|(into, term)| *into += term);
                } else {
                    totals[element - origin] += f64::from(sum(terms));
                }
            }
        }
        let totals = gradient.values.iter_mut().zip(totals);
        totals.for_each(|(into, total)| *into += narrow(total));
    }
}

impl Kernel for Arithmetic {
    fn reads(&self) -> Reads {
        match self.operator {
            graph::Arithmetic::Add | graph::Arithmetic::Sub => Reads::NOTHING,
            graph::Arithmetic::Mul => Reads::INPUTS,
            graph::Arithmetic::Div => Reads::ALL,
        }
    }

    fn forward(&mut self, call: Forward<'_>) {
        use graph::Arithmetic as A;
        let [a, b] = call.inputs else { return };
        let (n, stretches) = (call.batch, self.stretches());
        let len = self.frame.rest / stretches * n;
        let parts = call.output.par_chunks_exact_mut(len).enumerate();
        parts.with_min_len(ELEMENTS_MIN.div_ceil(len)).for_each(|(part, y)| {
            let (channel, at) = (part / stretches, part % stretches);
            let a = self.factor(0, a, channel, at, n);
            let b = self.factor(1, b, channel, at, n);
            match self.operator {
                A::Add => combine(y, a, b, |a, b| a + b),
                A::Sub => combine(y, a, b, |a, b| a - b),
                A::Mul => combine(y, a, b, |a, b| a * b),
                A::Div => combine(y, a, b, |a, b| a / b),
            }
        });
    }

    fn backward(&mut self, mut call: Backward<'_>) {
        let gradients = std::mem::take(&mut call.input_gradients);
        for (which, gradient) in gradients.iter_mut().enumerate() {
            let Some(gradient) = gradient else { continue };
            let operand = &self.operands[which];
            if !operand.channels {
                self.channels_gradient(which, &call, 0..self.frame.channels, 0, gradient);
                continue;
            }
            let add = gradient.add;
            let len = operand.rest_len * if operand.batched { call.batch } else { 1 };
            let parts = gradient.values.par_chunks_exact_mut(len).enumerate();
            let channel_len = self.frame.rest * call.batch;
            parts.with_min_len(ELEMENTS_MIN.div_ceil(channel_len)).for_each(|(channel, values)| {
                let mut gradient = Gradient { values, add };
                let channels = channel..channel + 1;
                self.channels_gradient(which, &call, channels, channel * len, &mut gradient);
            });
        }
    }
}

/// `out = function(a, b)` along a stretch.
fn combine(out: &mut [f32], a: Factor<'_>, b: Factor<'_>, function: impl Fn(f32, f32) -> f32) {
    vectorised(|| match (a, b) {
        (Factor::Each(a), Factor::Each(b)) => {
            let pairs = a.iter().zip(b);
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = function(*a, *b));
        }
        (Factor::Each(a), Factor::One(b)) => {
            out.iter_mut().zip(a).for_each(|(out, a)| *out = function(*a, b));
        }
        (Factor::One(a), Factor::Each(b)) => {
            out.iter_mut().zip(b).for_each(|(out, b)| *out = function(a, *b));
        }
        (Factor::One(a), Factor::One(b)) => out.fill(function(a, b)),
    });
}
