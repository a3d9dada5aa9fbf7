//! Tiles of every size beside sums in `f64`, with every set of instructions that the processor has.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::kernels::simd::Instructions;

/// Numbers of -1 to 1.
fn numbers(random: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| f32::from(random.next_u32().to_le_bytes()[0]) / 127.5 - 1.0).collect()
}

/// Calls something with every set of instructions and every size of a tile.
fn for_every_tile(mut check: impl FnMut(Instructions, usize, usize)) {
    for instructions in Instructions::available() {
        for rows in ROWS.into_iter().filter(|rows| *rows <= instructions.rows()) {
            for vectors in 1..=instructions.vectors() {
                check(instructions, rows, vectors);
            }
        }
    }
}

/// Holds a plane `[rows][len]` that was full of ones to sums by row and place, `None` where nothing
/// is to be written.
fn close(plane: &[f32], len: usize, what: &str, sum: impl Fn(usize, usize) -> Option<f64>) {
    for (at, found) in plane.iter().enumerate() {
        let expected = sum(at / len, at % len).unwrap_or(1.0);
        assert!((f64::from(*found) - expected).abs() < 1e-4, "{what} {at}: {found}, {expected}");
    }
}

struct OutputsOf<'a>(&'a Outputs<'a>, usize, &'a [Spot]);

impl Work for OutputsOf<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        outputs::<S>(self.0, self.1, self.2);
    }
}

#[test]
fn outputs_of_every_size() {
    const PLANE: usize = 160;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for_every_tile(|instructions, rows, vectors| {
        let lanes = instructions.lanes();
        for (channels, elements) in [(1, 9), (2, 1), (3, 2), (6, 3), (7, 1)] {
            for (add, last) in [(false, lanes), (true, lanes), (false, 1), (true, lanes - 1)] {
                let taps: Vec<Tap> =
                    (0..elements).map(|element| Tap { element, offset: 5 * element }).collect();
                let spot = |v: usize| Spot {
                    from: v * (lanes + 3),
                    to: v * (lanes + 1),
                    lanes: if v + 1 == vectors { last } else { lanes },
                };
                let spots: Vec<Spot> = (0..vectors).map(spot).collect();
                let source = numbers(&mut random, channels * PLANE);
                let weights = numbers(&mut random, elements * channels * rows);
                let mut target = vec![1.0; rows * PLANE];
                let job = Outputs {
                    taps: &taps,
                    channels,
                    source: source.as_ptr(),
                    source_plane: PLANE,
                    weights: weights.as_ptr(),
                    channel_step: rows,
                    weights_step: channels * rows,
                    target: target.as_mut_ptr(),
                    target_plane: PLANE,
                    add,
                };
                instructions.run(OutputsOf(&job, rows, &spots));
                let what = format!("{instructions:?} {rows}x{vectors}, {job:?}");
                close(&target, PLANE, &what, |row, place| {
                    let written = |spot: &&Spot| (spot.to..spot.to + spot.lanes).contains(&place);
                    let spot = spots.iter().find(written)?;
                    let mut sum = if add { 1.0 } else { 0.0 };
                    for tap in &taps {
                        for channel in 0..channels {
                            let weight = weights[(tap.element * channels + channel) * rows + row];
                            let from = spot.from + place - spot.to + tap.offset;
                            sum += f64::from(weight) * f64::from(source[channel * PLANE + from]);
                        }
                    }
                    Some(sum)
                });
            }
        }
    });
}

struct ProductsOf<'a>(&'a Products<'a>, usize, usize);

impl Work for ProductsOf<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        products::<S>(self.0, self.1, self.2);
    }
}

#[test]
fn products_of_every_size() {
    const PLANE: usize = 60;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let run = |from: usize, row: usize, len: usize| Run { from, row, len };
    let runs = [run(3, 0, 11), run(20, 11, 1), run(21, 13, 4), run(40, 17, 6)];
    for_every_tile(|instructions, rows, vectors| {
        let lanes = instructions.lanes();
        let columns = vectors * lanes;
        for (add, last_lanes) in [(false, lanes), (true, lanes), (false, 1), (true, lanes - 1)] {
            for runs in [&runs[..], &runs[..1], &runs[1..2], &[]] {
                let source = numbers(&mut random, rows * PLANE);
                let factors = numbers(&mut random, 23 * (columns + 2));
                let mut target = vec![1.0; rows * PLANE];
                let job = Products {
                    runs,
                    source: source.as_ptr(),
                    source_plane: PLANE,
                    columns: factors.as_ptr(),
                    columns_step: columns + 2,
                    target: target.as_mut_ptr(),
                    target_step: PLANE,
                    last_lanes,
                    add,
                };
                instructions.run(ProductsOf(&job, rows, vectors));
                let what = format!("{instructions:?} {rows}x{vectors}, {job:?}");
                close(&target, PLANE, &what, |row, column| {
                    if column >= columns - lanes + last_lanes {
                        return None;
                    }
                    let mut sum = if add { 1.0 } else { 0.0 };
                    for run in runs {
                        for place in 0..run.len {
                            let factor = factors[(run.row + place) * (columns + 2) + column];
                            let input = source[row * PLANE + run.from + place];
                            sum += f64::from(factor) * f64::from(input);
                        }
                    }
                    Some(sum)
                });
            }
        }
    });
}
