//! Register tiles: the inner loops of convolutions and products.
//!
//! A tile holds `R` rows of `N` vectors in registers while it goes through all that is summed.
//! One kind computes outputs, the other the gradient by weights; both multiply a number that is
//! spread over the lanes by vectors that lie in memory as they are used.

#![expect(unsafe_code, reason = "unchecked addresses in the innermost loops")]
#![expect(unsafe_op_in_unsafe_fn, reason = "all that a tile does rests on its caller's promise")]
#![expect(clippy::needless_range_loop, reason = "constant ranges are unrolled into registers")]

use super::simd::{LANES_MAX, Simd, Work};

/// Where one vector of outputs comes from and goes: offsets within a plane, in `f32`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Lanes that count.
    pub(super) lanes: usize,
}

/// One element of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Tap {
    /// Its number in the window.
    pub(super) element: usize,
    /// Where its input lies, from [`Spot::from`] on.
    pub(super) offset: usize,
}

/// Sums of weighted inputs: row `r` of spot `s` is the sum over `taps` and channels of
/// `weights[element][channel][r] * source[channel * source_plane + s.from + offset]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub(super) taps: &'a [Tap],
    pub(super) channels: usize,
    /// Of channel 0 at offset 0.
    pub(super) source: *const f32,
    pub(super) source_plane: usize,
    /// Of element 0 and channel 0; rows of a channel lie together.
    pub(super) weights: *const f32,
    /// `f32`s from one channel's weights to the next one's.
    pub(super) channel_step: usize,
    /// `f32`s from one element's weights to the next one's.
    pub(super) weights_step: usize,
    /// Of row 0 at offset 0.
    pub(super) target: *mut f32,
    pub(super) target_plane: usize,
    /// Whether sums are added to what is there.
    pub(super) add: bool,
}

/// Rows of a tile that there is code for, the largest first.
pub(super) const ROWS: [usize; 6] = [8, 6, 4, 3, 2, 1];

/// How many of `rows` the next tile takes.
pub(super) fn rows_of_tile(rows: usize, most: usize) -> usize {
    ROWS.into_iter().find(|r| *r <= rows.min(most)).unwrap_or(1)
}

/// Runs a tile with its numbers of rows and vectors as constants.
macro_rules! with_constants {
    ($simd:ident, $rows:expr, $vectors:expr, $tile:ident { $($field:ident),* }) => {
        with_constants!(@ $simd, $rows, $vectors, $tile { $($field),* },
            (8, 3) (8, 2) (8, 1) (6, 3) (6, 2) (6, 1) (4, 3) (4, 2) (4, 1)
            (3, 3) (3, 2) (3, 1) (2, 3) (2, 2) (2, 1) (1, 3) (1, 2) (1, 1))
    };
    (@ $simd:ident, $rows:expr, $vectors:expr, $tile:ident $fields:tt, $(($r:literal, $n:literal))*) => {
        match ($rows, $vectors) {
            $(($r, $n) if $simd::ROWS >= $r && $simd::VECTORS >= $n => {
                $simd::apart::<$tile<'_, $r, $n>>($tile $fields);
            })*
            _ => unreachable!("rows and vectors are those of a tile"),
        }
    };
}

/// Computes `rows` rows of all spots.
///
/// # Safety
/// `rows` is one that [`rows_of_tile`] gave for `S`. Every address that [`Outputs`] describes can
/// be read, [`Simd::LANES`] on from a spot's source whatever its lanes, and targets are written by
/// nobody else.
#[inline(always)]
pub(super) unsafe fn outputs<S: Simd>(job: &Outputs<'_>, rows: usize, spots: &[Spot]) {
    for spots in spots.chunks(S::VECTORS) {
        // SAFETY: the caller's promise.
        unsafe { with_constants!(S, rows, spots.len(), OutputsTile { job, spots }) }
    }
}

struct OutputsTile<'a, const R: usize, const N: usize> {
    job: &'a Outputs<'a>,
    spots: &'a [Spot],
}

impl<const R: usize, const N: usize> Work for OutputsTile<'_, R, N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if !S::outputs::<R, N>(self.job, self.spots) {
            outputs_tile::<S, R, N>(self.job, self.spots);
        }
    }
}

#[inline(always)]
unsafe fn outputs_tile<S: Simd, const R: usize, const N: usize>(job: &Outputs<'_>, spots: &[Spot]) {
    let mut sums = [[S::splat(0.0); N]; R];
    let mut sources = [job.source; N];
    for (source, spot) in sources.iter_mut().zip(spots) {
        *source = source.add(spot.from);
    }
    for tap in job.taps {
        let mut weights = job.weights.add(tap.element * job.weights_step);
        let mut at = tap.offset;
        for _ in 0..job.channels {
            let mut inputs = [S::splat(0.0); N];
            for v in 0..N {
                inputs[v] = S::load(sources[v].add(at));
            }
            for r in 0..R {
                let weight = S::splat(*weights.add(r));
                for v in 0..N {
                    sums[r][v] = S::multiply_add(weight, inputs[v], sums[r][v]);
                }
            }
            weights = weights.add(job.channel_step);
            at += job.source_plane;
        }
    }
    for (v, spot) in spots.iter().enumerate().take(N) {
        for (r, sums) in sums.iter().enumerate() {
            let target = job.target.add(r * job.target_plane + spot.to);
            put::<S>(target, spot.lanes, sums[v], job.add);
        }
    }
}

/// Writes or adds the first `lanes` of a vector.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(target: *mut f32, lanes: usize, value: S::Vector, add: bool) {
    if lanes == S::LANES {
        let value = if add { S::add(S::load(target), value) } else { value };
        S::store(target, value);
    } else {
        let value = if add { S::add(S::load_part(target, lanes), value) } else { value };
        S::store_part(target, lanes, value);
    }
}

/// A stretch of places that an element of the window sees without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Run {
    /// Offset of the input within its plane.
    pub(super) from: usize,
    /// First row of the transposed gradient.
    pub(super) row: usize,
    pub(super) len: usize,
}

/// Sums of products over places: row `r`, column `m` is the sum over runs and `p` of
/// `source[r * source_plane + from + p] * columns[(row + p) * columns_step + m]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Products<'a> {
    pub(super) runs: &'a [Run],
    /// Of row 0 at offset 0.
    pub(super) source: *const f32,
    pub(super) source_plane: usize,
    pub(super) columns: *const f32,
    pub(super) columns_step: usize,
    /// Of row 0.
    pub(super) target: *mut f32,
    pub(super) target_step: usize,
    /// Lanes of the last vector that are written.
    pub(super) last_lanes: usize,
    /// Whether sums are added to what is there.
    pub(super) add: bool,
}

/// Computes `rows` rows of `vectors` vectors.
///
/// # Safety
/// `rows` is one that [`rows_of_tile`] gave for `S` and `vectors` is 1 to [`Simd::VECTORS`]. Every
/// address that [`Products`] describes can be read, and targets are written by nobody else.
#[inline(always)]
pub(super) unsafe fn products<S: Simd>(job: &Products<'_>, rows: usize, vectors: usize) {
    // SAFETY: the caller's promise.
    unsafe { with_constants!(S, rows, vectors, ProductsTile { job }) }
}

struct ProductsTile<'a, const R: usize, const N: usize> {
    job: &'a Products<'a>,
}

impl<const R: usize, const N: usize> Work for ProductsTile<'_, R, N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if !S::products::<R, N>(self.job) {
            products_tile::<S, R, N>(self.job);
        }
    }
}

#[inline(always)]
unsafe fn products_tile<S: Simd, const R: usize, const N: usize>(job: &Products<'_>) {
    let mut sums = [[S::splat(0.0); N]; R];
    add_products::<S, R, N>(job, job.columns_step, &mut sums);
    for (r, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let target = job.target.add(r * job.target_step + v * S::LANES);
            let lanes = if v + 1 == N { job.last_lanes } else { S::LANES };
            put::<S>(target, lanes, *sum, job.add);
        }
    }
}

/// Adds a tile's products to sums; `columns_step` is the job's, a constant where the caller knows
/// it.
///
/// # Safety
/// Every address that is read can be.
#[inline(always)]
pub(super) unsafe fn add_products<S: Simd, const R: usize, const N: usize>(
    job: &Products<'_>,
    columns_step: usize,
    sums: &mut [[S::Vector; N]; R],
) {
    for run in job.runs {
        let mut columns = job.columns.add(run.row * columns_step);
        let mut source = job.source.add(run.from);
        for _ in 0..run.len {
            let mut factors = [S::splat(0.0); N];
            for v in 0..N {
                factors[v] = S::load(columns.add(v * S::LANES));
            }
            for r in 0..R {
                let input = S::splat(*source.add(r * job.source_plane));
                for v in 0..N {
                    sums[r][v] = S::multiply_add(input, factors[v], sums[r][v]);
                }
            }
            columns = columns.add(columns_step);
            source = source.add(1);
        }
    }
}

/// Most elements of the window that [`dots`] takes.
pub(super) const DOTS: usize = 9;

/// Sums over spots of inputs times gradients, for some taps; lanes are added up.
///
/// # Safety
/// Spots lie in both planes with all the lanes that count; there are 1 to [`DOTS`] taps.
#[inline(always)]
pub(super) unsafe fn dots<S: Simd>(
    taps: &[Tap],
    spots: &[Spot],
    source: *const f32,
    gradient: *const f32,
) -> [f32; DOTS] {
    let mut sums = [S::splat(0.0); DOTS];
    let mut offsets = [0; DOTS];
    for (offset, tap) in offsets.iter_mut().zip(taps) {
        *offset = tap.offset;
    }
    for spot in spots {
        if spot.lanes == S::LANES {
            let gradient = S::load(gradient.add(spot.to));
            for (sum, offset) in sums.iter_mut().zip(&offsets) {
                *sum = S::multiply_add(S::load(source.add(spot.from + offset)), gradient, *sum);
            }
        } else {
            let gradient = S::load_part(gradient.add(spot.to), spot.lanes);
            for (sum, offset) in sums.iter_mut().zip(&offsets) {
                let input = S::load_part(source.add(spot.from + offset), spot.lanes);
                *sum = S::multiply_add(input, gradient, *sum);
            }
        }
    }
    sums.map(|sum| {
        let mut lanes = [0.0; LANES_MAX];
        S::store(lanes.as_mut_ptr(), sum);
        lanes.iter().sum()
    })
}

#[cfg(test)]
mod tests;
