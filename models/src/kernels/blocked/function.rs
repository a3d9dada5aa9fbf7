//! Activations of what a tile has written.

#![expect(unsafe_code, reason = "a tile's targets are addresses")]

use super::Function;
use crate::graph::Activation;
use crate::kernels::activation::{clip, exp};
use crate::kernels::simd::{LANES_MAX, Simd, Work};

/// A function of stretches of numbers: for each place and plane, as many as there are lanes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) function: Function,
    pub(super) target: *mut f32,
    pub(super) places: &'a [usize],
    pub(super) planes: usize,
    pub(super) plane: usize,
}

impl Work for Finish<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Inlined always: only so it is compiled for the instructions.
        macro_rules! put {
            ($x:ident => $value:expr) => {
                // SAFETY: the caller's promise.
                unsafe {
                    self.put::<S>(
                        #[inline(always)]
                        |$x: f32| $value,
                    )
                }
            };
        }
        match self.function {
            Function::Bounds { least, most } => put!(x => clip(x, least, most)),
            Function::Each(activation) => match activation {
                Activation::Relu => put!(x => if x < 0.0 { 0.0 } else { x }),
                Activation::LeakyRelu { slope } => put!(x => if x < 0.0 { slope * x } else { x }),
                Activation::Clip { least, most } => put!(x => clip(x, least, most)),
                Activation::Sigmoid => put!(x => sigmoid(x)),
                Activation::Tanh => put!(x => tanh(x)),
                Activation::HardSigmoid { slope, level } => {
                    put!(x => clip(slope * x + level, 0.0, 1.0));
                }
                Activation::HardSwish => put!(x => x * clip(x / 6.0 + 0.5, 0.0, 1.0)),
                Activation::Neg => put!(x => -x),
            },
            Function::Gated(activation) => match activation {
                Activation::HardSigmoid { slope, level } => {
                    put!(x => x * clip(slope * x + level, 0.0, 1.0));
                }
                Activation::Sigmoid => put!(x => x * sigmoid(x)),
                Activation::Relu
                | Activation::LeakyRelu { .. }
                | Activation::Clip { .. }
                | Activation::Tanh
                | Activation::HardSwish
                | Activation::Neg => {
                    unreachable!("gates are sigmoids: no other is made into one")
                }
            },
        }
    }
}

impl Finish<'_> {
    #[inline(always)]
    unsafe fn put<S: Simd>(self, function: impl Fn(f32) -> f32) {
        for place in self.places {
            for plane in 0..self.planes {
                let at = self.target.wrapping_add(place + plane * self.plane);
                // SAFETY: the caller's promise; nobody else has the target's places.
                let values = unsafe { std::slice::from_raw_parts_mut(at, S::LANES) };
                let mut lanes = [0.0; LANES_MAX];
                for lane in 0..S::LANES {
                    lanes[lane] = function(values[lane]);
                }
                values.copy_from_slice(&lanes[..S::LANES]);
            }
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    (exp(-x) + 1.0).recip()
}

/// `tanh` of the standard library is a call for each number; what is lost near 0 is made up for by
/// a series there.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)));
    let far = 1.0 - 2.0 * (exp(2.0 * clip(x, -20.0, 20.0)) + 1.0).recip();
    if square < 0.01 { series } else { far }
}
