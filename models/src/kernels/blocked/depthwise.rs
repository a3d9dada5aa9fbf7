//! Convolution of each channel alone.

#![expect(unsafe_code, reason = "tasks write parts of one target; tiles take addresses")]
#![expect(unsafe_op_in_unsafe_fn, reason = "all that a tile does rests on its caller's promise")]
#![expect(clippy::needless_range_loop, reason = "constant ranges are unrolled into registers")]

use super::function::Finish;
use super::memory::Memory;
use super::rows::{Stretch, parts};
use super::{Call, Function, Kernel, Layout, Target, each_task};
use crate::graph::Window;
use crate::kernels::simd::{Instructions, Simd, Work};

/// Most places of a tile.
const ROWS: usize = 8;

/// 2-D convolution with as many groups as channels, and the function that follows it.
/// Shapes: `x [c, h, w]`, `w [c, 1, kh, kw]`, `bias [c]` -> `[c, oh, ow]`.
/// Source: ONNX operator `Conv`, opset 22.
#[derive(Debug)]
pub(crate) struct Depthwise {
    instructions: Instructions,
    function: Function,
    /// `[plane][element][lanes]`
    weights: Memory,
    /// `[plane][lanes]`
    bias: Memory,
    /// By element of the window where it lies from its corner on.
    elements: Vec<usize>,
    source: Layout,
    target: Layout,
    corner: usize,
    /// From one line's source to the next one's, and from one pixel's.
    steps: [usize; 2],
    stretches: Vec<Stretch>,
    places: Vec<usize>,
}

impl Depthwise {
    /// `weights [c][kh][kw]`; `bias [c]`, or none.
    pub(crate) fn new(
        window: &Window,
        source: &Layout,
        target: &Layout,
        weights: &[f32],
        bias: &[f32],
        function: Function,
    ) -> Self {
        let lanes = target.lanes;
        let [height, width] = window.kernel;
        let count = height * width;
        let mut packed = Memory::zeros(target.planes() * count * lanes);
        for (channel, weights) in weights.chunks_exact(count).enumerate() {
            let first = channel / lanes * count * lanes + channel % lanes;
            let into = packed.as_mut_slice()[first..].iter_mut().step_by(lanes);
            into.zip(weights).for_each(|(into, weight)| *into = *weight);
        }
        let mut biases = Memory::zeros(target.planes() * lanes);
        biases.as_mut_slice()[..bias.len()].copy_from_slice(bias);
        let element = |element: usize| {
            let (y, x) =
                (element / width * window.dilation[0], element % width * window.dilation[1]);
            y * source.row() + x * lanes
        };
        let [top, left] = [0, 1].map(|axis| source.begin[axis] - window.begin[axis]);
        let depthwise = Self {
            instructions: Instructions::best(),
            function,
            weights: packed,
            bias: biases,
            elements: (0..count).map(element).collect(),
            source: *source,
            target: *target,
            corner: top * source.row() + left * lanes,
            steps: [window.stride[0] * source.row(), window.stride[1] * lanes],
            stretches: parts(target.size[1], ROWS).collect(),
            places: (0..target.size[1]).map(|x| x * lanes).collect(),
        };
        depthwise.check();
        depthwise
    }

    /// # Panics
    /// When a tile would reach beyond the source.
    fn check(&self) {
        let last = [0, 1].map(|axis| (self.target.size[axis] - 1) * self.steps[axis]);
        let element = self.elements.iter().max().unwrap_or(&0);
        let end = self.corner + last[0] + last[1] + element + self.source.lanes;
        assert!(end <= self.source.plane(), "inputs lie in the source's planes");
        assert!(self.source.planes() == self.target.planes(), "channels are as many as maps");
    }
}

impl Kernel for Depthwise {
    fn run(&self, call: Call<'_, '_>) {
        let source = &call.sources[0][..self.source.len()];
        let target = Target::of(&mut call.target[..self.target.len()]);
        each_task(self.target.planes(), |plane| {
            let source = &source[plane * self.source.plane()..];
            let target = target.at(plane * self.target.plane() + self.target.origin());
            self.instructions.run(PlaneWork { depthwise: self, plane, source, target });
        });
    }
}

/// The channels of one plane.
struct PlaneWork<'a> {
    depthwise: &'a Depthwise,
    plane: usize,
    source: &'a [f32],
    target: *mut f32,
}

impl Work for PlaneWork<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let depthwise = self.depthwise;
        let count = depthwise.elements.len() * S::LANES;
        let (least, most, rest) = depthwise.function.parts();
        for y in 0..depthwise.target.size[0] {
            let source = depthwise.corner + y * depthwise.steps[0];
            let target = self.target.wrapping_add(y * depthwise.target.row());
            for Stretch { first, pixels } in &depthwise.stretches {
                let job = Dots {
                    elements: &depthwise.elements,
                    source: self.source[source + first * depthwise.steps[1]..].as_ptr(),
                    step: depthwise.steps[1],
                    weights: depthwise.weights.as_slice()[self.plane * count..].as_ptr(),
                    bias: depthwise.bias.as_slice()[self.plane * S::LANES..].as_ptr(),
                    target: target.wrapping_add(first * S::LANES),
                    least,
                    most,
                };
                macro_rules! choose {
                    ($($r:literal)*) => {
                        match pixels {
                            $($r => S::apart(Tile::<'_, $r> { job: &job }),)*
                            _ => unreachable!("a tile has at most {ROWS} places"),
                        }
                    };
                }
                // SAFETY: the caller's promise; inputs were found to lie in the source's planes,
                // and a task has its planes of the target.
                unsafe { choose!(1 2 3 4 5 6 7 8) }
            }
            if let Some(function) = rest {
                let places = &depthwise.places;
                let finish = Finish { function, target, places, planes: 1, plane: 0 };
                // SAFETY: as above.
                unsafe { S::apart(finish) }
            }
        }
    }
}

/// Vector `r` is `bias + source[r * step + element] * weights[element]`, between the bounds.
struct Dots<'a> {
    elements: &'a [usize],
    source: *const f32,
    step: usize,
    weights: *const f32,
    bias: *const f32,
    target: *mut f32,
    least: f32,
    most: f32,
}

struct Tile<'a, const R: usize> {
    job: &'a Dots<'a>,
}

impl<const R: usize> Work for Tile<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let job = self.job;
        let mut sums = [S::load(job.bias); R];
        let mut weights = job.weights;
        for element in job.elements {
            let weight = S::load(weights);
            let source = job.source.add(*element);
            for r in 0..R {
                sums[r] = S::multiply_add(S::load(source.add(r * job.step)), weight, sums[r]);
            }
            weights = weights.add(S::LANES);
        }
        let (least, most) = (S::splat(job.least), S::splat(job.most));
        for r in 0..R {
            S::store(job.target.add(r * S::LANES), S::min(most, S::max(least, sums[r])));
        }
    }
}
