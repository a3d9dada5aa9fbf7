//! Pixels unrolled into the columns of a matrix, one column per place of the window, and back.

use crate::graph::Window;

use super::matrix::MatrixMut;

/// Geometry of a window that slides over pictures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sliding {
    pub(super) window: Window,
    /// `[h, w]` of the input.
    pub(super) input: [usize; 2],
    /// `[h, w]` of the output.
    pub(super) output: [usize; 2],
}

/// A run of columns in one output row, and where its pixels lie.
struct Run {
    /// First column, counted from the start of the block.
    column: usize,
    /// Columns before the picture begins, inside of it, and behind it.
    before: usize,
    inside: usize,
    behind: usize,
    /// First pixel of `inside`, counted from the start of the channel.
    pixel: usize,
}

impl Sliding {
    /// Places of the window in one picture.
    pub(super) fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Pixels of one picture's channel.
    pub(super) fn pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Whether unrolled pixels are the pixels as they are.
    pub(super) fn is_plain(&self) -> bool {
        let window = &self.window;
        window.kernel == [1; 2]
            && window.stride == [1; 2]
            && window.begin == [0; 2]
            && window.end == [0; 2]
    }

    /// Unrolls columns `first..` of some channels into `block [channels kh kw, columns]`.
    /// `x` begins with the first of the channels, each of `n` pictures.
    pub(super) fn unroll(
        &self,
        x: &[f32],
        n: usize,
        first: usize,
        columns: usize,
        block: &mut [f32],
    ) {
        let [kh, kw] = self.window.kernel;
        let channel_len = n * self.pixels();
        for (row, into) in block.chunks_exact_mut(columns).enumerate() {
            let channel = &x[row / (kh * kw) * channel_len..][..channel_len];
            let stride = self.window.stride[1];
            self.runs(first, columns, row % (kh * kw), |run| {
                let (zeros, rest) = into[run.column..].split_at_mut(run.before);
                let (inside, rest) = rest.split_at_mut(run.inside);
                zeros.fill(0.0);
                if stride == 1 {
                    inside.copy_from_slice(&channel[run.pixel..run.pixel + run.inside]);
                } else {
                    let pixels = channel[run.pixel..].iter().step_by(stride);
                    inside.iter_mut().zip(pixels).for_each(|(into, pixel)| *into = *pixel);
                }
                rest[..run.behind].fill(0.0);
            });
        }
    }

    /// Adds each element of `block` to the pixel that [`Sliding::unroll`] took it from. Row `r`
    /// of `x` is a channel; its columns are the pictures from `picture` on.
    pub(super) fn fold(
        &self,
        block: &[f32],
        first: usize,
        columns: usize,
        x: &mut MatrixMut<'_>,
        picture: usize,
    ) {
        let [kh, kw] = self.window.kernel;
        let offset = picture * self.pixels();
        for (row, from) in block.chunks_exact(columns).enumerate() {
            let channel = x.row(row / (kh * kw));
            let stride = self.window.stride[1];
            self.runs(first, columns, row % (kh * kw), |run| {
                let from = &from[run.column + run.before..][..run.inside];
                if run.inside > 0 {
                    let pixels = channel[run.pixel - offset..].iter_mut().step_by(stride);
                    pixels.zip(from).for_each(|(pixel, value)| *pixel += value);
                }
            });
        }
    }

    /// The runs of columns `first..first + columns` for one element of the kernel.
    fn runs(&self, first: usize, columns: usize, element: usize, mut visit: impl FnMut(Run)) {
        let Window { kernel, stride, dilation, begin, .. } = self.window;
        let [height, width] = self.input;
        let out_width = self.output[1];
        // Offset of this element to the right of the window's place, counted with the padding.
        let down = element / kernel[1] * dilation[0];
        let right = element % kernel[1] * dilation[1];
        // Places in a row whose pixel lies inside of the picture: from..to.
        let from = begin[1].saturating_sub(right).div_ceil(stride[1]).min(out_width);
        let to =
            (width + begin[1]).saturating_sub(right).div_ceil(stride[1]).clamp(from, out_width);
        let mut column = 0;
        while column < columns {
            let place = first + column;
            let picture = place / self.places();
            let row = place % self.places() / out_width;
            let start = place % out_width;
            let end = out_width.min(start + columns - column);
            let y = row * stride[0] + down;
            let inside_start = from.clamp(start, end);
            let inside_end = to.clamp(inside_start, end);
            let visible = y >= begin[0] && y - begin[0] < height && inside_end > inside_start;
            let run = if visible {
                let x = inside_start * stride[1] + right - begin[1];
                Run {
                    column,
                    before: inside_start - start,
                    inside: inside_end - inside_start,
                    behind: end - inside_end,
                    pixel: picture * self.pixels() + (y - begin[0]) * width + x,
                }
            } else {
                Run { column, before: end - start, inside: 0, behind: 0, pixel: 0 }
            };
            visit(run);
            column += end - start;
        }
    }
}
