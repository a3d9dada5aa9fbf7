//! Every kernel beside a naive reference in `f64`, and its gradients beside finite differences of
//! that reference, on small random shapes.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers here are small"
)]

mod dropout_and_loss;
mod reference;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::graph::{Origin, Shape, Value, ValueId, Window};
use reference::Reference;

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

    fn below(&mut self, bound: usize) -> usize {
        self.0.next_u64() as usize % bound
    }

    fn from(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// A number of -2 to 2 that `f32` holds exactly.
    fn number(&mut self) -> f64 {
        f64::from((self.0.next_u32() >> 12) as f32 / 262_144.0 - 2.0)
    }

    fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.number()).collect()
    }

    fn window(&mut self, most_pad: usize) -> Window {
        let mut pair = |least: usize, most: usize| [self.from(least, most), self.from(least, most)];
        let kernel = pair(1, 3);
        let (stride, dilation) = (pair(1, 3), pair(1, 2));
        let [begin, end] = [pair(0, most_pad), pair(0, most_pad)].map(|pads| {
            [0, 1].map(|axis| pads[axis].min(if most_pad > 2 { 3 } else { kernel[axis] - 1 }))
        });
        Window { kernel, stride, dilation, begin, end, ceil: false }
    }
}

fn plain(dims: &[usize]) -> Shape {
    Shape { batched: false, dims: dims.to_vec() }
}

impl Case {
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
        let graph =
            Graph { values, nodes: Vec::new(), input: ValueId(0), output, fixed_batch: None };
        (graph, node)
    }

    fn draw_inputs(&self, draw: &mut Draw) -> Vec<Vec<f64>> {
        self.inputs.iter().map(|shape| draw.numbers(shape.len(self.n))).collect()
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

    /// Holds output and gradients against the reference. Gradients are checked element by element
    /// where there are few, along random directions otherwise.
    fn check(&self, draw: &mut Draw) {
        let inputs = self.draw_inputs(draw);
        let reference = self.reference(true);
        let expected = reference.compute(&inputs);
        let dy = draw.numbers(expected.len());
        for (threads, add) in [(1, false), (3, true)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (output, gradients) = pool.install(|| self.run(&inputs, &dy, add, threads));
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
            training: true,
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
        kernel.backward(Backward {
            batch: n,
            inputs: &slices,
            output: &output,
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

/// Row-major `[n, c, rest]` in the kernels' order `[c][n][rest]`.
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
    let rest: usize = shape.dims[1..].iter().product();
    let (example, channel, inner) =
        (at / (shape.dims[0] * rest), at / rest % shape.dims[0], at % rest);
    (channel * n + example) * rest + inner
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

fn conv_case(
    draw: &mut Draw,
    group: usize,
    channels: usize,
    maps: usize,
    window: Window,
) -> Option<Case> {
    let (n, input) = (draw.from(1, 3), [draw.from(1, 7), draw.from(1, 7)]);
    let output = window.output(input)?;
    let m = maps * group;
    let [kh, kw] = window.kernel;
    let mut inputs = vec![
        Shape::batched(&[channels * group, input[0], input[1]]),
        plain(&[m, channels, kh, kw]),
    ];
    if draw.below(2) == 0 {
        inputs.push(plain(&[m]));
    }
    let op = Op::Conv { window, group };
    Some(Case { op, n, inputs, states: Vec::new(), output: vec![m, output[0], output[1]] })
}

#[test]
fn conv() {
    let mut draw = Draw::new(1);
    let mut done = 0;
    while done < 60 {
        let (group, channels, maps) = (draw.from(1, 3), draw.from(1, 3), draw.from(1, 3));
        let window = draw.window(3);
        if let Some(case) = conv_case(&mut draw, group, channels, maps, window) {
            case.check(&mut draw);
            done += 1;
        }
    }
}

#[test]
fn plain_conv_of_one_pixel() {
    let mut draw = Draw::new(2);
    let window = Window {
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
        begin: [0; 2],
        end: [0; 2],
        ceil: false,
    };
    for group in [1, 2, 3] {
        conv_case(&mut draw, group, 2, 3, window).unwrap().check(&mut draw);
    }
}

#[test]
fn conv_over_several_blocks() {
    let mut draw = Draw::new(3);
    for (kernel, channels) in [(3, 64), (1, 520)] {
        let pad = kernel / 2;
        let window = Window {
            kernel: [kernel; 2],
            stride: [1; 2],
            dilation: [1; 2],
            begin: [pad; 2],
            end: [pad; 2],
            ceil: false,
        };
        let inputs = vec![
            Shape::batched(&[channels, 9, 8]),
            plain(&[2, channels, kernel, kernel]),
            plain(&[2]),
        ];
        let op = Op::Conv { window, group: 1 };
        Case { op, n: 5, inputs, states: Vec::new(), output: vec![2, 9, 8] }.check(&mut draw);
    }
}

#[test]
fn pools() {
    let mut draw = Draw::new(4);
    let mut done = 0;
    while done < 120 {
        let window = Window { ceil: draw.below(2) == 0, ..draw.window(2) };
        let (n, c, h, w) = (draw.from(1, 3), draw.from(1, 3), draw.from(1, 7), draw.from(1, 7));
        let Some([oh, ow]) = window.output([h, w]) else { continue };
        let op = match done % 3 {
            0 => Op::MaxPool(window),
            1 => Op::AveragePool { window, include_pad: true },
            _ => Op::AveragePool { window, include_pad: false },
        };
        let inputs = vec![Shape::batched(&[c, h, w])];
        let case = Case { op, n, inputs, states: Vec::new(), output: vec![c, oh, ow] };
        if case.reference(true).sees_everywhere() {
            case.check(&mut draw);
            done += 1;
        }
    }
}

#[test]
fn products_with_weights() {
    let mut draw = Draw::new(5);
    for round in 0..24 {
        let (n, d, m) = (draw.from(1, 4), draw.from(1, 5), draw.from(1, 5));
        let transposed = round % 2 == 0;
        let weight = if transposed { [m, d] } else { [d, m] };
        let mut inputs = vec![Shape::batched(&[d]), plain(&weight)];
        match round % 4 {
            0 => {}
            1 => inputs.push(plain(&[m])),
            2 => inputs.push(plain(&[1, m])),
            _ => inputs.push(plain(&[])),
        }
        let (alpha, beta) = if round < 12 { (1.0, 1.0) } else { (0.5, -1.5) };
        let op = Op::Gemm { alpha, beta, transposed };
        Case { op, n, inputs, states: Vec::new(), output: vec![m] }.check(&mut draw);
    }
}

#[test]
fn add_broadcast() {
    let mut draw = Draw::new(6);
    let whole = Shape::batched(&[3, 2, 4]);
    let others = [
        whole.clone(),
        plain(&[]),
        plain(&[4]),
        plain(&[2, 1]),
        plain(&[3, 1, 1]),
        plain(&[1, 3, 2, 4]),
        plain(&[1, 3, 1, 4]),
        Shape::batched(&[3, 1, 1]),
        Shape::batched(&[1, 2, 4]),
        Shape::batched(&[1, 2, 1]),
    ];
    for other in others {
        for inputs in [vec![whole.clone(), other.clone()], vec![other.clone(), whole.clone()]] {
            let output = whole.dims.clone();
            Case { op: Op::Add, n: 2, inputs, states: Vec::new(), output }.check(&mut draw);
        }
    }
    let inputs = vec![Shape::batched(&[3, 1]), Shape::batched(&[1, 4])];
    Case { op: Op::Add, n: 3, inputs, states: Vec::new(), output: vec![3, 4] }.check(&mut draw);
}

#[test]
fn relu_mean_and_reshape() {
    let mut draw = Draw::new(7);
    let case = |op: Op, input: &[usize], output: &[usize]| Case {
        op,
        n: 3,
        inputs: vec![Shape::batched(input)],
        states: Vec::new(),
        output: output.to_vec(),
    };
    case(Op::Relu, &[2, 3, 3], &[2, 3, 3]).check(&mut draw);
    case(Op::GlobalAveragePool, &[2, 3, 5], &[2, 1, 1]).check(&mut draw);
    case(Op::GlobalAveragePool, &[4], &[4]).check(&mut draw);
    for (from, to) in [
        (vec![2, 3, 2], vec![12]),
        (vec![12], vec![2, 3, 2]),
        (vec![4, 3], vec![6, 2]),
        (vec![3, 4], vec![3, 2, 2]),
        (vec![5, 1, 1], vec![5]),
    ] {
        case(Op::Reshape, &from, &to).check(&mut draw);
    }
}

#[test]
fn batch_normalization() {
    let mut draw = Draw::new(8);
    for dims in [vec![3, 2, 3], vec![2], vec![1, 1, 2]] {
        let (n, c) = (4, dims[0]);
        let inputs = vec![Shape::batched(&dims), plain(&[c]), plain(&[c])];
        let op = Op::BatchNormalization { epsilon: 1e-3, momentum: 0.9 };
        let states = vec![vec![0.5; c], vec![2.0; c]];
        let case = Case { op, n, inputs, states, output: dims };
        case.check(&mut draw);
        let inputs = case.draw_inputs(&mut draw);
        check_running_statistics(&case, &inputs);
    }
}

/// Running statistics after a training step, and their use without training.
fn check_running_statistics(case: &Case, inputs: &[Vec<f64>]) {
    let (graph, node) = case.graph();
    let mut kernel = build(&graph, &node, 1);
    let n = case.n;
    let laid: Vec<Vec<f32>> =
        inputs.iter().zip(&case.inputs).map(|(x, shape)| lay(x, n, shape)).collect();
    let slices: Vec<&[f32]> = laid.iter().map(Vec::as_slice).collect();
    let mut states = case.states.clone();
    let mut output = vec![f32::NAN; laid[0].len()];
    for training in [true, false] {
        kernel.forward(Forward {
            batch: n,
            training,
            step: 1,
            inputs: &slices,
            states: &mut states,
            output: &mut output,
            scratch: &mut [],
        });
    }
    let row_len = laid[0].len() / case.output[0];
    for (channel, x) in laid[0].chunks(row_len).enumerate() {
        let count = row_len as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let squares: f64 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        close(&case.op, "mean", &[f64::from(states[0][channel])], &[0.45 + 0.1 * mean]);
        let unbiased = 1.8 + 0.1 * squares / (count - 1.0);
        close(&case.op, "variance", &[f64::from(states[1][channel])], &[unbiased]);
    }
    let moved = Case {
        states,
        op: case.op.clone(),
        inputs: case.inputs.clone(),
        output: case.output.clone(),
        ..*case
    };
    let expected = moved.reference(false).compute(inputs);
    close(&case.op, "inference", &unlay(&output, n, &case.inputs[0]), &expected);
}
