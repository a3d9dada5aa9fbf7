//! The recorded networks' gradients in `f64`, as their definitions read.

#![expect(clippy::wildcard_enum_match_arm, reason = "operators of the recorded networks only")]

use crate::graph::{Activation, Arithmetic, Graph, Node, Op, Shape, ValueId, Window};

/// A graph in training; values are row-major with the batch first.
pub(in crate::train::tests) struct Exact {
    pub(in crate::train::tests) graph: Graph,
    values: Vec<Vec<f64>>,
    pub(in crate::train::tests) gradients: Vec<Vec<f64>>,
    /// By node: for each channel the mean and `1 / sqrt(variance + epsilon)`.
    statistics: Vec<Vec<(f64, f64)>>,
}

impl Exact {
    pub(in crate::train::tests) fn new(onnx: &[u8]) -> Self {
        let graph = Graph::read(&crate::onnx::parse(onnx).unwrap()).unwrap();
        let wide = |values: &Vec<f32>| values.iter().copied().map(f64::from).collect();
        let values: Vec<Vec<f64>> = graph.values.iter().map(|v| wide(&v.initial)).collect();
        let gradients = vec![Vec::new(); values.len()];
        let statistics = vec![Vec::new(); graph.nodes.len()];
        Self { graph, values, gradients, statistics }
    }

    /// Computes the gradients of the mean loss of a batch in training.
    pub(in crate::train::tests) fn run(&mut self, x: &[f32], labels: &[u32]) {
        let n = labels.len();
        self.values[self.graph.input.0] = x.iter().copied().map(f64::from).collect();
        for index in 0..self.graph.nodes.len() {
            self.forward(index, n);
        }
        let output = self.graph.output;
        let classes = self.graph.value(output).shape.elements();
        let mut gradient = Vec::new();
        for (row, label) in self.values[output.0].chunks(classes).zip(labels) {
            let sum: f64 = row.iter().map(|z| z.exp()).sum();
            gradient.extend(row.iter().enumerate().map(|(class, z)| {
                let target = f64::from(u8::from(class == *label as usize));
                (z.exp() / sum - target) / count(n)
            }));
        }
        self.gradients = self.values.iter().map(|v| vec![0.0; v.len()]).collect();
        self.gradients[output.0] = gradient;
        for index in (0..self.graph.nodes.len()).rev() {
            self.backward(index, n);
        }
    }

    fn forward(&mut self, index: usize, n: usize) {
        let node = self.graph.nodes[index].clone();
        let shape = |id: ValueId| &self.graph.value(id).shape;
        let x = &self.values[node.inputs[0].0];
        let dims = &shape(node.inputs[0]).dims;
        let out = &shape(node.output).dims;
        let len = shape(node.output).len(n);
        let y = match &node.op {
            Op::Conv { window, group } => {
                let mut y = vec![0.0; len];
                let sizes = (n, dims.as_slice(), out.as_slice());
                let w = &self.values[node.inputs[1].0];
                conv(window, *group, sizes, |y_at, x_at, w_at| y[y_at] += x[x_at] * w[w_at]);
                if let Some(bias) = node.inputs.get(2) {
                    let places = out[1] * out[2];
                    let bias = &self.values[bias.0];
                    y.iter_mut().enumerate().for_each(|(at, y)| *y += bias[at / places % out[0]]);
                }
                y
            }
            Op::Gemm { transposed: true, .. } => {
                let (w, bias) = (&self.values[node.inputs[1].0], &self.values[node.inputs[2].0]);
                let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                let row = |x: &[f64]| -> Vec<f64> {
                    w.chunks(dims[0]).zip(bias).map(|(w, bias)| dot(x, w) + bias).collect()
                };
                x.chunks(dims[0]).flat_map(row).collect()
            }
            Op::Arithmetic(operator) => {
                let b = &self.values[node.inputs[1].0];
                let places = broadcast(shape(node.inputs[1]), out);
                let pair = |(at, a): (usize, &f64)| match operator {
                    Arithmetic::Add => a + b[at / places],
                    Arithmetic::Mul => a * b[at / places],
                    Arithmetic::Sub | Arithmetic::Div => unreachable!("not in these networks"),
                };
                x.iter().enumerate().map(pair).collect()
            }
            Op::Activation(function) => x.iter().map(|x| activation(*function, *x).0).collect(),
            Op::MaxPool(window) => {
                let mut y = vec![f64::NEG_INFINITY; len];
                pool(window, n, dims, out, |y_at, x_at| y[y_at] = y[y_at].max(x[x_at]));
                y
            }
            Op::GlobalAveragePool => {
                let pixels = dims[1] * dims[2];
                x.chunks(pixels).map(|x| x.iter().sum::<f64>() / count(pixels)).collect()
            }
            Op::Reshape => x.clone(),
            Op::BatchNormalization { .. } => return self.normalise(index, &node),
            other => unreachable!("not in these networks: {other:?}"),
        };
        self.values[node.output.0] = y;
    }

    fn normalise(&mut self, index: usize, node: &Node) {
        let Op::BatchNormalization { epsilon, .. } = node.op else { unreachable!() };
        let dims = &self.graph.value(node.output).shape.dims;
        let (channels, pixels) = (dims[0], dims[1] * dims[2]);
        let x = &self.values[node.inputs[0].0];
        let samples = count(x.len() / channels);
        let of = |channel: usize| x.chunks(pixels).skip(channel).step_by(channels).flatten();
        self.statistics[index] = (0..channels)
            .map(|channel| {
                let mean = of(channel).sum::<f64>() / samples;
                let variance = of(channel).map(|x| (x - mean).powi(2)).sum::<f64>() / samples;
                (mean, (variance + f64::from(epsilon)).sqrt().recip())
            })
            .collect();
        let (scale, bias) = (&self.values[node.inputs[1].0], &self.values[node.inputs[2].0]);
        let normal = |(at, x): (usize, &f64)| {
            let channel = at / pixels % channels;
            let (mean, inverse) = self.statistics[index][channel];
            (x - mean) * inverse * scale[channel] + bias[channel]
        };
        self.values[node.output.0] = x.iter().enumerate().map(normal).collect();
    }

    fn backward(&mut self, index: usize, n: usize) {
        let node = self.graph.nodes[index].clone();
        let shape = |id: ValueId| &self.graph.value(id).shape;
        let [x_id, y_id] = [node.inputs[0].0, node.output.0];
        let dims = shape(node.inputs[0]).dims.clone();
        let out = shape(node.output).dims.clone();
        let second = node.inputs.get(1).map(|id| (id.0, shape(*id).clone()));
        let dy = std::mem::take(&mut self.gradients[y_id]);
        let (values, gradients) = (&self.values, &mut self.gradients);
        let mut add = |id: usize, at: usize, value: f64| gradients[id][at] += value;
        let x = &values[x_id];
        match (&node.op, second) {
            (Op::Conv { window, group }, Some((w_id, _))) => {
                let w = &values[w_id];
                conv(window, *group, (n, &dims, &out), |y_at, x_at, w_at| {
                    add(x_id, x_at, dy[y_at] * w[w_at]);
                    add(w_id, w_at, dy[y_at] * x[x_at]);
                });
                if let Some(bias) = node.inputs.get(2) {
                    let places = out[1] * out[2];
                    dy.iter()
                        .enumerate()
                        .for_each(|(at, dy)| add(bias.0, at / places % out[0], *dy));
                }
            }
            (Op::Gemm { .. }, _) => self.gemm_backward(&node, (dims[0], out[0]), &dy),
            (Op::Arithmetic(operator), Some((b_id, b_shape))) => {
                let places = broadcast(&b_shape, &out);
                for (at, dy) in dy.iter().enumerate() {
                    let (a, b) = match operator {
                        Arithmetic::Mul => (values[b_id][at / places], x[at]),
                        Arithmetic::Add | Arithmetic::Sub | Arithmetic::Div => (1.0, 1.0),
                    };
                    add(x_id, at, dy * a);
                    add(b_id, at / places, dy * b);
                }
            }
            (Op::Activation(function), _) => {
                for (at, dy) in dy.iter().enumerate() {
                    add(x_id, at, dy * activation(*function, x[at]).1);
                }
            }
            (Op::MaxPool(window), _) => {
                let mut chosen = vec![None; dy.len()];
                let y = &values[y_id];
                pool(window, n, &dims, &out, |y_at, x_at| {
                    if chosen[y_at].is_none() && x[x_at] >= y[y_at] {
                        chosen[y_at] = Some(x_at);
                    }
                });
                chosen.iter().zip(&dy).for_each(|(at, dy)| add(x_id, at.unwrap(), *dy));
            }
            (Op::GlobalAveragePool, _) => {
                let pixels = dims[1] * dims[2];
                (0..x.len()).for_each(|at| add(x_id, at, dy[at / pixels] / count(pixels)));
            }
            (Op::Reshape, _) => dy.iter().enumerate().for_each(|(at, dy)| add(x_id, at, *dy)),
            (Op::BatchNormalization { .. }, _) => self.normalise_backward(index, &node, &dy),
            (other, _) => unreachable!("not in these networks: {other:?}"),
        }
    }

    fn gemm_backward(&mut self, node: &Node, (d, m): (usize, usize), dy: &[f64]) {
        let [x_id, w_id, bias_id] = [0, 1, 2].map(|input| node.inputs[input].0);
        for (at, dy) in dy.iter().enumerate() {
            let (example, column) = (at / m, at % m);
            for k in 0..d {
                let (x_at, w_at) = (example * d + k, column * d + k);
                self.gradients[x_id][x_at] += dy * self.values[w_id][w_at];
                self.gradients[w_id][w_at] += dy * self.values[x_id][x_at];
            }
            self.gradients[bias_id][column] += dy;
        }
    }

    fn normalise_backward(&mut self, index: usize, node: &Node, dy: &[f64]) {
        let [x_id, scale_id, bias_id] = [0, 1, 2].map(|input| node.inputs[input].0);
        let dims = &self.graph.value(node.output).shape.dims;
        let (channels, pixels) = (dims[0], dims[1] * dims[2]);
        let x = &self.values[x_id];
        let samples = count(x.len() / channels);
        let normal = |at: usize| {
            let (mean, inverse) = self.statistics[index][at / pixels % channels];
            (x[at] - mean) * inverse
        };
        let mut sums = vec![(0.0, 0.0); channels];
        for (at, dy) in dy.iter().enumerate() {
            let sums = &mut sums[at / pixels % channels];
            *sums = (sums.0 + dy, sums.1 + dy * normal(at));
        }
        for (channel, (sum, dot)) in sums.iter().enumerate() {
            self.gradients[scale_id][channel] += dot;
            self.gradients[bias_id][channel] += sum;
        }
        for (at, dy) in dy.iter().enumerate() {
            let channel = at / pixels % channels;
            let factor = self.values[scale_id][channel] * self.statistics[index][channel].1;
            let (sum, dot) = sums[channel];
            self.gradients[x_id][at] += factor * (dy - (sum + normal(at) * dot) / samples);
        }
    }
}

/// Elements of the output that one element of an operand `[n, c, 1, 1]` or of its shape meets.
fn broadcast(operand: &Shape, out: &[usize]) -> usize {
    assert!(operand.batched && operand.dims[0] == out[0]);
    out.iter().product::<usize>() / operand.elements()
}

/// The value and the slope.
fn activation(function: Activation, x: f64) -> (f64, f64) {
    let one = |yes: bool| f64::from(u8::from(yes));
    match function {
        Activation::Relu => (x.max(0.0), one(x > 0.0)),
        Activation::Clip { least, most } => {
            let (least, most) = (f64::from(least), f64::from(most));
            (x.clamp(least, most), one(x > least && x < most))
        }
        Activation::Sigmoid => {
            let y = 1.0 / (1.0 + (-x).exp());
            (y, y * (1.0 - y))
        }
        Activation::LeakyRelu { slope } => {
            let slope = if x > 0.0 { 1.0 } else { f64::from(slope) };
            (slope * x, slope)
        }
        other => unreachable!("not in these networks: {other:?}"),
    }
}

/// Visits `(output, input)` of every place and pixel of a window.
fn pool(
    window: &Window,
    n: usize,
    input: &[usize],
    output: &[usize],
    mut visit: impl FnMut(usize, usize),
) {
    for plane in 0..n * output[0] {
        for place in 0..output[1] * output[2] {
            for k in 0..window.kernel[0] * window.kernel[1] {
                let at = |axis: usize, place: usize, k: usize| {
                    (place * window.stride[axis] + k * window.dilation[axis])
                        .checked_sub(window.begin[axis])
                        .filter(|at| *at < input[axis + 1])
                };
                let y = at(0, place / output[2], k / window.kernel[1]);
                let x = at(1, place % output[2], k % window.kernel[1]);
                if let (Some(y), Some(x)) = (y, x) {
                    let pixel = (plane * input[1] + y) * input[2] + x;
                    visit(plane * output[1] * output[2] + place, pixel);
                }
            }
        }
    }
}

/// Visits `(output, input, weight)` of every product of a convolution.
fn conv(
    window: &Window,
    group: usize,
    (n, input, output): (usize, &[usize], &[usize]),
    mut visit: impl FnMut(usize, usize, usize),
) {
    let (channels, maps) = (input[0] / group, output[0] / group);
    let [kh, kw] = window.kernel;
    let at = |axis: usize, place: usize, k: usize| {
        (place * window.stride[axis] + k * window.dilation[axis])
            .checked_sub(window.begin[axis])
            .filter(|at| *at < input[axis + 1])
    };
    for (example, map) in (0..n * output[0]).map(|i| (i / output[0], i % output[0])) {
        for element in 0..channels * kh * kw {
            let (channel, ky, kx) = (element / (kh * kw), element / kw % kh, element % kw);
            let channel = map / maps * channels + channel;
            for oy in 0..output[1] {
                let Some(y) = at(0, oy, ky) else { continue };
                for ox in 0..output[2] {
                    let Some(x) = at(1, ox, kx) else { continue };
                    visit(
                        ((example * output[0] + map) * output[1] + oy) * output[2] + ox,
                        ((example * input[0] + channel) * input[1] + y) * input[2] + x,
                        map * channels * kh * kw + element,
                    );
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers here are small")]
fn count(elements: usize) -> f64 {
    elements as f64
}
