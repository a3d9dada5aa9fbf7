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
    operator: Arithmetic,
    rows: Rows,
}

/// A function of each element.
#[derive(Debug)]
pub(crate) struct Map(Rows);

impl Elements {
    pub(crate) fn new(
        operator: Arithmetic,
        sources: [Layout; 2],
        target: Layout,
        function: Function,
    ) -> Self {
        Self { operator, rows: Rows::new(sources, target, function) }
    }
}

impl Map {
    pub(crate) fn new(source: Layout, target: Layout, function: Function) -> Self {
        Self(Rows::new([source; 2], target, function))
    }
}

impl Kernel for Elements {
    fn run(&self, call: Call<'_, '_>) {
        let sources = [call.sources[0], call.sources[1]];
        macro_rules! run {
            ($a:ident, $b:ident => $value:expr) => {
                self.rows.run(
                    sources,
                    call.target,
                    #[inline(always)]
                    |$a, $b| $value,
                )
            };
        }
        match self.operator {
            Arithmetic::Add => run!(a, b => a + b),
            Arithmetic::Sub => run!(a, b => a - b),
            Arithmetic::Mul => run!(a, b => a * b),
            Arithmetic::Div => run!(a, b => a / b),
        }
    }
}

impl Kernel for Map {
    fn run(&self, call: Call<'_, '_>) {
        let sources = [call.sources[0]; 2];
        self.0.run(
            sources,
            call.target,
            #[inline(always)]
            |a, _| a,
        );
    }
}

/// Rows of two operands.
#[derive(Debug)]
struct Rows {
    instructions: Instructions,
    sources: [Layout; 2],
    target: Layout,
    function: Function,
    /// Of pixels in a row.
    places: Vec<usize>,
}

impl Rows {
    fn new(sources: [Layout; 2], target: Layout, function: Function) -> Self {
        let places = (0..target.size[1]).map(|x| x * target.lanes).collect();
        Self { instructions: Instructions::best(), sources, target, function, places }
    }

    fn run(
        &self,
        sources: [&[f32]; 2],
        target: &mut [f32],
        operator: impl Fn(f32, f32) -> f32 + Copy + Send + Sync,
    ) {
        let target = Target::of(&mut target[..self.target.len()]);
        each_task(self.target.planes(), |plane| {
            self.instructions.run(PlaneWork { rows: self, sources, operator, plane, target });
        });
    }
}

struct PlaneWork<'a, F> {
    rows: &'a Rows,
    sources: [&'a [f32]; 2],
    operator: F,
    plane: usize,
    target: Target,
}

impl<F: Fn(f32, f32) -> f32> Work for PlaneWork<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rows { sources, target, function, places, .. } = self.rows;
        let sources = [(sources[0], self.sources[0]), (sources[1], self.sources[1])];
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
            if *function != Function::NONE {
                let finish =
                    Finish { function: *function, target: to, places, planes: 1, plane: 0 };
                // SAFETY: the row's places; the caller's promise.
                unsafe { S::apart(finish) }
            }
        }
    }
}
