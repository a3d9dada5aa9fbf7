//! Operators written as their definitions read, in `f64`, on row-major data with the batch first.

use crate::graph::{Activation, Arithmetic, Op, Shape, Window};

pub(super) struct Reference<'a> {
    pub(super) op: &'a Op,
    pub(super) n: usize,
    pub(super) inputs: &'a [Shape],
    pub(super) output: &'a [usize],
    pub(super) states: &'a [Vec<f32>],
    pub(super) training: bool,
}

impl Reference<'_> {
    pub(super) fn compute(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let x = &inputs[0];
        match self.op {
            Op::Conv { window, group } => self.conv(inputs, window, *group),
            Op::Gemm { alpha, beta, transposed } => {
                self.gemm(inputs, f64::from(*alpha), f64::from(*beta), *transposed)
            }
            Op::MatMul => self.rows(inputs),
            Op::Arithmetic(operator) => self.arithmetic(*operator, inputs),
            Op::Activation(function) => x.iter().map(|x| activation(*function, *x)).collect(),
            Op::MaxPool(window) => self
                .pool(x, window, |seen, _| seen.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            Op::AveragePool { window, include_pad } => self.pool(x, window, |seen, padded| {
                let count = if *include_pad { padded } else { seen.len() };
                seen.iter().sum::<f64>() / count as f64
            }),
            Op::GlobalAveragePool => {
                let pixels = self.inputs[0].elements() / self.output[0];
                x.chunks(pixels).map(|x| x.iter().sum::<f64>() / pixels as f64).collect()
            }
            Op::BatchNormalization { epsilon, .. } => self.normalise(inputs, f64::from(*epsilon)),
            Op::Reshape => x.clone(),
            Op::Transpose { axes } => self.transpose(x, axes),
            Op::Concat { axis } => self.concat(inputs, *axis),
            Op::Reduce { axes, mean } => self.reduce(x, axes, *mean),
            Op::Softmax { axis, log } => self.softmax(x, *axis, *log),
            Op::Pad { begin, value, .. } => self.pad(x, begin, f64::from(*value)),
            Op::Crop { begin } => self.crop(x, begin),
            Op::Dropout { .. } => unreachable!("random"),
        }
    }

    /// Whether each place of a pool's window sees a pixel.
    pub(super) fn sees_everywhere(&self) -> bool {
        let x = vec![0.0; self.inputs[0].len(self.n)];
        let seen = |window: &Window| self.pool(&x, window, |seen, _| seen.len() as f64);
        let (Op::MaxPool(window) | Op::AveragePool { window, .. }) = self.op else { return true };
        seen(window).iter().all(|count| *count > 0.0)
    }

    fn conv(&self, inputs: &[Vec<f64>], window: &Window, group: usize) -> Vec<f64> {
        let [c, height, width] = [0, 1, 2].map(|axis| self.inputs[0].dims[axis]);
        let [m, oh, ow] = [0, 1, 2].map(|axis| self.output[axis]);
        let [kh, kw] = window.kernel;
        let per_group = c / group;
        let mut out = Vec::new();
        for example in 0..self.n {
            for map in 0..m {
                let first = map / (m / group) * per_group;
                for place in 0..oh * ow {
                    let mut sum = inputs.get(2).map_or(0.0, |bias| bias[map]);
                    for element in 0..per_group * kh * kw {
                        let (channel, ky, kx) =
                            (element / (kh * kw), element / kw % kh, element % kw);
                        let at = [(0, place / ow, ky), (1, place % ow, kx)]
                            .map(|(axis, place, k)| pixel(window, axis, place, k));
                        let ([Some(y), Some(x)], weight) =
                            (at, inputs[1][map * per_group * kh * kw + element])
                        else {
                            continue;
                        };
                        if y < height && x < width {
                            let plane = example * c + first + channel;
                            sum += weight * inputs[0][(plane * height + y) * width + x];
                        }
                    }
                    out.push(sum);
                }
            }
        }
        out
    }

    fn pool(&self, x: &[f64], window: &Window, sum: impl Fn(&[f64], usize) -> f64) -> Vec<f64> {
        let [_, h, w] = [0, 1, 2].map(|axis| self.inputs[0].dims[axis]);
        let [_, oh, ow] = [0, 1, 2].map(|axis| self.output[axis]);
        let [kh, kw] = window.kernel;
        let mut out = Vec::new();
        for plane in x.chunks(h * w) {
            for place in 0..oh * ow {
                let mut seen = Vec::new();
                let mut padded = 0;
                for (ky, kx) in (0..kh * kw).map(|k| (k / kw, k % kw)) {
                    // Places counted with the padding: the window ends where the padding does.
                    let y = place / ow * window.stride[0] + ky * window.dilation[0];
                    let x = place % ow * window.stride[1] + kx * window.dilation[1];
                    let inside = |axis: usize, at: usize, extent: usize| {
                        at < extent + window.begin[axis] + window.end[axis]
                    };
                    padded += usize::from(inside(0, y, h) && inside(1, x, w));
                    let at = [(0, place / ow, ky), (1, place % ow, kx)]
                        .map(|(axis, place, k)| pixel(window, axis, place, k));
                    if let [Some(y), Some(x)] = at
                        && y < h
                        && x < w
                    {
                        seen.push(plane[y * w + x]);
                    }
                }
                out.push(sum(&seen, padded));
            }
        }
        out
    }

    fn gemm(&self, inputs: &[Vec<f64>], alpha: f64, beta: f64, transposed: bool) -> Vec<f64> {
        let (d, m) = (self.inputs[0].dims[0], self.output[0]);
        let mut out = Vec::new();
        for example in 0..self.n {
            for column in 0..m {
                let weight = |row: usize| {
                    inputs[1][if transposed { column * d + row } else { row * m + column }]
                };
                let product: f64 =
                    (0..d).map(|row| inputs[0][example * d + row] * weight(row)).sum();
                let bias = inputs.get(2).map_or(0.0, |bias| bias[column % bias.len()]);
                out.push(alpha * product + beta * bias);
            }
        }
        out
    }

    fn arithmetic(&self, operator: Arithmetic, inputs: &[Vec<f64>]) -> Vec<f64> {
        let mut all = vec![self.n];
        all.extend(self.output);
        let read = |operand: usize, at: usize| {
            let shape = &self.inputs[operand];
            let mut dims = shape.dims.clone();
            if shape.batched {
                dims.insert(0, self.n);
            }
            let mut index = 0;
            let mut rest = at;
            let mut stride = 1;
            for axis in (0..all.len()).rev() {
                let coordinate = rest % all[axis];
                rest /= all[axis];
                let Some(own) = (axis + dims.len()).checked_sub(all.len()) else { continue };
                index += if dims[own] == 1 { 0 } else { coordinate * stride };
                stride *= dims[own];
            }
            inputs[operand][index]
        };
        let compute = |at: usize| match operator {
            Arithmetic::Add => read(0, at) + read(1, at),
            Arithmetic::Sub => read(0, at) - read(1, at),
            Arithmetic::Mul => read(0, at) * read(1, at),
            Arithmetic::Div => read(0, at) / read(1, at),
        };
        (0..all.iter().product()).map(compute).collect()
    }

    fn rows(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [d, m] = [0, 1].map(|axis| self.inputs[1].dims[axis]);
        let rows = inputs[0].chunks(d);
        let one = |row: &[f64], column: usize| -> f64 {
            row.iter().enumerate().map(|(at, x)| x * inputs[1][at * m + column]).sum()
        };
        rows.flat_map(|row| (0..m).map(|column| one(row, column)).collect::<Vec<_>>()).collect()
    }

    fn transpose(&self, x: &[f64], axes: &[usize]) -> Vec<f64> {
        let dims = &self.inputs[0].dims;
        let len = self.inputs[0].elements();
        let mut out = Vec::new();
        for example in x.chunks(len) {
            for at in 0..len {
                let mut rest = at;
                let mut from = 0;
                for (axis, extent) in axes.iter().zip(self.output).rev() {
                    from += rest % extent * dims[axis + 1..].iter().product::<usize>();
                    rest /= extent;
                }
                out.push(example[from]);
            }
        }
        out
    }

    /// Coordinates of an element of an example.
    fn coordinates(dims: &[usize], at: usize) -> Vec<usize> {
        let steps = (0..dims.len()).map(|axis| dims[axis + 1..].iter().product::<usize>());
        steps.zip(dims).map(|(step, extent)| at / step % extent).collect()
    }

    fn reduce(&self, x: &[f64], axes: &[usize], mean: bool) -> Vec<f64> {
        let dims = &self.inputs[0].dims;
        let kept: Vec<usize> = (0..dims.len()).filter(|axis| !axes.contains(axis)).collect();
        let added: usize = axes.iter().map(|axis| dims[*axis]).product();
        let mut out = Vec::new();
        for example in x.chunks(self.inputs[0].elements()) {
            let mut sums = std::collections::BTreeMap::<Vec<usize>, f64>::new();
            for (at, x) in example.iter().enumerate() {
                let all = Self::coordinates(dims, at);
                let place = kept.iter().map(|axis| all[*axis]).collect();
                *sums.entry(place).or_default() += x;
            }
            let share = if mean { added as f64 } else { 1.0 };
            out.extend(sums.values().map(|sum| sum / share));
        }
        out
    }

    fn softmax(&self, x: &[f64], axis: usize, log: bool) -> Vec<f64> {
        let dims = &self.inputs[0].dims;
        let len = self.inputs[0].elements();
        let value = |(at, x_at): (usize, &f64)| {
            let own = Self::coordinates(dims, at % len);
            let mut sum = 0.0;
            for (other, x) in x[at / len * len..][..len].iter().enumerate() {
                let mut place = Self::coordinates(dims, other);
                place[axis] = own[axis];
                if place == own {
                    sum += x.exp();
                }
            }
            if log { x_at - sum.ln() } else { x_at.exp() / sum }
        };
        x.iter().enumerate().map(value).collect()
    }

    fn crop(&self, x: &[f64], begin: &[usize]) -> Vec<f64> {
        let dims = &self.inputs[0].dims;
        let len: usize = self.output.iter().product();
        let element = |at: usize| {
            let place = Self::coordinates(self.output, at % len);
            let outer = place.iter().zip(begin).map(|(place, begin)| place + begin);
            let from = outer.zip(dims).fold(0, |from, (at, extent)| from * extent + at);
            x[at / len * self.inputs[0].elements() + from]
        };
        (0..self.n * len).map(element).collect()
    }

    fn pad(&self, x: &[f64], begin: &[usize], value: f64) -> Vec<f64> {
        let dims = &self.inputs[0].dims;
        let len: usize = self.output.iter().product();
        let element = |at: usize| {
            let place = Self::coordinates(self.output, at % len);
            let inner = place.iter().zip(begin).zip(dims).map(|((place, begin), extent)| {
                place.checked_sub(*begin).filter(|place| place < extent)
            });
            let Some(inner) = inner.collect::<Option<Vec<usize>>>() else { return value };
            let from = inner.iter().zip(dims).fold(0, |from, (at, extent)| from * extent + at);
            x[at / len * self.inputs[0].elements() + from]
        };
        (0..self.n * len).map(element).collect()
    }

    fn concat(&self, inputs: &[Vec<f64>], axis: usize) -> Vec<f64> {
        let before: usize = self.n * self.output[..axis].iter().product::<usize>();
        let mut out = Vec::new();
        for outer in 0..before {
            for (x, shape) in inputs.iter().zip(self.inputs) {
                let block: usize = shape.dims[axis..].iter().product();
                out.extend(&x[outer * block..][..block]);
            }
        }
        out
    }

    fn normalise(&self, inputs: &[Vec<f64>], epsilon: f64) -> Vec<f64> {
        let c = self.output[0];
        let pixels = self.inputs[0].elements() / c;
        let channel_of = |at: usize| at / pixels % c;
        let statistics: Vec<(f64, f64)> = (0..c)
            .map(|channel| {
                if !self.training {
                    let state = |which: usize| f64::from(self.states[which][channel]);
                    return (state(0), state(1));
                }
                let of = || {
                    let all = inputs[0].iter().enumerate();
                    all.filter(|(at, _)| channel_of(*at) == channel).map(|(_, x)| x)
                };
                let count = of().count() as f64;
                let mean = of().sum::<f64>() / count;
                (mean, of().map(|x| (x - mean).powi(2)).sum::<f64>() / count)
            })
            .collect();
        let normal = |(at, x): (usize, &f64)| {
            let channel = channel_of(at);
            let (mean, variance) = statistics[channel];
            (x - mean) / (variance + epsilon).sqrt() * inputs[1][channel] + inputs[2][channel]
        };
        inputs[0].iter().enumerate().map(normal).collect()
    }
}

/// The input's row or column under element `k` of the window at a place; `None` in the padding
/// before it.
fn pixel(window: &Window, axis: usize, place: usize, k: usize) -> Option<usize> {
    (place * window.stride[axis] + k * window.dilation[axis]).checked_sub(window.begin[axis])
}

fn activation(function: Activation, x: f64) -> f64 {
    let wide = f64::from;
    match function {
        Activation::Relu => x.max(0.0),
        Activation::LeakyRelu { slope } => x.max(0.0) + wide(slope) * x.min(0.0),
        Activation::Clip { least, most } => x.max(wide(least)).min(wide(most)),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::HardSigmoid { slope, level } => (wide(slope) * x + wide(level)).clamp(0.0, 1.0),
        Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::Neg => -x,
    }
}
