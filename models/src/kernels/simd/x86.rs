//! AVX2 with FMA, and AVX-512.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __mmask16, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps,
    _mm512_storeu_ps,
};

use super::{Simd, Work};

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512;

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

/// # Safety
/// The processor has AVX-512 F.
#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn avx512<W: Work>(work: W) {
    // SAFETY: the caller's promise.
    unsafe { work.run::<Avx512>() }
}

/// # Safety
/// The processor has AVX2 and FMA.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2<W: Work>(work: W) {
    // SAFETY: the caller's promise.
    unsafe { work.run::<Avx2>() }
}

fn lanes_mask(lanes: usize) -> __mmask16 {
    0xffff >> (16 - lanes.min(16))
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const VECTORS: usize = 3;
    const TILES: [usize; 4] = [14, 14, 8, 6];

    #[inline(always)]
    unsafe fn apart<W: Work>(work: W) {
        unsafe { avx512(work) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(lanes_mask(lanes), from) }
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, lanes: usize, value: __m512) {
        unsafe { _mm512_mask_storeu_ps(to, lanes_mask(lanes), value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
}

/// Words whose sign says which lanes a masked access touches: 8 that do, then 8 that do not.
static TOUCHED: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn words_mask(lanes: usize) -> __m256i {
    unsafe { _mm256_loadu_si256(TOUCHED.as_ptr().add(8 - lanes.min(8)).cast()) }
}

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const VECTORS: usize = 2;
    const TILES: [usize; 4] = [8, 6, 3, 2];

    #[inline(always)]
    unsafe fn apart<W: Work>(work: W) {
        unsafe { avx2(work) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(from, words_mask(lanes)) }
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, lanes: usize, value: __m256) {
        unsafe { _mm256_maskstore_ps(to, words_mask(lanes), value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
}
