//! Pooling.

#![expect(unsafe_code, reason = "tasks write parts of one target")]

use super::{Call, Kernel, Layout, Target, each_task};
use crate::graph::Window;
use crate::kernels::pool::{self, Sliding};
use crate::kernels::simd::{Instructions, Simd, Work};
use crate::kernels::sums::{count, narrow};

/// The largest of the pixels under a window, or their mean.
/// Shapes: `x [c, h, w]` -> `[c, oh, ow]`.
/// Source: ONNX operators `MaxPool`, opset 12, and `AveragePool`, opset 19.
#[derive(Debug)]
pub(crate) struct Pool {
    instructions: Instructions,
    sliding: Sliding,
    source: Layout,
    target: Layout,
    /// For each place, 1 over the number of pixels that count; none for the largest.
    shares: Vec<f32>,
}

impl Pool {
    pub(crate) fn max(window: Window, source: Layout, target: Layout) -> Self {
        Self::new(sliding(window, &source, &target), source, target, Vec::new())
    }

    pub(crate) fn average(
        window: Window,
        include_pad: bool,
        source: Layout,
        target: Layout,
    ) -> Self {
        let sliding = sliding(window, &source, &target);
        Self::new(sliding, source, target, pool::shares(&sliding, include_pad))
    }

    /// The mean of all pixels.
    pub(crate) fn global(source: Layout, target: Layout) -> Self {
        let [h, w] = source.size;
        let (kernel, stride, dilation) = ([h, w], [1; 2], [1; 2]);
        let window = Window { kernel, stride, dilation, begin: [0; 2], end: [0; 2], ceil: false };
        let shares = vec![narrow(count(h * w).recip())];
        Self::new(sliding(window, &source, &target), source, target, shares)
    }

    fn new(sliding: Sliding, source: Layout, target: Layout, shares: Vec<f32>) -> Self {
        Self { instructions: Instructions::best(), sliding, source, target, shares }
    }
}

fn sliding(window: Window, source: &Layout, target: &Layout) -> Sliding {
    Sliding { window, input: source.size, output: target.size }
}

impl Kernel for Pool {
    fn run(&self, call: Call<'_, '_>) {
        let source = &call.sources[0][..self.source.len()];
        let target = Target::of(&mut call.target[..self.target.len()]);
        each_task(self.target.planes(), |plane| {
            let source = &source[plane * self.source.plane() + self.source.origin()..];
            let target = target.at(plane * self.target.plane() + self.target.origin());
            self.instructions.run(PlaneWork { pool: self, source, target });
        });
    }
}

/// The channels of one plane.
struct PlaneWork<'a> {
    pool: &'a Pool,
    source: &'a [f32],
    target: *mut f32,
}

impl Work for PlaneWork<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Pool { sliding, source, target, shares, .. } = self.pool;
        let [height, width] = target.size;
        for y in 0..height {
            let rows = sliding.seen(0, y);
            for x in 0..width {
                let columns = sliding.seen(1, x);
                // SAFETY: the caller's promise.
                let made = unsafe {
                    match shares.get(y * width + x) {
                        None => self.max::<S>(source.row(), rows, columns),
                        Some(share) => self.mean::<S>(source.row(), rows, columns, *share),
                    }
                };
                let to = self.target.wrapping_add(y * target.row() + x * S::LANES);
                // SAFETY: a task has its plane of the target, which is as long as its layout says.
                unsafe { S::store(to, made) }
            }
        }
    }
}

/// Pixels along an axis: first, behind the last, and the step between them.
type Seen = (usize, usize, usize);

impl PlaneWork<'_> {
    #[inline(always)]
    unsafe fn max<S: Simd>(&self, row: usize, rows: Seen, columns: Seen) -> S::Vector {
        // SAFETY: the caller's promise; the slice is as long as a vector.
        unsafe {
            let mut largest = S::splat(f32::NEG_INFINITY);
            let mut y = rows.0;
            while y < rows.1 {
                let mut x = columns.0;
                while x < columns.1 {
                    let pixel = S::load(self.pixel::<S>(row, y, x));
                    largest = S::max(largest, pixel);
                    x += columns.2;
                }
                y += rows.2;
            }
            largest
        }
    }

    /// Rows are summed up alone first: sums of sums stay exact enough.
    #[inline(always)]
    unsafe fn mean<S: Simd>(&self, row: usize, rows: Seen, columns: Seen, share: f32) -> S::Vector {
        // SAFETY: as above.
        unsafe {
            let mut sum = S::splat(0.0);
            let mut y = rows.0;
            while y < rows.1 {
                let mut of_row = S::splat(0.0);
                let mut x = columns.0;
                while x < columns.1 {
                    of_row = S::add(of_row, S::load(self.pixel::<S>(row, y, x)));
                    x += columns.2;
                }
                sum = S::add(sum, of_row);
                y += rows.2;
            }
            S::multiply_add(sum, S::splat(share), S::splat(0.0))
        }
    }

    #[inline(always)]
    fn pixel<S: Simd>(&self, row: usize, y: usize, x: usize) -> *const f32 {
        self.source[y * row + x * S::LANES..][..S::LANES].as_ptr()
    }
}
