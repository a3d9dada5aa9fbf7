//! Pooling.

use rayon::prelude::*;

use super::simd::vectorised;
use super::sums::{count, narrow};
use super::{Backward, Forward, Gradient, Kernel, Reads};
use crate::graph::Window;

/// Geometry of a window that slides over pictures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sliding {
    pub(super) window: Window,
    /// `[h, w]` of the input, and of the output.
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
}

impl Sliding {
    fn new(window: Window, input: &[usize], output: &[usize]) -> Self {
        Self { window, input: [input[1], input[2]], output: [output[1], output[2]] }
    }

    /// Places of the window in one picture.
    fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Pixels of one picture's channel.
    fn len(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Pixels along one axis that a window sees: first, behind the last, and the step between
    /// them.
    pub(super) fn seen(&self, axis: usize, place: usize) -> (usize, usize, usize) {
        let Window { kernel, stride, dilation, begin, .. } = self.window;
        let start = place * stride[axis];
        // Elements of the kernel that lie in the padding before the input.
        let hidden = begin[axis].saturating_sub(start).div_ceil(dilation[axis]);
        let from = start + hidden * dilation[axis] - begin[axis];
        let behind = (start + (kernel[axis] - 1) * dilation[axis] + 1).saturating_sub(begin[axis]);
        (from, behind.min(self.input[axis]), dilation[axis])
    }

    /// Visits the pixels that the window sees at a place, row by row. Plain loops, so that they
    /// become part of a function that is compiled for vector instructions.
    #[inline(always)]
    fn visit(&self, place: usize, mut see: impl FnMut(usize)) {
        let (from_y, behind_y, step_y) = self.seen(0, place / self.output[1]);
        let (from_x, behind_x, step_x) = self.seen(1, place % self.output[1]);
        let mut y = from_y;
        while y < behind_y {
            let mut x = from_x;
            while x < behind_x {
                see(y * self.input[1] + x);
                x += step_x;
            }
            y += step_y;
        }
    }

    /// The first pixel that the window sees at a place, or 0.
    fn first(&self, place: usize) -> usize {
        let [(y, behind_y, _), (x, behind_x, _)] =
            [self.seen(0, place / self.output[1]), self.seen(1, place % self.output[1])];
        if y < behind_y && x < behind_x { y * self.input[1] + x } else { 0 }
    }
}

/// The examples of one pixel or place.
fn of(at: usize, n: usize) -> std::ops::Range<usize> {
    at * n..(at + 1) * n
}

/// The largest of the pixels under the window.
/// Shapes: `x [n, c, h, w]` -> `[n, c, oh, ow]`. The gradient goes to the first of equal pixels.
/// Source: ONNX operator `MaxPool`, opset 12.
#[derive(Debug)]
pub(super) struct MaxPool {
    sliding: Sliding,
    /// For each output the pixel that it came from, counted within the picture's channel.
    chosen: Vec<u32>,
}

impl MaxPool {
    pub(super) fn new(window: Window, input: &[usize], output: &[usize]) -> Self {
        Self { sliding: Sliding::new(window, input, output), chosen: Vec::new() }
    }
}

/// A pixel's number in a form that takes little room.
fn number(pixel: usize) -> u32 {
    u32::try_from(pixel).expect("a picture has fewer pixels than 2^32")
}

impl Kernel for MaxPool {
    fn kept_bytes(&self, output_len: usize) -> usize {
        output_len * size_of::<u32>()
    }

    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let (sliding, n) = (&self.sliding, call.batch);
        self.chosen.resize(call.output.len().max(self.chosen.len()), 0);
        let chosen = self.chosen[..call.output.len()].par_chunks_exact_mut(sliding.places() * n);
        let channels = call.output.par_chunks_exact_mut(sliding.places() * n).zip(chosen);
        channels.zip(x.par_chunks_exact(sliding.len() * n)).for_each(|((y, chosen), x)| {
            vectorised(
                #[inline(always)]
                || {
                    for place in 0..sliding.places() {
                        let (y, chosen) = (&mut y[of(place, n)], &mut chosen[of(place, n)]);
                        let (y, y_rest) = y.as_chunks_mut::<TOGETHER>();
                        let (chosen, chosen_rest) = chosen.as_chunks_mut::<TOGETHER>();
                        let mut at = 0;
                        for (y, chosen) in y.iter_mut().zip(chosen) {
                            (*y, *chosen) = largest(sliding, place, x, n, at);
                            at += TOGETHER;
                        }
                        for (y, chosen) in y_rest.iter_mut().zip(chosen_rest) {
                            ([*y], [*chosen]) = largest(sliding, place, x, n, at);
                            at += 1;
                        }
                    }
                },
            );
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let (sliding, n, add) = (&self.sliding, call.batch, gradient.add);
        let dy = call.output_gradient.par_chunks_exact(sliding.places() * n);
        let chosen = self.chosen.par_chunks_exact(sliding.places() * n);
        let channels = gradient.values.par_chunks_exact_mut(sliding.len() * n).zip(dy.zip(chosen));
        channels.for_each(|(dx, (dy, chosen))| {
            vectorised(
                #[inline(always)]
                || {
                    if !add {
                        dx.fill(0.0);
                    }
                    for place in 0..sliding.places() {
                        let (dy, dy_rest) = dy[of(place, n)].as_chunks::<TOGETHER>();
                        let (chosen, chosen_rest) = chosen[of(place, n)].as_chunks::<TOGETHER>();
                        let mut at = 0;
                        for (dy, chosen) in dy.iter().zip(chosen) {
                            add_to_chosen(sliding, place, dx, n, at, dy, chosen);
                            at += TOGETHER;
                        }
                        for (dy, chosen) in dy_rest.iter().zip(chosen_rest) {
                            add_to_chosen(sliding, place, dx, n, at, &[*dy], &[*chosen]);
                            at += 1;
                        }
                    }
                },
            );
        });
    }
}

/// Examples that are pooled together, in registers.
const TOGETHER: usize = 16;

/// The largest pixels that the window sees, and where they lie, of the examples from `at` on.
#[inline(always)]
fn largest<const L: usize>(
    sliding: &Sliding,
    place: usize,
    x: &[f32],
    n: usize,
    at: usize,
) -> ([f32; L], [u32; L]) {
    let mut largest = [f32::NEG_INFINITY; L];
    let mut chosen = [number(sliding.first(place)); L];
    sliding.visit(
        place,
        #[inline(always)]
        |pixel| {
            let number = number(pixel);
            let Some((x, _)) = x[pixel * n + at..].split_first_chunk::<L>() else { return };
            for lane in 0..L {
                let larger = x[lane] > largest[lane] || x[lane].is_nan();
                largest[lane] = if larger { x[lane] } else { largest[lane] };
                chosen[lane] = if larger { number } else { chosen[lane] };
            }
        },
    );
    (largest, chosen)
}

/// Adds gradients to those of the pixels that were chosen, of the examples from `at` on.
#[inline(always)]
fn add_to_chosen<const L: usize>(
    sliding: &Sliding,
    place: usize,
    dx: &mut [f32],
    n: usize,
    at: usize,
    dy: &[f32; L],
    chosen: &[u32; L],
) {
    sliding.visit(
        place,
        #[inline(always)]
        |pixel| {
            let number = number(pixel);
            let Some((dx, _)) = dx[pixel * n + at..].split_first_chunk_mut::<L>() else { return };
            for lane in 0..L {
                dx[lane] += if chosen[lane] == number { dy[lane] } else { 0.0 };
            }
        },
    );
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
        let sliding = Sliding::new(window, input, output);
        Self { sliding, shares: shares(&sliding, include_pad) }
    }
}

/// For each place, 1 over the number of pixels that count.
pub(super) fn shares(sliding: &Sliding, include_pad: bool) -> Vec<f32> {
    // With the padding counted: elements of the kernel that do not reach beyond it.
    let reach = |axis: usize, place: usize| {
        let padded = sliding.input[axis] + sliding.window.begin[axis] + sliding.window.end[axis];
        let room = padded - place * sliding.window.stride[axis];
        room.div_ceil(sliding.window.dilation[axis]).min(sliding.window.kernel[axis])
    };
    let share = |place: usize| {
        let pixels = if include_pad {
            reach(0, place / sliding.output[1]) * reach(1, place % sliding.output[1])
        } else {
            let mut seen = 0;
            sliding.visit(place, |_| seen += 1);
            seen
        };
        narrow(count(pixels.max(1)).recip())
    };
    (0..sliding.places()).map(share).collect()
}

impl Kernel for AveragePool {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let (sliding, shares, n) = (&self.sliding, &self.shares, call.batch);
        let channels = call.output.par_chunks_exact_mut(sliding.places() * n);
        channels.zip(x.par_chunks_exact(sliding.len() * n)).for_each(|(y, x)| {
            for (place, (y, share)) in y.chunks_exact_mut(n).zip(shares).enumerate() {
                y.fill(0.0);
                sliding.visit(place, |pixel| {
                    y.iter_mut().zip(&x[of(pixel, n)]).for_each(|(y, x)| *y += x);
                });
                for y in y.iter_mut() {
                    *y *= share;
                }
            }
        });
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (sliding, shares, n) = (&self.sliding, &self.shares, call.batch);
        let dy = call.output_gradient.par_chunks_exact(sliding.places() * n);
        let channels = gradient.values.par_chunks_exact_mut(sliding.len() * n).zip(dy);
        channels.for_each(|(dx, dy)| {
            for (place, (dy, share)) in dy.chunks_exact(n).zip(shares).enumerate() {
                sliding.visit(place, |pixel| {
                    let dx = &mut dx[of(pixel, n)];
                    dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += share * dy);
                });
            }
        });
    }
}

/// The mean of each channel's pixels.
/// Shapes: `x [n, c, ...]` -> `[n, c, 1, ...]`.
/// Source: ONNX operator `GlobalAveragePool`, opset 22.
#[derive(Debug)]
pub(super) struct GlobalAveragePool;

/// Pixels whose sum is built up before it is added to the whole: sums of sums stay exact enough.
const PIXELS: usize = 64;

impl Kernel for GlobalAveragePool {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let n = call.batch;
        let pixels = x.len() / call.output.len();
        let share = narrow(count(pixels).recip());
        let channels = call.output.par_chunks_exact_mut(n).zip(x.par_chunks_exact(pixels * n));
        channels.for_each_init(
            || vec![0.0; n],
            |partial, (y, x)| {
                y.fill(0.0);
                for pixels in x.chunks(PIXELS * n) {
                    partial.fill(0.0);
                    for x in pixels.chunks_exact(n) {
                        partial.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
                    }
                    y.iter_mut().zip(&*partial).for_each(|(y, sum)| *y += sum);
                }
                for y in y.iter_mut() {
                    *y *= share;
                }
            },
        );
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let n = call.batch;
        let pixels = gradient.values.len() / call.output_gradient.len();
        let share = narrow(count(pixels).recip());
        let add = gradient.add;
        let channels = gradient.values.par_chunks_exact_mut(pixels * n);
        channels.zip(call.output_gradient.par_chunks_exact(n)).for_each(|(values, dy)| {
            for values in values.chunks_exact_mut(n) {
                Gradient { values, add }.put(dy.iter().map(|dy| share * dy));
            }
        });
    }
}
