//! NEON of 64-bit ARM, which every such processor has.

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vcombine_f32, vdup_n_f32, vdupq_n_f32, vfmaq_f32, vfmaq_laneq_f32,
    vld1_dup_f32, vld1_f32, vld1q_dup_f32, vld1q_f32, vmaxq_f32, vminq_f32, vst1q_f32,
};

use super::{Simd, Work};
use crate::kernels::tile::{Outputs, Products, Spot, put};

#[derive(Debug, Clone, Copy)]
pub(super) struct Neon;

impl Simd for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 8;
    const VECTORS: usize = 3;
    const TILES: [usize; 4] = [8, 7, 5, 4];

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) {
        unsafe { work.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: float32x4_t) {
        unsafe { vst1q_f32(to, value) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> float32x4_t {
        let mut values = [0.0_f32; 4];
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), lanes.min(4));
            vld1q_f32(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, lanes: usize, value: float32x4_t) {
        let mut values = [0.0_f32; 4];
        unsafe {
            vst1q_f32(values.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, lanes.min(4));
        }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    /// Weights of rows lie together: two vectors hold them, and a multiplication takes one lane.
    #[inline(always)]
    unsafe fn outputs<const R: usize, const N: usize>(job: &Outputs<'_>, spots: &[Spot]) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = outputs_sums::<R, N>(job, spots);
            for (v, spot) in spots.iter().enumerate().take(N) {
                for (r, sums) in sums.iter().enumerate() {
                    let target = job.target.add(r * job.target_plane + spot.to);
                    put::<Self>(target, spot.lanes, sums[v], job.add);
                }
            }
        }
        true
    }

    /// Numbers of a row lie together: a vector holds four of them, and a multiplication takes one
    /// lane.
    #[inline(always)]
    unsafe fn products<const R: usize, const N: usize>(job: &Products<'_>) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = products_sums::<R, N>(job);
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    let target = job.target.add(r * job.target_step + v * Self::LANES);
                    let lanes = if v + 1 == N { job.last_lanes } else { Self::LANES };
                    put::<Self>(target, lanes, *sum, job.add);
                }
            }
        }
        true
    }
}

#[inline(always)]
unsafe fn products_sums<const R: usize, const N: usize>(
    job: &Products<'_>,
) -> [[float32x4_t; N]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); N]; R];
        for run in job.runs {
            let mut columns = job.columns.add(run.row * job.columns_step);
            let mut source = job.source.add(run.from);
            for _ in 0..run.len / 4 {
                let mut inputs = [vdupq_n_f32(0.0); R];
                for r in 0..R {
                    inputs[r] = vld1q_f32(source.add(r * job.source_plane));
                }
                // Lanes are literals.
                macro_rules! row {
                    ($lane:literal) => {
                        for v in 0..N {
                            let factor = vld1q_f32(columns.add(v * 4));
                            for r in 0..R {
                                let sum = &mut sums[r][v];
                                *sum = vfmaq_laneq_f32::<$lane>(*sum, factor, inputs[r]);
                            }
                        }
                        columns = columns.add(job.columns_step);
                    };
                }
                row!(0);
                row!(1);
                row!(2);
                row!(3);
                source = source.add(4);
            }
            for _ in 0..run.len % 4 {
                for v in 0..N {
                    let factor = vld1q_f32(columns.add(v * 4));
                    for r in 0..R {
                        let input = vld1q_dup_f32(source.add(r * job.source_plane));
                        sums[r][v] = vfmaq_f32(sums[r][v], input, factor);
                    }
                }
                columns = columns.add(job.columns_step);
                source = source.add(1);
            }
        }
        // A copy: what is read with an index that is not known lies in memory.
        let mut done = [[vdupq_n_f32(0.0); N]; R];
        for r in 0..R {
            for v in 0..N {
                done[r][v] = sums[r][v];
            }
        }
        done
    }
}

/// Up to 4 weights, nothing behind them being read; what other lanes hold is not said.
#[inline(always)]
unsafe fn weights(from: *const f32, len: usize) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        match len {
            0 | 1 => vld1q_dup_f32(from),
            2 => vcombine_f32(vld1_f32(from), vdup_n_f32(0.0)),
            3 => vcombine_f32(vld1_f32(from), vld1_dup_f32(from.add(2))),
            _ => vld1q_f32(from),
        }
    }
}

#[inline(always)]
unsafe fn outputs_sums<const R: usize, const N: usize>(
    job: &Outputs<'_>,
    spots: &[Spot],
) -> [[float32x4_t; N]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); N]; R];
        let mut sources = [job.source; N];
        for (source, spot) in sources.iter_mut().zip(spots) {
            *source = source.add(spot.from);
        }
        for tap in job.taps {
            let mut from = job.weights.add(tap.element * job.weights_step);
            let mut at = tap.offset;
            for _ in 0..job.channels {
                let mut inputs = [vdupq_n_f32(0.0); N];
                for v in 0..N {
                    inputs[v] = vld1q_f32(sources[v].add(at));
                }
                let low = weights(from, R);
                let high = if R > 4 { weights(from.add(4), R - 4) } else { low };
                // Rows and lanes are literals, so that sums stay in registers.
                macro_rules! row {
                    ($row:literal, $weights:ident, $lane:literal) => {
                        if R > $row {
                            for v in 0..N {
                                let sum = &mut sums[$row][v];
                                *sum = vfmaq_laneq_f32::<$lane>(*sum, inputs[v], $weights);
                            }
                        }
                    };
                }
                row!(0, low, 0);
                row!(1, low, 1);
                row!(2, low, 2);
                row!(3, low, 3);
                row!(4, high, 0);
                row!(5, high, 1);
                row!(6, high, 2);
                row!(7, high, 3);
                from = from.add(job.channel_step);
                at += job.source_plane;
            }
        }
        // A copy: what is read with an index that is not known lies in memory.
        let mut done = [[vdupq_n_f32(0.0); N]; R];
        for r in 0..R {
            for v in 0..N {
                done[r][v] = sums[r][v];
            }
        }
        done
    }
}
