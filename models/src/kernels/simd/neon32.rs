//! NEON of 32-bit ARM, where the processor has it; tiles are in assembly, because Rust's
//! intrinsics for it are not stable. All else is [`Plain`].
//!
//! Multiplications and additions are rounded each, and denormals count as 0: NEON of 32-bit ARM
//! knows no other way.

use std::arch::global_asm;

use super::plain::Plain;
use super::{Simd, Work};
use crate::kernels::tile::{Outputs, Products, Run, Spot, Tap, put};

#[derive(Debug, Clone, Copy)]
pub(super) struct Neon32;

/// Whether this processor has NEON, and bytes in the order that the assembly takes for granted.
/// Source: Linux, `getauxval(3)`, `arch/arm/include/uapi/asm/hwcap.h`.
pub(super) fn is_here() -> bool {
    use std::ffi::c_ulong;
    const AT_HWCAP: c_ulong = 16;
    const HWCAP_NEON: c_ulong = 1 << 12;
    unsafe extern "C" {
        safe fn getauxval(kind: c_ulong) -> c_ulong;
    }
    cfg!(target_endian = "little") && getauxval(AT_HWCAP) & HWCAP_NEON != 0
}

const LANES: usize = Plain::LANES;
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// Bytes of so many `f32`s.
const fn bytes(len: usize) -> usize {
    len * size_of::<f32>()
}

/// [`Outputs`] as the assembly reads it; steps are in bytes.
#[repr(C)]
struct OutputsCall {
    taps: *const Tap,
    taps_end: *const Tap,
    sources: [*const f32; VECTORS],
    weights: *const f32,
    weights_step: usize,
    channels: usize,
    source_step: usize,
    channel_step: usize,
}

/// [`Products`] as the assembly reads it; steps are in bytes.
#[repr(C)]
struct ProductsCall {
    runs: *const Run,
    runs_end: *const Run,
    source: *const f32,
    source_plane: usize,
    columns: *const f32,
    columns_step: usize,
}

/// Sums of a tile, row by row.
type Sums = [f32; ROWS * VECTORS * LANES];

macro_rules! tiles {
    ($(($rows:literal, $vectors:literal) $outputs:ident $products:ident;)*) => {
        unsafe extern "C" {
            $(
                fn $outputs(call: *const OutputsCall, sums: *mut Sums);
                fn $products(call: *const ProductsCall, sums: *mut Sums);
            )*
        }

        unsafe fn outputs_sums<const R: usize, const N: usize>(call: &OutputsCall) -> Sums {
            let mut sums = [0.0; ROWS * VECTORS * LANES];
            // SAFETY: the caller's promise.
            match (R, N) {
                $(($rows, $vectors) => unsafe { $outputs(call, &raw mut sums) },)*
                _ => unreachable!("no tile has more rows or vectors"),
            }
            sums
        }

        unsafe fn products_sums<const R: usize, const N: usize>(call: &ProductsCall) -> Sums {
            let mut sums = [0.0; ROWS * VECTORS * LANES];
            // SAFETY: the caller's promise.
            match (R, N) {
                $(($rows, $vectors) => unsafe { $products(call, &raw mut sums) },)*
                _ => unreachable!("no tile has more rows or vectors"),
            }
            sums
        }
    };
}

tiles! {
    (4, 2) dunlin_outputs_4x2 dunlin_products_4x2;
    (4, 1) dunlin_outputs_4x1 dunlin_products_4x1;
    (3, 2) dunlin_outputs_3x2 dunlin_products_3x2;
    (3, 1) dunlin_outputs_3x1 dunlin_products_3x1;
    (2, 2) dunlin_outputs_2x2 dunlin_products_2x2;
    (2, 1) dunlin_outputs_2x1 dunlin_products_2x1;
    (1, 2) dunlin_outputs_1x2 dunlin_products_1x2;
    (1, 1) dunlin_outputs_1x1 dunlin_products_1x1;
}

/// The sums of one vector of a row.
fn vector<const N: usize>(sums: &Sums, row: usize, vector: usize) -> [f32; LANES] {
    std::array::from_fn(|lane| sums[(row * N + vector) * LANES + lane])
}

impl Simd for Neon32 {
    type Vector = <Plain as Simd>::Vector;
    const LANES: usize = LANES;
    const ROWS: usize = ROWS;
    const VECTORS: usize = VECTORS;
    const TILES: [usize; 4] = [ROWS, ROWS, 0, 0];

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) {
        // SAFETY: here and below, the caller's promise.
        unsafe { work.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Vector {
        unsafe { Plain::splat(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Vector {
        unsafe { Plain::load(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::Vector) {
        unsafe { Plain::store(to, value) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> Self::Vector {
        unsafe { Plain::load_part(from, lanes) }
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, lanes: usize, value: Self::Vector) {
        unsafe { Plain::store_part(to, lanes, value) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        unsafe { Plain::add(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        unsafe { Plain::max(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: Self::Vector, b: Self::Vector) -> Self::Vector {
        unsafe { Plain::min(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        unsafe { Plain::multiply_add(a, b, c) }
    }

    unsafe fn outputs<const R: usize, const N: usize>(job: &Outputs<'_>, spots: &[Spot]) -> bool {
        let taps = job.taps.as_ptr_range();
        let mut sources = [job.source; VECTORS];
        for (source, spot) in sources.iter_mut().zip(spots) {
            *source = source.wrapping_add(spot.from);
        }
        let call = OutputsCall {
            taps: taps.start,
            taps_end: taps.end,
            sources,
            weights: job.weights,
            weights_step: bytes(job.weights_step),
            channels: job.channels,
            source_step: bytes(job.source_plane),
            channel_step: bytes(job.channel_step),
        };
        // SAFETY: the call describes what the job does, whose addresses the caller promises.
        let sums = unsafe { outputs_sums::<R, N>(&call) };
        for (v, spot) in spots.iter().enumerate().take(N) {
            for r in 0..R {
                let target = job.target.wrapping_add(r * job.target_plane + spot.to);
                unsafe { put::<Self>(target, spot.lanes, vector::<N>(&sums, r, v), job.add) }
            }
        }
        true
    }

    unsafe fn products<const R: usize, const N: usize>(job: &Products<'_>) -> bool {
        let runs = job.runs.as_ptr_range();
        let call = ProductsCall {
            runs: runs.start,
            runs_end: runs.end,
            source: job.source,
            source_plane: bytes(job.source_plane),
            columns: job.columns,
            columns_step: bytes(job.columns_step),
        };
        // SAFETY: as above.
        let sums = unsafe { products_sums::<R, N>(&call) };
        for r in 0..R {
            for v in 0..N {
                let target = job.target.wrapping_add(r * job.target_step + v * LANES);
                let lanes = if v + 1 == N { job.last_lanes } else { LANES };
                unsafe { put::<Self>(target, lanes, vector::<N>(&sums, r, v), job.add) }
            }
        }
        true
    }
}

global_asm!(include_str!("neon32.s"), options(raw));
