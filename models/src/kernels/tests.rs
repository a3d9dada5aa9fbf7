//! Every kernel beside a naive reference in `f64`, and its gradients beside finite differences of
//! that reference, as properties of random shapes; `PROPTEST_CASES` sets how many.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers here are small"
)]

mod blocked;
mod dropout_and_loss;
mod elements;
mod normalization;
mod reference;
mod shapes;
mod windows;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::graph::{Activation, Arithmetic, Origin, Shape, Share, Value, ValueId, Window};
use reference::Reference;
use simd::{CHOSEN, Instructions};

/// One operator on given shapes.
struct Case {
    op: Op,
    n: usize,
    inputs: Vec<Shape>,
    states: Vec<Vec<f32>>,
    output: Vec<usize>,
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of -2 to 2 that `f32` holds exactly.
    fn number(&mut self) -> f64 {
        f64::from((self.0.next_u32() >> 12) as f32 / 262_144.0 - 2.0)
    }

    fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.number()).collect()
    }

    /// Numbers of -2 to 2 in random order, no two of them close.
    fn apart(&mut self, len: usize) -> Vec<f64> {
        let mut order: Vec<usize> = (0..len).collect();
        order.sort_by_cached_key(|_| self.0.next_u64());
        order.into_iter().map(|at| (at as f64 + 0.5) / len as f64 * 4.0 - 2.0).collect()
    }
}

/// Extents of a value without the batch axis.
fn extents(
    ranks: std::ops::RangeInclusive<usize>,
    most: usize,
) -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..=most, ranks)
}

fn plain(dims: &[usize]) -> Shape {
    Shape { batched: false, dims: dims.to_vec() }
}

impl Case {
    /// An operator on one value that keeps its shape, or gives it another.
    fn of(op: Op, n: usize, input: &[usize], output: &[usize]) -> Self {
        let inputs = vec![Shape::batched(input)];
        Self { op, n, inputs, states: Vec::new(), output: output.to_vec() }
    }

    fn graph(&self) -> (Graph, Node) {
        let value = |shape: &Shape| Value {
            name: String::new(),
            shape: shape.clone(),
            origin: Origin::Node,
            initial: Vec::new(),
        };
        let mut values: Vec<Value> = self.inputs.iter().map(value).collect();
        let output = ValueId(values.len());
        values.push(value(&Shape::batched(&self.output)));
        let node = Node {
            name: "node".to_owned(),
            op: self.op.clone(),
            inputs: (0..self.inputs.len()).map(ValueId).collect(),
            states: Vec::new(),
            output,
        };
        let graph = Graph {
            values,
            nodes: Vec::new(),
            input: ValueId(0),
            output,
            last: None,
            fixed_batch: None,
            exact: true,
        };
        (graph, node)
    }

    fn draw_inputs(&self, draw: &mut Draw) -> Vec<Vec<f64>> {
        let draw_one = |(at, shape): (usize, &Shape)| {
            let mut numbers = draw.numbers(shape.len(self.n));
            if matches!(self.op, Op::Arithmetic(Arithmetic::Div)) && at == 1 {
                // Far enough from 0 for quotients to be smooth.
                for x in &mut numbers {
                    *x += 2.5_f64.copysign(*x);
                }
            } else if matches!(self.op, Op::Activation(_)) {
                // Beyond the corners of every function, and on none of them.
                for x in &mut numbers {
                    *x = *x * 2.0 + 1.0 / 262_144.0;
                }
            } else if matches!(self.op, Op::MaxPool(_)) {
                // The largest has to stay the largest when it is moved a little.
                return draw.apart(shape.len(self.n));
            }
            numbers
        };
        self.inputs.iter().enumerate().map(draw_one).collect()
    }

    fn reference(&self, training: bool) -> Reference<'_> {
        Reference {
            op: &self.op,
            n: self.n,
            inputs: &self.inputs,
            output: &self.output,
            states: &self.states,
            training,
        }
    }

    /// The same with numbers of a seed.
    fn check_seed(&self, seed: u64) {
        self.check(&mut Draw::new(seed));
    }

    /// Holds output and gradients against the reference. Gradients are checked element by element
    /// where there are few, along random directions otherwise.
    fn check(&self, draw: &mut Draw) {
        self.check_in(true, draw);
    }

    fn check_in(&self, training: bool, draw: &mut Draw) {
        let inputs = self.draw_inputs(draw);
        let reference = self.reference(training);
        let expected = reference.compute(&inputs);
        let dy = draw.numbers(expected.len());
        let sets = Instructions::available();
        // Each set of instructions with each number of threads, and alone.
        for (index, (threads, add)) in [(1, false), (3, true)].into_iter().cycle().enumerate() {
            let Some(instructions) = sets.get(index / 2) else { break };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (output, gradients) = pool.install(|| {
                CHOSEN.set(Some(*instructions));
                if !training || self.states.is_empty() {
                    self.check_native(&inputs, &expected);
                }
                self.run_in(training, &inputs, &dy, add, threads)
            });
            close(&self.op, "output", &output, &expected);
            for (at, gradient) in gradients.iter().enumerate() {
                let loss = |moved: &[Vec<f64>]| -> f64 {
                    reference.compute(moved).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
                };
                self.check_gradient(draw, &inputs, at, gradient, &loss);
            }
        }
    }

    fn check_gradient(
        &self,
        draw: &mut Draw,
        inputs: &[Vec<f64>],
        at: usize,
        gradient: &[f64],
        loss: &dyn Fn(&[Vec<f64>]) -> f64,
    ) {
        const STEP: f64 = 1e-6;
        let slope = |direction: &[f64]| {
            let moved = |sign: f64| {
                let mut inputs = inputs.to_vec();
                inputs[at].iter_mut().zip(direction).for_each(|(x, v)| *x += sign * STEP * v);
                loss(&inputs)
            };
            (moved(1.0) - moved(-1.0)) / (2.0 * STEP)
        };
        let len = gradient.len();
        if len <= 60 {
            let unit = |at: usize| -> Vec<f64> {
                (0..len).map(|i| f64::from(u8::from(i == at))).collect()
            };
            let expected: Vec<f64> = (0..len).map(|at| slope(&unit(at))).collect();
            close(&self.op, &format!("gradient {at}"), gradient, &expected);
            return;
        }
        for _ in 0..3 {
            let direction = draw.numbers(len);
            let found: f64 = gradient.iter().zip(&direction).map(|(g, v)| g * v).sum();
            let size = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            let expected = slope(&direction);
            assert!(
                (found - expected).abs() < 1e-4 * (1.0 + size),
                "{:?} gradient {at}: {found}, expected {expected}",
                self.op
            );
        }
    }

    /// Output and gradients in row-major order with the batch first. With `add`, gradients are
    /// added to ones that are taken away again.
    fn run(
        &self,
        inputs: &[Vec<f64>],
        dy: &[f64],
        add: bool,
        threads: usize,
    ) -> (Vec<f64>, Vec<Vec<f64>>) {
        self.run_in(true, inputs, dy, add, threads)
    }

    fn run_in(
        &self,
        training: bool,
        inputs: &[Vec<f64>],
        dy: &[f64],
        add: bool,
        threads: usize,
    ) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (graph, node) = self.graph();
        let mut kernel = build(&graph, &node, 1);
        let n = self.n;
        let laid: Vec<Vec<f32>> =
            inputs.iter().zip(&self.inputs).map(|(x, shape)| lay(x, n, shape)).collect();
        let slices: Vec<&[f32]> = laid.iter().map(Vec::as_slice).collect();
        let output_shape = Shape::batched(&self.output);
        let mut output = vec![f32::NAN; output_shape.len(n)];
        let mut scratch = vec![f32::NAN; kernel.scratch(n, threads)];
        kernel.forward(Forward {
            batch: n,
            training,
            again: false,
            step: 1,
            inputs: &slices,
            states: &mut self.states.clone(),
            output: &mut output,
            scratch: &mut scratch,
        });
        let dy = lay(dy, n, &output_shape);
        let before = if add { 1.0 } else { f32::NAN };
        let mut gradients: Vec<Vec<f32>> = laid.iter().map(|x| vec![before; x.len()]).collect();
        let mut targets: Vec<_> =
            gradients.iter_mut().map(|values| Some(Gradient { values, add })).collect();
        scratch.fill(f32::NAN);
        // Only what the kernel asks for is there.
        let reads = kernel.reads();
        let gone = |shape: &Shape| shape.batched && !reads.inputs;
        let kept: Vec<&[f32]> = slices
            .iter()
            .zip(&self.inputs)
            .map(|(x, shape)| if gone(shape) { &[][..] } else { *x })
            .collect();
        kernel.backward(Backward {
            batch: n,
            inputs: &kept,
            output: if reads.output { &output } else { &[] },
            output_gradient: &dy,
            input_gradients: &mut targets,
            scratch: &mut scratch,
        });
        let base = if add { 1.0 } else { 0.0 };
        let unlaid = |(values, shape): (&Vec<f32>, &Shape)| -> Vec<f64> {
            unlay(values, n, shape).iter().map(|value| value - base).collect()
        };
        (unlay(&output, n, &output_shape), gradients.iter().zip(&self.inputs).map(unlaid).collect())
    }
}

/// Row-major `[n, elements]` in the kernels' order `[elements][n]`.
fn lay(values: &[f64], n: usize, shape: &Shape) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (at, value) in values.iter().enumerate() {
        out[place(at, n, shape)] = *value as f32;
    }
    out
}

fn unlay(values: &[f32], n: usize, shape: &Shape) -> Vec<f64> {
    (0..values.len()).map(|at| f64::from(values[place(at, n, shape)])).collect()
}

fn place(at: usize, n: usize, shape: &Shape) -> usize {
    if !shape.batched {
        return at;
    }
    let elements = shape.elements();
    at % elements * n + at / elements
}

fn close(op: &Op, what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{op:?} {what}");
    let size = expected.iter().fold(1.0_f64, |size, value| size.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() < 1e-4 * size,
            "{op:?} {what} [{at}]: {found}, expected {expected}"
        );
    }
}
