//! Depthwise convolution.

use rayon::prelude::*;

use super::sums::{sum, sum_of};
use super::{Backward, Forward, Gradient, Kernel};
use crate::graph::Window;

/// Floats of one phase at work at a time: with its gradient they stay in the first cache.
const BLOCK_FLOATS: usize = 1 << 11;

/// 2-D convolution in which each channel has kernels of its own.
/// Shapes: `x [n, c, h, w]`, `w [m, 1, kh, kw]`, `bias [m]`, `m` a multiple of `c`
/// -> `[n, m, oh, ow]`.
/// Source: ONNX operator `Conv` with `group = c`, opset 22.
///
/// Padded pictures are parted into phases, one for each remainder of a pixel's row and column by
/// the stride. All pixels that one element of the kernel meets then lie in one phase, behind each
/// other but for a gap at the end of each row; so a whole block of pictures is one stretch of
/// memory per element, whatever the stride and dilation. What falls into the gaps is not used.
#[derive(Debug)]
pub(super) struct Depthwise {
    window: Window,
    /// `[h, w]`
    input: [usize; 2],
    output: [usize; 2],
    channels: usize,
    /// Output channels of each channel.
    maps: usize,
    /// `[h, w]` of a picture in a phase; the output's, and what the kernel reaches beyond.
    phase: [usize; 2],
    /// For each element of the kernel its phase, and the offset in it.
    elements: Vec<(usize, usize)>,
}

/// One block's working memory.
struct Block<'a> {
    /// The phases of the pictures, or their gradients.
    phases: &'a mut [f32],
    /// Outputs, or their gradients, with the gaps.
    places: &'a mut [f32],
}

impl Depthwise {
    /// Whether the phases of a picture are not much larger than the picture: strides and dilations
    /// that leave most pixels out, and paddings wider than the picture, make them so.
    pub(super) fn suits(window: Window, input: &[usize], output: &[usize]) -> bool {
        let Window { kernel, stride, dilation, .. } = window;
        let side = |axis: usize| {
            let beyond = (kernel[axis] - 1).checked_mul(dilation[axis])? / stride[axis];
            (output[axis + 1] + beyond).checked_mul(stride[axis])
        };
        let floats = side(0).and_then(|height| height.checked_mul(side(1)?));
        let picture = input[1] * input[2] + output[1] * output[2];
        floats.is_some_and(|floats| floats <= 4 * picture + BLOCK_FLOATS)
    }

    pub(super) fn new(window: Window, input: &[usize], output: &[usize]) -> Self {
        let Window { kernel, stride, dilation, .. } = window;
        let reach = |axis: usize, k: usize| k * dilation[axis];
        let beyond = |axis: usize| reach(axis, kernel[axis] - 1) / stride[axis];
        let phase = [output[1] + beyond(0), output[2] + beyond(1)];
        let element = |k: usize| {
            let at = [reach(0, k / kernel[1]), reach(1, k % kernel[1])];
            let phase_of = at[0] % stride[0] * stride[1] + at[1] % stride[1];
            (phase_of, at[0] / stride[0] * phase[1] + at[1] / stride[1])
        };
        Self {
            window,
            input: [input[1], input[2]],
            output: [output[1], output[2]],
            channels: input[0],
            maps: output[0] / input[0],
            phase,
            elements: (0..kernel[0] * kernel[1]).map(element).collect(),
        }
    }

    fn pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn phases(&self) -> usize {
        self.window.stride[0] * self.window.stride[1]
    }

    /// Pictures of a block.
    fn pictures(&self, batch: usize) -> usize {
        (BLOCK_FLOATS / (self.phase[0] * self.phase[1])).clamp(1, batch)
    }

    /// Floats of one phase and of the places, for a block of pictures.
    fn floats(&self, pictures: usize) -> (usize, usize) {
        let places = pictures * self.phase[0] * self.phase[1];
        let slack = self.elements.iter().map(|(_, offset)| *offset).max().unwrap_or(0);
        (places + slack, places)
    }

    fn per_task(&self, batch: usize) -> usize {
        let (phase, places) = self.floats(self.pictures(batch));
        2 * self.phases() * phase + places
    }

    fn block<'a>(&self, scratch: &'a mut [f32], pictures: usize) -> (Block<'a>, &'a mut [f32]) {
        let (phase, places) = self.floats(pictures);
        let (phases, rest) = scratch.split_at_mut(self.phases() * phase);
        let (places, rest) = rest.split_at_mut(places);
        (Block { phases, places }, rest)
    }

    /// Visits the rows of the pictures: `(pixel, run, place in the phases, step)`, runs of pixels
    /// behind each other that lie in one phase every `step` pixels.
    fn rows(&self, pictures: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let [height, width] = self.input;
        let Window { stride, begin, .. } = self.window;
        let (phase_len, _) = self.floats(pictures);
        for picture in 0..pictures {
            for y in 0..height {
                let (row, row_phase) = ((y + begin[0]) / stride[0], (y + begin[0]) % stride[0]);
                if row >= self.phase[0] {
                    break;
                }
                let start = (picture * self.phase[0] + row) * self.phase[1];
                for x in 0..stride[1].min(width) {
                    let (column, phase) = ((x + begin[1]) / stride[1], (x + begin[1]) % stride[1]);
                    let phase = row_phase * stride[1] + phase;
                    // Columns behind the last that a kernel meets are left out.
                    let run = (width - x).div_ceil(stride[1]);
                    let run = run.min(self.phase[1].saturating_sub(column));
                    if run > 0 {
                        let pixel = (picture * height + y) * width + x;
                        visit(pixel, run, phase * phase_len + start + column);
                    }
                }
            }
        }
    }

    /// Parts pictures into phases.
    fn part(&self, x: &[f32], pictures: usize, phases: &mut [f32]) {
        phases.fill(0.0);
        let stride = self.window.stride[1];
        self.rows(pictures, |pixel, run, at| {
            let into = &mut phases[at..at + run];
            if stride == 1 {
                into.copy_from_slice(&x[pixel..pixel + run]);
            } else {
                let pixels = x[pixel..].iter().step_by(stride);
                into.iter_mut().zip(pixels).for_each(|(into, x)| *into = *x);
            }
        });
    }

    /// Adds phases to the pictures that they are parts of.
    fn join(&self, phases: &[f32], pictures: usize, x: &mut [f32]) {
        let stride = self.window.stride[1];
        self.rows(pictures, |pixel, run, at| {
            let pixels = x[pixel..].iter_mut().step_by(stride);
            pixels.zip(&phases[at..at + run]).for_each(|(x, phase)| *x += phase);
        });
    }

    /// Each output row with its place among the gaps.
    fn output_rows(&self, pictures: usize) -> impl Iterator<Item = (usize, usize)> {
        let ([rows, width], phase) = (self.output, self.phase);
        let row = move |row: usize| (row / rows * phase[0] + row % rows) * phase[1];
        (0..pictures * rows).map(move |at| (at * width, row(at)))
    }

    /// One channel's outputs.
    fn forward_channel(
        &self,
        x: &[f32],
        weights: &[f32],
        bias: Option<&[f32]>,
        (y, batch): (&mut [f32], usize),
        scratch: &mut [f32],
    ) {
        let step = self.pictures(batch);
        for first in (0..batch).step_by(step) {
            let pictures = step.min(batch - first);
            let (block, _) = self.block(scratch, pictures);
            self.part(&x[first * self.pixels()..], pictures, block.phases);
            let (phase_len, len) = self.floats(pictures);
            for (map, weights) in weights.chunks_exact(self.elements.len()).enumerate() {
                block.places.fill(bias.map_or(0.0, |bias| bias[map]));
                for ((phase, offset), weight) in self.elements.iter().zip(weights) {
                    let pixels = &block.phases[phase * phase_len + offset..][..len];
                    let pairs = block.places.iter_mut().zip(pixels);
                    pairs.for_each(|(place, pixel)| *place += weight * pixel);
                }
                let y = &mut y[(map * batch + first) * self.places()..];
                for (to, from) in self.output_rows(pictures) {
                    let width = self.output[1];
                    y[to..to + width].copy_from_slice(&block.places[from..from + width]);
                }
            }
        }
    }

    /// One channel's gradients: `x_gradient` is added to, `w_gradient` too.
    fn backward_channel(
        &self,
        x: &[f32],
        weights: &[f32],
        (dy, batch): (&[f32], usize),
        mut x_gradient: Option<&mut [f32]>,
        mut w_gradient: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let step = self.pictures(batch);
        let elements = self.elements.len();
        for first in (0..batch).step_by(step) {
            let pictures = step.min(batch - first);
            let (block, rest) = self.block(scratch, pictures);
            let (phase_len, len) = self.floats(pictures);
            let gradients = &mut rest[..self.phases() * phase_len];
            let pixels = first * self.pixels();
            if w_gradient.is_some() {
                self.part(&x[pixels..], pictures, block.phases);
            }
            gradients.fill(0.0);
            block.places.fill(0.0);
            for map in 0..self.maps {
                let dy = &dy[(map * batch + first) * self.places()..];
                for (from, to) in self.output_rows(pictures) {
                    let width = self.output[1];
                    block.places[to..to + width].copy_from_slice(&dy[from..from + width]);
                }
                for (element, (phase, offset)) in self.elements.iter().enumerate() {
                    let stretch = phase * phase_len + offset..phase * phase_len + offset + len;
                    let element = map * elements + element;
                    if let Some(w_gradient) = &mut w_gradient {
                        let pixels = &block.phases[stretch.clone()];
                        let dot = sum_of(pixels, block.places, |pixel, dy| pixel * dy);
                        w_gradient[element] += super::sums::narrow(dot);
                    }
                    if x_gradient.is_some() {
                        let weight = weights[element];
                        let pairs = gradients[stretch].iter_mut().zip(block.places.iter());
                        pairs.for_each(|(gradient, dy)| *gradient += weight * dy);
                    }
                }
            }
            if let Some(x_gradient) = &mut x_gradient {
                self.join(gradients, pictures, &mut x_gradient[pixels..]);
            }
        }
    }

    /// Channels of each task.
    fn task_channels(&self, batch: usize, scratch: &[f32]) -> usize {
        self.channels.div_ceil((scratch.len() / self.per_task(batch)).max(1))
    }
}

impl Kernel for Depthwise {
    fn scratch(&self, batch: usize, threads: usize) -> usize {
        threads * self.per_task(batch)
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let bias = call.inputs.get(2);
        let batch = call.batch;
        let (x_len, y_len) = (batch * self.pixels(), self.maps * batch * self.places());
        let w_len = self.maps * self.elements.len();
        let channels = self.task_channels(batch, call.scratch);
        let tasks = call.output.par_chunks_mut(channels * y_len).enumerate();
        let scratch = call.scratch.par_chunks_exact_mut(self.per_task(batch));
        tasks.zip(scratch).for_each(|((task, output), scratch)| {
            for (at, y) in output.chunks_exact_mut(y_len).enumerate() {
                let channel = task * channels + at;
                let x = &x[channel * x_len..][..x_len];
                let weights = &weights[channel * w_len..][..w_len];
                let bias = bias.map(|bias| &bias[channel * self.maps..]);
                self.forward_channel(x, weights, bias, (y, batch), scratch);
            }
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let [x_gradient, parameter_gradients @ ..] = call.input_gradients else { return };
        let (batch, dy) = (call.batch, call.output_gradient);
        if let Some(Some(gradient)) = parameter_gradients.get_mut(1) {
            gradient.put(dy.chunks_exact(batch * self.places()).map(sum));
        }
        let (x_len, y_len) = (batch * self.pixels(), self.maps * batch * self.places());
        let w_len = self.maps * self.elements.len();
        let channels = self.task_channels(batch, call.scratch);
        let w_gradient = parameter_gradients.first_mut().and_then(Option::as_mut);
        let x_parts =
            parts(x_gradient.as_mut(), channels * x_len, self.channels.div_ceil(channels));
        let w_parts = parts(w_gradient, channels * w_len, self.channels.div_ceil(channels));
        let scratch = call.scratch.par_chunks_exact_mut(self.per_task(batch));
        let parts = x_parts.into_par_iter().zip(w_parts).enumerate();
        parts.zip(scratch).for_each(|((task, (mut x_part, mut w_part)), scratch)| {
            for channel in task * channels..self.channels.min((task + 1) * channels) {
                let at = channel - task * channels;
                self.backward_channel(
                    &x[channel * x_len..][..x_len],
                    &weights[channel * w_len..][..w_len],
                    (&dy[channel * y_len..][..y_len], batch),
                    x_part.as_mut().map(|part| &mut part[at * x_len..][..x_len]),
                    w_part.as_mut().map(|part| &mut part[at * w_len..][..w_len]),
                    scratch,
                );
            }
        });
    }
}

/// The gradient in so many parts, ready to be added to.
fn parts<'a>(
    gradient: Option<&'a mut Gradient<'_>>,
    len: usize,
    count: usize,
) -> Vec<Option<&'a mut [f32]>> {
    match gradient {
        Some(gradient) => {
            gradient.clear_unless_adding();
            gradient.values.chunks_mut(len).map(Some).collect()
        }
        None => (0..count).map(|_| None).collect(),
    }
}
