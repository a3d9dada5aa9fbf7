//! The register tile of a convolution with channels in the lanes: rows are places of the output,
//! columns its channels.

#![expect(unsafe_code, reason = "unchecked addresses in the innermost loops")]
#![expect(unsafe_op_in_unsafe_fn, reason = "all that a tile does rests on its caller's promise")]
#![expect(clippy::needless_range_loop, reason = "constant ranges are unrolled into registers")]

use crate::kernels::simd::{Simd, Work};
use crate::kernels::tile::{Products, Run, add_products};

/// Sums over runs and their inputs `p`: lane `l` of vector `v` of row `r` is
/// `bias[v][l] + source[r * step + from + p] * weights[row + p][v][l]`, with the residual, between
/// the bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums<'a> {
    pub(super) runs: &'a [Run],
    /// Of row 0.
    pub(super) source: *const f32,
    pub(super) step: usize,
    /// `[..][vectors][lanes]`
    pub(super) weights: *const f32,
    /// `[vectors][lanes]`; null where sums are added to what is there.
    pub(super) bias: *const f32,
    /// What is added last, lying as the target does; null where there is nothing.
    pub(super) residual: *const f32,
    pub(super) target: *mut f32,
    /// By row its place in the target.
    pub(super) places: *const usize,
    /// From one vector's places to the next one's.
    pub(super) plane: usize,
    pub(super) least: f32,
    pub(super) most: f32,
}

/// Computes `rows` rows of `vectors` vectors.
///
/// # Safety
/// There is such a tile by [`Simd::TILES`]. Every address that [`Sums`] describes can be read, and
/// targets are written by nobody else.
#[inline(always)]
pub(super) unsafe fn sums<S: Simd>(job: &Sums<'_>, rows: usize, vectors: usize) {
    macro_rules! choose {
        ($(($r:literal, $n:literal))*) => {
            match (rows, vectors) {
                $(($r, $n) if S::TILES[$n - 1] >= $r => S::apart(Tile::<'_, $r, $n> { job }),)*
                _ => unreachable!("rows and vectors are those of a tile"),
            }
        };
    }
    choose!((1, 1)(2, 1)(3, 1)(4, 1)(5, 1)(6, 1)(7, 1)(8, 1)(9, 1)(10, 1)(11, 1)(12, 1)(13, 1)(
        14, 1
    )(1, 2)(2, 2)(3, 2)(4, 2)(5, 2)(6, 2)(7, 2)(8, 2)(9, 2)(10, 2)(11, 2)(12, 2)(13, 2)(
        14, 2
    )(1, 3)(2, 3)(3, 3)(4, 3)(5, 3)(6, 3)(7, 3)(8, 3)(1, 4)(2, 4)(3, 4)(4, 4)(5, 4)(
        6, 4
    ));
}

struct Tile<'a, const R: usize, const N: usize> {
    job: &'a Sums<'a>,
}

impl<const R: usize, const N: usize> Work for Tile<'_, R, N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let job = self.job;
        let mut sums = start::<S, R, N>(job);
        let mut made = [[S::splat(0.0); N]; R];
        let width = N * S::LANES;
        let products = products(job, made.as_mut_ptr().cast(), width, S::LANES);
        if S::products::<R, N>(&products) {
            for r in 0..R {
                for v in 0..N {
                    sums[r][v] = S::add(sums[r][v], made[r][v]);
                }
            }
        } else {
            add_products::<S, R, N>(&products, width, &mut sums);
        }
        if !job.residual.is_null() {
            for r in 0..R {
                let residual = job.residual.add(*job.places.add(r));
                for v in 0..N {
                    sums[r][v] = S::add(sums[r][v], S::load(residual.add(v * job.plane)));
                }
            }
        }
        let (least, most) = (S::splat(job.least), S::splat(job.most));
        for r in 0..R {
            let target = job.target.add(*job.places.add(r));
            for v in 0..N {
                let value = S::min(most, S::max(least, sums[r][v]));
                S::store(target.add(v * job.plane), value);
            }
        }
    }
}

/// The same sums from 0 on, for code that the compiler did not make.
fn products<'a>(job: &Sums<'a>, target: *mut f32, width: usize, lanes: usize) -> Products<'a> {
    Products {
        runs: job.runs,
        source: job.source,
        source_plane: job.step,
        columns: job.weights,
        columns_step: width,
        target,
        target_step: width,
        last_lanes: lanes,
        add: false,
    }
}

/// The bias, or what is there.
#[inline(always)]
unsafe fn start<S: Simd, const R: usize, const N: usize>(job: &Sums<'_>) -> [[S::Vector; N]; R] {
    let mut sums = [[S::splat(0.0); N]; R];
    if job.bias.is_null() {
        for r in 0..R {
            let target = job.target.add(*job.places.add(r));
            for v in 0..N {
                sums[r][v] = S::load(target.add(v * job.plane));
            }
        }
    } else {
        for v in 0..N {
            let bias = S::load(job.bias.add(v * S::LANES));
            for r in 0..R {
                sums[r][v] = bias;
            }
        }
    }
    sums
}
