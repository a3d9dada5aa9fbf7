//! Convolution.

use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Write, for_columns, multiply};
use super::sums::sum;
use super::unroll::Sliding;
use super::{Backward, Forward, Kernel};
use crate::graph::Window;

/// Floats of unrolled pixels at work at a time: they stay in a core's cache.
const BLOCK_FLOATS: usize = 1 << 16;

/// Fewest columns of a block: below it, products are too narrow to be fast.
const BLOCK_COLUMNS_MIN: usize = 128;

/// 2-D convolution.
/// Shapes: `x [n, c, h, w]`, `w [m, c/group, kh, kw]`, `bias [m]` -> `[n, m, oh, ow]`.
/// Source: ONNX operator `Conv`, opset 22; unrolled as in Chellapilla et al. 2006.
#[derive(Debug)]
pub(super) struct Conv {
    sliding: Sliding,
    groups: usize,
    /// Channels and rows of the unrolled pixels, per group.
    channels: usize,
    depth: usize,
    /// Output channels per group.
    maps: usize,
}

impl Conv {
    pub(super) fn new(window: Window, groups: usize, input: &[usize], output: &[usize]) -> Self {
        let channels = input[0] / groups;
        Self {
            sliding: Sliding {
                window,
                input: [input[1], input[2]],
                output: [output[1], output[2]],
            },
            groups,
            channels,
            depth: channels * window.kernel[0] * window.kernel[1],
            maps: output[0] / groups,
        }
    }

    fn block_columns(&self, batch: usize) -> usize {
        let columns = (BLOCK_FLOATS / self.depth).max(BLOCK_COLUMNS_MIN);
        columns.min(batch * self.sliding.places())
    }

    fn block_floats(&self, batch: usize) -> usize {
        self.depth * self.block_columns(batch)
    }

    fn weight_floats(&self) -> usize {
        self.groups * self.maps * self.depth
    }

    /// One group's unrolled pixels from column `first` on: in `block`, or where they already are.
    fn unrolled<'a>(
        &self,
        x: &'a [f32],
        batch: usize,
        group: usize,
        (first, columns): (usize, usize),
        block: &'a mut [f32],
    ) -> Matrix<'a> {
        let row_len = batch * self.sliding.pixels();
        let x = &x[group * self.channels * row_len..];
        if self.sliding.is_plain() {
            return Matrix::new(&x[first..], self.depth, columns, row_len);
        }
        let block = &mut block[..self.depth * columns];
        self.sliding.unroll(x, batch, first, columns, block);
        Matrix::new(block, self.depth, columns, columns)
    }

    fn weights<'a>(&self, weights: &'a [f32], group: usize) -> Matrix<'a> {
        let weights = &weights[group * self.maps * self.depth..];
        Matrix::new(weights, self.maps, self.depth, self.depth)
    }

    fn input_gradient(
        &self,
        weights: &[f32],
        output_gradient: &[f32],
        batch: usize,
        scratch: &mut [f32],
        x_gradient: MatrixMut<'_>,
        into: Write,
    ) {
        let (places, pixels) = (self.sliding.places(), self.sliding.pixels());
        let row_len = batch * places;
        let step = self.block_columns(batch);
        let work = |first_pixel: usize, mut part: MatrixMut<'_>, block: &mut [f32]| {
            let picture = first_pixel / pixels;
            let last = picture + part.columns() / pixels;
            for from in (picture * places..last * places).step_by(step) {
                let columns = step.min(last * places - from);
                for group in 0..self.groups {
                    let rows = group * self.maps * row_len;
                    let gradient =
                        Matrix::new(&output_gradient[rows + from..], self.maps, columns, row_len);
                    let weights = self.weights(weights, group).transposed();
                    let (first, end) = (group * self.channels, (group + 1) * self.channels);
                    let mut channels = part.rows_mut(first, end);
                    if self.sliding.is_plain() {
                        let at = from - picture * places;
                        let mut pixels = channels.columns_mut(at, at + columns);
                        multiply(&mut pixels, into, 1.0, weights, gradient, false);
                    } else {
                        let block = &mut block[..self.depth * columns];
                        let mut unrolled = MatrixMut::new(block, self.depth, columns, columns);
                        multiply(&mut unrolled, Write::Put, 1.0, weights, gradient, false);
                        self.sliding.fold(block, from, columns, &mut channels, picture);
                    }
                }
            }
        };
        for_columns(x_gradient, pixels, scratch, self.block_floats(batch), &work);
    }

    /// Leaves one partial gradient by the weights at the start of each task's scratch.
    fn weight_gradient_parts(
        &self,
        x: &[f32],
        output_gradient: &[f32],
        batch: usize,
        scratch: &mut [f32],
    ) {
        let per_task = self.weight_floats() + self.block_floats(batch);
        let row_len = batch * self.sliding.places();
        let step = self.block_columns(batch);
        let blocks = row_len.div_ceil(step);
        let tasks = scratch.len() / per_task;
        scratch.par_chunks_exact_mut(per_task).enumerate().for_each(|(task, scratch)| {
            let (part, block) = scratch.split_at_mut(self.weight_floats());
            part.fill(0.0);
            for index in blocks * task / tasks..blocks * (task + 1) / tasks {
                let from = index * step;
                let columns = step.min(row_len - from);
                for group in 0..self.groups {
                    let rows = group * self.maps;
                    let gradient = &output_gradient[rows * row_len + from..];
                    let gradient = Matrix::new(gradient, self.maps, columns, row_len);
                    let unrolled = self.unrolled(x, batch, group, (from, columns), block);
                    let part = &mut part[rows * self.depth..];
                    let mut part = MatrixMut::new(part, self.maps, self.depth, self.depth);
                    multiply(&mut part, Write::Add, 1.0, gradient, unrolled.transposed(), false);
                }
            }
        });
    }
}

impl Kernel for Conv {
    fn scratch(&self, batch: usize, threads: usize) -> usize {
        threads * (self.block_floats(batch) + self.weight_floats())
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let bias = call.inputs.get(2);
        let (batch, maps) = (call.batch, self.maps);
        let row_len = batch * self.sliding.places();
        let step = self.block_columns(batch);
        let work = |first: usize, mut part: MatrixMut<'_>, block: &mut [f32]| {
            for from in (0..part.columns()).step_by(step) {
                let columns = step.min(part.columns() - from);
                let mut out = part.columns_mut(from, from + columns);
                for group in 0..self.groups {
                    let pixels = self.unrolled(x, batch, group, (first + from, columns), block);
                    let mut out = out.rows_mut(group * maps, (group + 1) * maps);
                    let weights = self.weights(weights, group);
                    multiply(&mut out, Write::Put, 1.0, weights, pixels, false);
                }
                for (row, bias) in bias.iter().flat_map(|bias| bias.iter()).enumerate() {
                    out.row(row).iter_mut().for_each(|value| *value += bias);
                }
            }
        };
        let rows = self.groups * maps;
        let out = MatrixMut::new(call.output, rows, row_len, row_len);
        let per_task = self.block_floats(batch);
        let tasks = call.scratch.len() / (per_task + self.weight_floats());
        let unit = self.sliding.output[1];
        for_columns(out, unit, &mut call.scratch[..tasks * per_task], per_task, &work);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let [x_gradient, parameter_gradients @ ..] = call.input_gradients else { return };
        let (batch, dy) = (call.batch, call.output_gradient);
        let per_task = self.block_floats(batch);
        let tasks = call.scratch.len() / (per_task + self.weight_floats());
        if let Some(gradient) = x_gradient {
            let into = if gradient.add { Write::Add } else { Write::Put };
            if !self.sliding.is_plain() {
                gradient.clear_unless_adding();
            }
            let row_len = batch * self.sliding.pixels();
            let rows = self.groups * self.channels;
            let out = MatrixMut::new(gradient.values, rows, row_len, row_len);
            let scratch = &mut call.scratch[..tasks * per_task];
            self.input_gradient(weights, dy, batch, scratch, out, into);
        }
        if let Some(Some(gradient)) = parameter_gradients.first_mut() {
            let per_task = per_task + self.weight_floats();
            let scratch = &mut call.scratch[..tasks * per_task];
            self.weight_gradient_parts(x, dy, batch, scratch);
            gradient.clear_unless_adding();
            for part in scratch.chunks_exact(per_task) {
                gradient.values.iter_mut().zip(part).for_each(|(into, value)| *into += value);
            }
        }
        if let Some(Some(gradient)) = parameter_gradients.get_mut(1) {
            gradient.put(dy.chunks_exact(batch * self.sliding.places()).map(sum));
        }
    }
}
