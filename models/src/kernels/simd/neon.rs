//! NEON of 64-bit ARM, which every such processor has.

use std::arch::aarch64::{float32x4_t, vaddq_f32, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

use super::{Simd, Work};

#[derive(Debug, Clone, Copy)]
pub(super) struct Neon;

impl Simd for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 8;
    const VECTORS: usize = 3;

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
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
}
