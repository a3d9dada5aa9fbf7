//! The gradient of a convolution by its weights.

#![expect(unsafe_code, reason = "threads write parts of the same sums; tiles take addresses")]

use rayon::prelude::*;

use super::{Geometry, Target};
use crate::kernels::Gradient;
use crate::kernels::simd::{Instructions, LANES_MAX, Simd, Work};
use crate::kernels::tile::{self, Products, Run};

/// Places of the output at work at a time, all examples counted: their gradients stay in a core's
/// first cache.
const PLACES: usize = 256;

/// `f32`s of working memory.
pub(super) fn scratch(geometry: &Geometry, instructions: Instructions, threads: usize) -> usize {
    let columns = columns(geometry, instructions);
    geometry.groups * geometry.depth() * columns + threads * transposed_len(instructions)
}

/// `f32`s of a transposed chunk with room behind it.
fn transposed_len(instructions: Instructions) -> usize {
    // A chunk has at least one place of one example more than it should.
    2 * PLACES * instructions.vectors() * instructions.lanes() + LANES_MAX
}

/// Output channels of a group, filled up to whole vectors.
fn columns(geometry: &Geometry, instructions: Instructions) -> usize {
    geometry.maps.next_multiple_of(instructions.lanes())
}

/// Puts or adds the gradient: `x [c][pixels][n]`, `dy [m][places][n]`.
pub(super) fn gradient(
    geometry: &Geometry,
    instructions: Instructions,
    examples: usize,
    x: &[f32],
    dy: &[f32],
    scratch: &mut [f32],
    into: &mut Gradient<'_>,
) {
    let (depth, columns) = (geometry.depth(), columns(geometry, instructions));
    let (totals, scratch) = scratch.split_at_mut(geometry.groups * depth * columns);
    totals.par_chunks_mut(1 << 14).for_each(|totals| totals.fill(0.0));
    let threads = rayon::current_num_threads().min(scratch.len() / transposed_len(instructions));
    let tasks = tasks(geometry, instructions, threads);
    let target = Target(totals.as_mut_ptr());
    let buffers = scratch.par_chunks_exact_mut(transposed_len(instructions)).take(threads);
    buffers.enumerate().for_each(|(thread, transposed)| {
        let mut runs = vec![Vec::new(); geometry.elements()];
        for task in tasks.iter().skip(thread).step_by(threads) {
            instructions.run(TaskWork {
                geometry,
                task,
                examples,
                x,
                dy,
                totals: target.plane(task.group * depth, columns),
                columns,
                transposed,
                runs: &mut runs,
            });
        }
    });
    spread(geometry, columns, totals, into);
}

/// Some columns and some channels of one group's gradient.
#[derive(Debug)]
struct Task {
    group: usize,
    /// First output channel, and vectors of them.
    map: usize,
    vectors: usize,
    channels: std::ops::Range<usize>,
}

fn tasks(geometry: &Geometry, instructions: Instructions, threads: usize) -> Vec<Task> {
    let lanes = instructions.lanes();
    let vectors = geometry.maps.div_ceil(lanes);
    let panels = vectors.div_ceil(instructions.vectors());
    // Each task transposes for itself: no more of them than there are threads.
    let parts = threads.div_ceil(panels * geometry.groups).min(geometry.channels);
    let mut tasks = Vec::new();
    for group in 0..geometry.groups {
        for panel in 0..panels {
            let [first, end] = [panel, panel + 1].map(|panel| vectors * panel / panels);
            for part in 0..parts {
                let [from, to] = [part, part + 1].map(|part| geometry.channels * part / parts);
                let (map, vectors) = (first * lanes, end - first);
                tasks.push(Task { group, map, vectors, channels: from..to });
            }
        }
    }
    tasks
}

struct TaskWork<'a> {
    geometry: &'a Geometry,
    task: &'a Task,
    examples: usize,
    x: &'a [f32],
    dy: &'a [f32],
    /// `[element][channel][columns]` of the task's group.
    totals: *mut f32,
    columns: usize,
    transposed: &'a mut [f32],
    /// By element of the window.
    runs: &'a mut [Vec<Run>],
}

impl Work for TaskWork<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let [height, width] = self.geometry.output;
        let row = width * self.examples;
        // Whole rows where they are short, parts of a row where they are long; a part of a row
        // begins with any example of any column.
        let rows = (PLACES / row).max(1);
        for y in (0..height).step_by(rows) {
            let rows = rows.min(height - y);
            let len = rows * row;
            let parts = len.div_ceil(PLACES);
            for part in 0..parts {
                let [from, to] = [part, part + 1].map(|part| len * part / parts);
                let from = y * row + from;
                let to = y * row + to;
                // SAFETY: the caller's promise.
                unsafe { self.chunk::<S>(from, to) }
            }
        }
    }
}

impl TaskWork<'_> {
    /// Adds what the places `from..to` of each plane give.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(&mut self, from: usize, to: usize) {
        let Self { geometry, task, .. } = *self;
        self.transpose::<S>(from, to);
        for (element, into) in self.runs.iter_mut().enumerate() {
            runs(geometry, self.examples, element, from, to, into);
        }
        let x_plane = geometry.pixels()[0] * self.examples;
        let first = task.group * geometry.channels;
        let mut channel = task.channels.start;
        while channel < task.channels.end {
            let rows = tile::rows_of_tile(task.channels.end - channel, S::ROWS.min(4));
            for element in 0..geometry.elements() {
                let job = Products {
                    runs: &self.runs[element],
                    source: self.x[(first + channel) * x_plane..].as_ptr(),
                    source_plane: x_plane,
                    columns: self.transposed.as_ptr(),
                    columns_step: task.vectors * S::LANES,
                    target: self.totals.wrapping_add(
                        (element * geometry.channels + channel) * self.columns + task.map,
                    ),
                    target_step: self.columns,
                    last_lanes: S::LANES,
                    add: true,
                };
                // SAFETY: runs lie inside of planes and of the transposed chunk; totals of this
                // task's columns and channels are its alone.
                unsafe { tile::products::<S>(&job, rows, task.vectors) }
            }
            channel += rows;
        }
    }

    /// Puts the gradients of the places in rows, one for each place with the task's columns.
    #[inline(always)]
    fn transpose<S: Simd>(&mut self, from: usize, to: usize) {
        let (geometry, task) = (self.geometry, self.task);
        let plane = geometry.pixels()[1] * self.examples;
        let step = task.vectors * S::LANES;
        let maps = step.min(geometry.maps - task.map);
        let first = task.group * geometry.maps + task.map;
        if maps < step {
            self.transposed[..(to - from) * step].fill(0.0);
        }
        for map in 0..maps {
            let row = &self.dy[(first + map) * plane + from..(first + map) * plane + to];
            let rows = self.transposed[map..].iter_mut().step_by(step);
            rows.zip(row).for_each(|(into, value)| *into = *value);
        }
    }
}

/// The runs of places `from..to` for which an element of the window sees the input.
fn runs(
    geometry: &Geometry,
    examples: usize,
    element: usize,
    from: usize,
    to: usize,
    runs: &mut Vec<Run>,
) {
    runs.clear();
    let Geometry { window, input, output, .. } = geometry;
    let row = output[1] * examples;
    let at = [element / window.kernel[1], element % window.kernel[1]];
    // Places along an axis from which the element sees the input.
    let seen = [0, 1].map(|axis| {
        let offset = at[axis] * window.dilation[axis];
        let stride = window.stride[axis];
        let first = window.begin[axis].saturating_sub(offset).div_ceil(stride);
        let end = (input[axis] + window.begin[axis]).saturating_sub(offset).div_ceil(stride);
        (first, end.min(output[axis]))
    });
    let source = |axis: usize, place: usize| {
        place * window.stride[axis] + at[axis] * window.dilation[axis] - window.begin[axis]
    };
    for y in from / row..to.div_ceil(row) {
        if y < seen[0].0 || y >= seen[0].1 {
            continue;
        }
        let first = from.max(y * row + seen[1].0 * examples);
        let end = to.min(y * row + seen[1].1 * examples);
        let base = source(0, y) * input[1];
        let mut place = first;
        while place < end {
            let (column, example) = ((place - y * row) / examples, (place - y * row) % examples);
            // With stride 1 the next column's inputs follow.
            let len = if window.stride[1] == 1 { end - place } else { examples - example };
            let len = len.min(end - place);
            let pixel = base + source(1, column);
            runs.push(Run { from: pixel * examples + example, row: place - from, len });
            place += len;
        }
    }
}

/// Rows of weights that are put side by side: as many as lie in one line of the cache.
const MAPS: usize = 16;

/// Puts or adds totals `[group][element][channel][columns]` to weights `[group][map][channel]
/// [element]`.
fn spread(geometry: &Geometry, columns: usize, totals: &[f32], into: &mut Gradient<'_>) {
    let (elements, channels, depth) = (geometry.elements(), geometry.channels, geometry.depth());
    let add = into.add;
    let maps = geometry.maps;
    into.values.par_chunks_exact_mut(maps * depth).enumerate().for_each(|(group, values)| {
        let totals = &totals[group * depth * columns..];
        values.par_chunks_mut(MAPS * depth).enumerate().for_each(|(block, values)| {
            for channel in 0..channels {
                for element in 0..elements {
                    let from = (element * channels + channel) * columns + block * MAPS;
                    let into = values[channel * elements + element..].iter_mut().step_by(depth);
                    let put = |(into, total): (&mut f32, &f32)| {
                        *into = if add { *into + total } else { *total };
                    };
                    into.zip(&totals[from..]).for_each(put);
                }
            }
        });
    });
}
