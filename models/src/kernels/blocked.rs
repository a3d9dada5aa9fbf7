//! Kernels of inference: one example, its channels in the lanes of vectors.
//!
//! Where training has many examples to fill the lanes with, an answer often has one. So a picture
//! lies in memory as `[c / lanes][h][w][lanes]` with a border of zeros around each plane, as wide
//! as the convolutions that read it need: no window has to look where the picture ends. Weights
//! are put in the order in which tiles read them when a kernel is made.

use rayon::prelude::*;

use super::simd::Instructions;
use crate::graph::Activation;

pub(crate) mod channels;
pub(crate) mod conv;
pub(crate) mod convert;
pub(crate) mod depthwise;
pub(crate) mod elements;
mod function;
pub(crate) mod memory;
pub(crate) mod pool;
mod rows;
mod tile;

/// How a picture `[c, h, w]` lies in memory; with one lane and no border as a host tensor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) channels: usize,
    /// `[h, w]`
    pub(crate) size: [usize; 2],
    /// Rows and columns of zeros before the picture, and behind it.
    pub(crate) begin: [usize; 2],
    pub(crate) end: [usize; 2],
    pub(crate) lanes: usize,
}

impl Layout {
    /// Without a border.
    pub(crate) fn new(channels: usize, size: [usize; 2], lanes: usize) -> Self {
        Self { channels, size, begin: [0; 2], end: [0; 2], lanes }
    }

    /// A row of numbers as a host tensor has them.
    pub(crate) fn flat(len: usize) -> Self {
        Self::new(len, [1; 2], 1)
    }

    /// Planes, each of as many channels as there are lanes.
    pub(crate) fn planes(&self) -> usize {
        self.channels.div_ceil(self.lanes)
    }

    /// `f32`s from one row to the next.
    pub(crate) fn row(&self) -> usize {
        (self.begin[1] + self.size[1] + self.end[1]) * self.lanes
    }

    /// `f32`s from one plane to the next.
    pub(crate) fn plane(&self) -> usize {
        (self.begin[0] + self.size[0] + self.end[0]) * self.row()
    }

    /// `f32`s of all planes.
    pub(crate) fn len(&self) -> usize {
        self.planes() * self.plane()
    }

    /// Where the first pixel lies in its plane.
    pub(crate) fn origin(&self) -> usize {
        self.begin[0] * self.row() + self.begin[1] * self.lanes
    }

    pub(crate) fn has_border(&self) -> bool {
        self.begin != [0; 2] || self.end != [0; 2]
    }

    /// Fills the border with zeros.
    pub(crate) fn clear_border(&self, values: &mut [f32]) {
        let (row, width) = (self.row(), self.size[1] * self.lanes);
        let (origin, len) = (self.origin(), self.plane());
        for plane in values.chunks_exact_mut(len) {
            plane[..origin].fill(0.0);
            for y in 0..self.size[0] {
                // Behind a row of the picture comes its end and the beginning of the next one.
                let behind = origin + y * row + width;
                plane[behind..len.min(behind + row - width)].fill(0.0);
            }
            plane[(self.begin[0] + self.size[0]) * row..].fill(0.0);
        }
    }
}

/// What a run gives a kernel.
#[derive(Debug)]
pub(crate) struct Call<'a, 's> {
    pub(crate) sources: &'a [&'s [f32]],
    pub(crate) target: &'a mut [f32],
    /// At least [`Kernel::scratch`] floats of any content.
    pub(crate) scratch: &'a mut [f32],
}

/// One step of a program: layouts and weights are those it was made with.
pub(crate) trait Kernel: std::fmt::Debug + Send + Sync {
    /// `f32`s of working memory.
    fn scratch(&self) -> usize {
        0
    }

    /// Computes the target, but for its border.
    fn run(&self, call: Call<'_, '_>);
}

/// What is done with each number that was computed, as it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    /// `min(max(x, least), most)`
    Bounds { least: f32, most: f32 },
    /// `f(x)`
    Each(Activation),
    /// `x f(x)`
    Gated(Activation),
}

impl Function {
    /// `x`
    pub(crate) const NONE: Self = Self::Bounds { least: f32::NEG_INFINITY, most: f32::INFINITY };

    /// An activation as it is done fastest.
    pub(crate) fn of(activation: Activation) -> Self {
        match activation {
            Activation::Relu => Self::Bounds { least: 0.0, most: f32::INFINITY },
            Activation::Clip { least, most } => Self::Bounds { least, most },
            Activation::LeakyRelu { .. }
            | Activation::Sigmoid
            | Activation::Tanh
            | Activation::HardSigmoid { .. }
            | Activation::HardSwish
            | Activation::Neg => Self::Each(activation),
        }
    }

    /// The bounds within which numbers are written, and what is left to do then.
    fn parts(self) -> (f32, f32, Option<Self>) {
        match self {
            Self::Bounds { least, most } => (least, most, None),
            Self::Each(_) | Self::Gated(_) => (f32::NEG_INFINITY, f32::INFINITY, Some(self)),
        }
    }
}

/// Lanes of the vectors that kernels are made for.
pub(crate) fn lanes() -> usize {
    Instructions::best().lanes()
}

/// Threads that a kernel may use: those of the pool that it is called in, if it is called in one.
fn threads() -> usize {
    rayon::current_thread_index().map_or(1, |_| rayon::current_num_threads())
}

/// Does tasks, side by side in a pool of several threads.
fn each_task(tasks: usize, task: impl Fn(usize) + Send + Sync) {
    if threads() > 1 && tasks > 1 {
        (0..tasks).into_par_iter().for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// Where tasks write, each its own places.
#[derive(Debug, Clone, Copy)]
struct Target(*mut f32);

#[expect(unsafe_code, reason = "tasks write parts of one target")]
// SAFETY: tasks write places that no other task writes.
unsafe impl Sync for Target {}

impl Target {
    fn of(target: &mut [f32]) -> Self {
        Self(target.as_mut_ptr())
    }

    fn at(&self, at: usize) -> *mut f32 {
        self.0.wrapping_add(at)
    }
}
