//! Pooling.

use rayon::prelude::*;

use super::sums::{count, narrow, sum};
use super::unroll::Sliding;
use super::{Backward, Forward, Gradient, Kernel};
use crate::graph::Window;

/// Pictures of one channel that a thread takes at least.
const PICTURES_MIN: usize = 16;

fn sliding(window: Window, input: &[usize], output: &[usize]) -> Sliding {
    Sliding { window, input: [input[1], input[2]], output: [output[1], output[2]] }
}

/// Pixels along one axis that a window sees: first, behind the last, and the step between them.
fn seen(sliding: &Sliding, axis: usize, place: usize) -> (usize, usize, usize) {
    let Window { kernel, stride, dilation, begin, .. } = sliding.window;
    let start = place * stride[axis];
    // Elements of the kernel that lie in the padding before the input.
    let hidden = begin[axis].saturating_sub(start).div_ceil(dilation[axis]);
    let from = start + hidden * dilation[axis] - begin[axis];
    let behind = (start + (kernel[axis] - 1) * dilation[axis] + 1).saturating_sub(begin[axis]);
    (from, behind.min(sliding.input[axis]), dilation[axis])
}

/// The pixels that the window sees at a place, row by row.
fn pixels(sliding: &Sliding, place: usize) -> impl Iterator<Item = usize> {
    let (from_y, behind_y, step_y) = seen(sliding, 0, place / sliding.output[1]);
    let (from_x, behind_x, step_x) = seen(sliding, 1, place % sliding.output[1]);
    let width = sliding.input[1];
    (from_y..behind_y)
        .step_by(step_y)
        .flat_map(move |y| (from_x..behind_x).step_by(step_x).map(move |x| y * width + x))
}

/// The largest of the pixels under the window.
/// Shapes: `x [n, c, h, w]` -> `[n, c, oh, ow]`. The gradient goes to the first of equal pixels.
/// Source: ONNX operator `MaxPool`, opset 12.
#[derive(Debug)]
pub(super) struct MaxPool {
    sliding: Sliding,
    /// For each output the pixel that it came from, counted within the picture's channel.
    chosen: Vec<usize>,
}

impl MaxPool {
    pub(super) fn new(window: Window, input: &[usize], output: &[usize]) -> Self {
        Self { sliding: sliding(window, input, output), chosen: Vec::new() }
    }
}

impl Kernel for MaxPool {
    fn kept_bytes(&self, output_len: usize) -> usize {
        output_len * size_of::<usize>()
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let sliding = &self.sliding;
        self.chosen.resize(call.output.len().max(self.chosen.len()), 0);
        let chosen = self.chosen[..call.output.len()].par_chunks_exact_mut(sliding.places());
        let pictures = call.output.par_chunks_exact_mut(sliding.places()).zip(chosen);
        let pictures = pictures.zip(x.par_chunks_exact(sliding.pixels()));
        pictures.with_min_len(PICTURES_MIN).for_each(|((y, chosen), x)| {
            for (place, (y, chosen)) in y.iter_mut().zip(chosen).enumerate() {
                let mut largest = f32::NEG_INFINITY;
                for pixel in pixels(sliding, place) {
                    if x[pixel] > largest || x[pixel].is_nan() {
                        largest = x[pixel];
                        *chosen = pixel;
                    }
                }
                *y = largest;
            }
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let sliding = &self.sliding;
        let dy = call.output_gradient.par_chunks_exact(sliding.places());
        let chosen = self.chosen.par_chunks_exact(sliding.places());
        let pictures = gradient.values.par_chunks_exact_mut(sliding.pixels()).zip(dy.zip(chosen));
        pictures.with_min_len(PICTURES_MIN).for_each(|(dx, (dy, chosen))| {
            dy.iter().zip(chosen).for_each(|(dy, chosen)| dx[*chosen] += dy);
        });
    }
}

/// The mean of the pixels under the window.
/// Shapes: `x [n, c, h, w]` -> `[n, c, oh, ow]`.
/// Source: ONNX operator `AveragePool`, opset 19.
#[derive(Debug)]
pub(super) struct AveragePool {
    sliding: Sliding,
    /// For each place, 1 over the number of pixels that count.
    shares: Vec<f32>,
}

impl AveragePool {
    pub(super) fn new(
        window: Window,
        include_pad: bool,
        input: &[usize],
        output: &[usize],
    ) -> Self {
        let sliding = sliding(window, input, output);
        // With the padding counted: elements of the kernel that do not reach beyond it.
        let reach = |axis: usize, place: usize| {
            let padded = sliding.input[axis] + window.begin[axis] + window.end[axis];
            let room = padded - place * window.stride[axis];
            room.div_ceil(window.dilation[axis]).min(window.kernel[axis])
        };
        let share = |place: usize| {
            let pixels = if include_pad {
                reach(0, place / sliding.output[1]) * reach(1, place % sliding.output[1])
            } else {
                pixels(&sliding, place).count()
            };
            narrow(count(pixels.max(1)).recip())
        };
        Self { sliding, shares: (0..sliding.places()).map(share).collect() }
    }
}

impl Kernel for AveragePool {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let (sliding, shares) = (&self.sliding, &self.shares);
        let pictures = call.output.par_chunks_exact_mut(sliding.places());
        let pictures = pictures.zip(x.par_chunks_exact(sliding.pixels()));
        pictures.with_min_len(PICTURES_MIN).for_each(|(y, x)| {
            for (place, (y, share)) in y.iter_mut().zip(shares).enumerate() {
                *y = share * pixels(sliding, place).map(|pixel| x[pixel]).sum::<f32>();
            }
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (sliding, shares) = (&self.sliding, &self.shares);
        let dy = call.output_gradient.par_chunks_exact(sliding.places());
        let pictures = gradient.values.par_chunks_exact_mut(sliding.pixels()).zip(dy);
        pictures.with_min_len(PICTURES_MIN).for_each(|(dx, dy)| {
            for (place, (dy, share)) in dy.iter().zip(shares).enumerate() {
                pixels(sliding, place).for_each(|pixel| dx[pixel] += share * dy);
            }
        });
    }
}

/// The mean of each channel's pixels.
/// Shapes: `x [n, c, ...]` -> `[n, c, 1, ...]`.
/// Source: ONNX operator `GlobalAveragePool`, opset 22.
#[derive(Debug)]
pub(super) struct GlobalAveragePool;

impl Kernel for GlobalAveragePool {
    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let pixels = x.len() / call.output.len();
        let share = narrow(count(pixels).recip());
        let pictures = x.chunks_exact(pixels);
        call.output.iter_mut().zip(pictures).for_each(|(y, x)| *y = share * sum(x));
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let pixels = gradient.values.len() / call.output_gradient.len();
        let share = narrow(count(pixels).recip());
        let add = gradient.add;
        let pictures = gradient.values.chunks_exact_mut(pixels);
        for (values, dy) in pictures.zip(call.output_gradient) {
            Gradient { values, add }.put(std::iter::repeat_n(share * dy, pixels));
        }
    }
}
