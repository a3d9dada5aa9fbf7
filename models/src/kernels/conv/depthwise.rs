//! The gradient by weights where each output channel is made of one input channel.

#![expect(unsafe_code, reason = "tiles take addresses")]

use rayon::prelude::*;

use super::Geometry;
use super::plan::Plan;
use crate::kernels::Gradient;
use crate::kernels::simd::{Instructions, Simd, Work};
use crate::kernels::tile::{self, DOTS};

/// Puts or adds the gradient `[m][1][kh][kw]`: `x [c][pixels][n]`, `dy [m][places][n]`.
pub(super) fn gradient(
    geometry: &Geometry,
    instructions: Instructions,
    plan: &Plan,
    x: &[f32],
    dy: &[f32],
    into: &mut Gradient<'_>,
) {
    let [x_plane, dy_plane] = geometry.pixels().map(|pixels| pixels * plan.examples);
    let add = into.add;
    let rows = into.values.par_chunks_exact_mut(geometry.elements());
    rows.zip(dy.par_chunks_exact(dy_plane)).enumerate().for_each(|(map, (values, dy))| {
        let channel = map / geometry.maps;
        let x = &x[channel * x_plane..(channel + 1) * x_plane];
        Gradient { values: &mut *values, add }.clear_unless_adding();
        instructions.run(MapWork { plan, x, dy, values });
    });
}

/// One output channel.
struct MapWork<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    dy: &'a [f32],
    values: &'a mut [f32],
}

impl Work for MapWork<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for group in self.plan.regions.iter().flat_map(|region| &region.groups) {
            for taps in group.taps.chunks(DOTS) {
                // SAFETY: the plan's spots lie in planes of the input and the output.
                let sums = unsafe {
                    tile::dots::<S>(taps, &group.spots, self.x.as_ptr(), self.dy.as_ptr())
                };
                for (tap, sum) in taps.iter().zip(sums) {
                    self.values[tap.element] += sum;
                }
            }
        }
    }
}
