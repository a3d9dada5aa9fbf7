//! Plain Rust, for every processor; the compiler makes of it what the target has.

use super::{Simd, Work};

#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

const LANES: usize = 4;

impl Simd for Plain {
    type Vector = [f32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    // 32-bit ARM without NEON has 32 registers of one number each, at most.
    const VECTORS: usize = if cfg!(target_arch = "arm") { 1 } else { 2 };
    const TILES: [usize; 4] = [4, if Self::VECTORS < 2 { 0 } else { 4 }, 0, 0];

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) {
        unsafe { work.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Vector {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Vector {
        unsafe { from.cast::<Self::Vector>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::Vector) {
        unsafe { to.cast::<Self::Vector>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> Self::Vector {
        let mut values = [0.0; LANES];
        for (lane, value) in values.iter_mut().enumerate().take(lanes) {
            *value = unsafe { *from.add(lane) };
        }
        values
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, lanes: usize, value: Self::Vector) {
        for (lane, value) in value.into_iter().enumerate().take(lanes) {
            unsafe { *to.add(lane) = value };
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn min(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
}
