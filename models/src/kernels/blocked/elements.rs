//! Operators on one element at a time.

#![expect(unsafe_code, reason = "activations take addresses")]

use super::function::Finish;
use super::{Call, Function, Kernel, Layout, Target, each_task};
use crate::graph::Arithmetic;
use crate::kernels::simd::{Instructions, LANES_MAX, Simd, Work};

/// An operator on two pictures, and the function that follows it.
/// Shapes: `a`, `b`: `[c, h, w]`, or `[c, 1, 1]`: one number for each channel.
/// Source: ONNX operators `Add`, `Sub`, `Mul` and `Div`, opset 14.
#[derive(Debug)]
pub(crate) struct Elements {
    pub(crate) operator: Arithmetic,
    pub(crate) sources: [Layout; 2],
    pub(crate) target: Layout,
    pub(crate) function: Function,
}

/// A function of each element.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) source: Layout,
    pub(crate) target: Layout,
    pub(crate) function: Function,
}

impl Kernel for Elements {
    fn run(&self, call: Call<'_, '_>) {
        let [a, b] = self.sources;
        let rows = Rows {
            sources: [(a, call.sources[0]), (b, call.sources[1])],
            target: self.target,
            function: self.function,
        };
        match self.operator {
            Arithmetic::Add => rows.run(call.target, |a, b| a + b),
            Arithmetic::Sub => rows.run(call.target, |a, b| a - b),
            Arithmetic::Mul => rows.run(call.target, |a, b| a * b),
            Arithmetic::Div => rows.run(call.target, |a, b| a / b),
        }
    }
}

impl Kernel for Map {
    fn run(&self, call: Call<'_, '_>) {
        let source = (self.source, call.sources[0]);
        let (target, function) = (self.target, self.function);
        Rows { sources: [source; 2], target, function }.run(call.target, |a, _| a);
    }
}

/// Rows of two operands.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    sources: [(Layout, &'a [f32]); 2],
    target: Layout,
    function: Function,
}

impl Rows<'_> {
    fn run(self, target: &mut [f32], operator: impl Fn(f32, f32) -> f32 + Copy + Send + Sync) {
        let instructions = Instructions::best();
        let places: Vec<usize> = (0..self.target.size[1]).map(|x| x * self.target.lanes).collect();
        let target = Target::of(&mut target[..self.target.len()]);
        each_task(self.target.planes(), |plane| {
            instructions.run(Plane { rows: self, operator, plane, target, places: &places });
        });
    }
}

struct Plane<'a, F> {
    rows: Rows<'a>,
    operator: F,
    plane: usize,
    target: Target,
    places: &'a [usize],
}

impl<F: Fn(f32, f32) -> f32> Work for Plane<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rows { sources, target, function } = self.rows;
        let [height, width] = target.size;
        for y in 0..height {
            let [(a, a_step), (b, b_step)] = sources.map(|(layout, values)| {
                let row = if layout.size[0] == height { y } else { 0 };
                let step = if layout.size[1] == width { S::LANES } else { 0 };
                let from = self.plane * layout.plane() + layout.origin() + row * layout.row();
                (&values[from..][..step * (width - 1) + S::LANES], step)
            });
            let at = self.plane * target.plane() + target.origin() + y * target.row();
            let to = self.target.at(at);
            // SAFETY: a task has its plane of the target, which is as long as its layout says.
            let row = unsafe { std::slice::from_raw_parts_mut(to, width * S::LANES) };
            for (x, into) in row.chunks_exact_mut(S::LANES).enumerate() {
                let (a, b) = (&a[x * a_step..], &b[x * b_step..]);
                let mut lanes = [0.0; LANES_MAX];
                for lane in 0..S::LANES {
                    lanes[lane] = (self.operator)(a[lane], b[lane]);
                }
                into.copy_from_slice(&lanes[..S::LANES]);
            }
            if function != Function::NONE {
                let places = self.places;
                let finish = Finish { function, target: to, places, planes: 1, plane: 0 };
                // SAFETY: the row's places; the caller's promise.
                unsafe { S::apart(finish) }
            }
        }
    }
}
