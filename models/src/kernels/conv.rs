//! Convolution.
//!
//! Examples lie in the lanes of vectors, so that a window of any stride, dilation and padding
//! reads whole vectors, and elements of the window that see padding cost nothing. Nothing is
//! unrolled: tiles read inputs where they lie in a block that fits the cache.

#![expect(unsafe_code, reason = "threads write parts of the same planes; tiles take addresses")]

use rayon::prelude::*;

use super::simd::{Instructions, LANES_MAX, Simd, Work};
use super::sums::sum;
use super::tile::{self, Outputs};
use super::{Backward, Forward, Kernel, Reads};
use crate::graph::Window;
use plan::{Axis, Extents, Plan, Region};

mod depthwise;
mod pack;
mod plan;
mod weights;

/// `f32`s of input that a thread works on at a time: they stay in a core's second cache.
const BLOCK: usize = 1 << 16;

/// Channels of a block for which rows are chosen: fewer make tiles short.
const CHANNELS: usize = 32;

/// 2-D convolution.
/// Shapes: `x [n, c, h, w]`, `w [m, c/group, kh, kw]`, `bias [m]` -> `[n, m, oh, ow]`.
/// Source: ONNX operator `Conv`, opset 22.
#[derive(Debug)]
pub(super) struct Conv {
    geometry: Geometry,
    instructions: Instructions,
    /// Plans of the last batch's size.
    forward: Option<Plan>,
    backward: Option<Plan>,
}

#[derive(Debug, Clone, Copy)]
struct Geometry {
    window: Window,
    /// `[h, w]`
    input: [usize; 2],
    output: [usize; 2],
    groups: usize,
    /// Input and output channels per group.
    channels: usize,
    maps: usize,
}

impl Geometry {
    /// Elements of the window.
    fn elements(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Whether output channels are made of one input channel, and are few.
    fn is_depthwise(&self) -> bool {
        self.channels == 1 && self.maps < LANES_MAX / 2
    }

    /// Weights of one output channel.
    fn depth(&self) -> usize {
        self.channels * self.elements()
    }

    fn weights(&self) -> usize {
        self.groups * self.maps * self.depth()
    }

    /// Pixels of one channel of the input, and of the output.
    fn pixels(&self) -> [usize; 2] {
        [self.input, self.output].map(|[h, w]| h * w)
    }

    /// Rows and columns of a pass: the forward one, or that to the input's gradient.
    fn axes(&self, backward: bool) -> [Axis; 2] {
        let (window, input, output) = (&self.window, self.input, self.output);
        [0, 1].map(|axis| {
            let make = if backward { Axis::gradients } else { Axis::outputs };
            make(window, axis, input[axis], output[axis])
        })
    }

    fn source(&self, backward: bool) -> [usize; 2] {
        if backward { self.output } else { self.input }
    }

    fn plan(&self, backward: bool, examples: usize, lanes: usize) -> Plan {
        let [rows, columns] = self.axes(backward);
        let channels = if backward { self.maps } else { self.channels };
        let extents = Extents {
            examples,
            width: self.source(backward)[1],
            kernel_width: self.window.kernel[1],
            lanes,
            source_max: BLOCK / channels.min(CHANNELS),
        };
        Plan::new(&rows, &columns, extents)
    }

    /// `f32`s of one thread's block in a pass.
    fn block(&self, backward: bool, examples: usize) -> usize {
        let [rows, _] = self.axes(backward);
        let least = rows.span_max() * self.source(backward)[1] * examples;
        BLOCK.max(plane_len(least)) + LANES_MAX
    }
}

/// Distance of channels in a block, so that they do not meet in the same lines of the cache.
fn plane_len(len: usize) -> usize {
    len.next_multiple_of(LANES_MAX) + LANES_MAX
}

impl Conv {
    pub(super) fn new(window: Window, groups: usize, input: &[usize], output: &[usize]) -> Self {
        let geometry = Geometry {
            window,
            input: [input[1], input[2]],
            output: [output[1], output[2]],
            groups,
            channels: input[0] / groups,
            maps: output[0] / groups,
        };
        let instructions = Instructions::best();
        Self { geometry, instructions, forward: None, backward: None }
    }
}

impl Kernel for Conv {
    fn scratch(&self, batch: usize, threads: usize) -> usize {
        let geometry = &self.geometry;
        let block = geometry.block(false, batch).max(geometry.block(true, batch));
        let passes = geometry.weights() + threads * block;
        if geometry.is_depthwise() {
            return passes;
        }
        passes.max(weights::scratch(geometry, self.instructions, threads))
    }

    fn reads(&self) -> Reads {
        Reads::INPUTS
    }

    fn forward(&mut self, call: Forward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let geometry = &self.geometry;
        let n = call.batch;
        if self.forward.as_ref().is_none_or(|plan| plan.examples != n) {
            self.forward = Some(geometry.plan(false, n, self.instructions.lanes()));
        }
        let Some(plan) = &self.forward else { return };
        let plane = geometry.pixels()[1] * n;
        let bias = call.inputs.get(2);
        if let Some(bias) = bias {
            let rows = call.output.par_chunks_exact_mut(plane);
            rows.zip(bias.par_iter()).for_each(|(row, bias)| row.fill(*bias));
        }
        let pass = Pass {
            plan,
            instructions: self.instructions,
            groups: geometry.groups,
            elements: geometry.elements(),
            channels: geometry.channels,
            rows: geometry.maps,
            source_plane: geometry.pixels()[0] * n,
            target_plane: plane,
            add: bias.is_some(),
        };
        let (packed, scratch) = call.scratch.split_at_mut(geometry.weights());
        pack::by_maps(geometry, weights, self.instructions, packed);
        pass.run(packed, x, call.output, scratch, geometry.block(false, n));
    }

    fn backward(&mut self, call: Backward<'_>) {
        let [x, weights, ..] = call.inputs else { return };
        let [x_gradient, parameter_gradients @ ..] = call.input_gradients else { return };
        let geometry = &self.geometry;
        let (n, dy) = (call.batch, call.output_gradient);
        if let Some(gradient) = x_gradient {
            if self.backward.as_ref().is_none_or(|plan| plan.examples != n) {
                self.backward = Some(geometry.plan(true, n, self.instructions.lanes()));
            }
            let Some(plan) = &self.backward else { return };
            let pass = Pass {
                plan,
                instructions: self.instructions,
                groups: geometry.groups,
                elements: geometry.elements(),
                channels: geometry.maps,
                rows: geometry.channels,
                source_plane: geometry.pixels()[1] * n,
                target_plane: geometry.pixels()[0] * n,
                add: gradient.add,
            };
            let (packed, scratch) = call.scratch.split_at_mut(geometry.weights());
            pack::by_channels(geometry, weights, self.instructions, packed);
            pass.run(packed, dy, gradient.values, scratch, geometry.block(true, n));
        }
        if let Some(Some(gradient)) = parameter_gradients.first_mut() {
            if geometry.is_depthwise() {
                if let Some(plan) = &self.forward {
                    depthwise::gradient(geometry, self.instructions, plan, x, dy, gradient);
                }
            } else {
                weights::gradient(geometry, self.instructions, n, x, dy, call.scratch, gradient);
            }
        }
        if let Some(Some(gradient)) = parameter_gradients.get_mut(1) {
            let rows: Vec<f32> = dy.par_chunks_exact(geometry.pixels()[1] * n).map(sum).collect();
            gradient.put(rows.into_iter());
        }
    }
}

/// One pass over all regions: the forward one, or that to the input's gradient.
struct Pass<'a> {
    plan: &'a Plan,
    instructions: Instructions,
    groups: usize,
    elements: usize,
    /// Channels per group of what is read.
    channels: usize,
    /// Channels per group of what is computed.
    rows: usize,
    source_plane: usize,
    target_plane: usize,
    add: bool,
}

/// Rows of one group that a tile computes.
#[derive(Debug, Clone, Copy)]
struct Panel {
    first: usize,
    rows: usize,
}

/// The panels of `rows`.
fn panels(rows: usize, most: usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut first = 0;
    while first < rows {
        let taken = tile::rows_of_tile(rows - first, most);
        panels.push(Panel { first, rows: taken });
        first += taken;
    }
    panels
}

impl Pass<'_> {
    fn run(
        &self,
        packed: &[f32],
        source: &[f32],
        target: &mut [f32],
        scratch: &mut [f32],
        block: usize,
    ) {
        let panels = panels(self.rows, self.instructions.rows());
        let threads = rayon::current_num_threads().min(scratch.len() / block);
        let regions = self.plan.regions.len();
        // Where there are fewer regions than threads, threads share a region's rows.
        let parts = threads.div_ceil(regions * self.groups).min(panels.len());
        let tasks = regions * self.groups * parts;
        let target = Target(target.as_mut_ptr());
        let blocks = scratch.par_chunks_exact_mut(block).take(threads).enumerate();
        blocks.for_each(|(thread, block)| {
            for task in (thread..tasks).step_by(threads) {
                let (part, rest) = (task % parts, task / parts);
                let (group, region) = (rest % self.groups, rest / self.groups);
                let panels =
                    &panels[panels.len() * part / parts..panels.len() * (part + 1) / parts];
                let weights = &packed[group * self.rows * self.channels * self.elements..];
                let source = &source[group * self.channels * self.source_plane..];
                let work = RegionWork {
                    pass: self,
                    region: &self.plan.regions[region],
                    panels,
                    weights,
                    source,
                    target: target.plane(group * self.rows, self.target_plane),
                    block,
                };
                self.instructions.run(work);
            }
        });
    }
}

/// Where threads write, each its own regions and panels.
#[derive(Debug, Clone, Copy)]
struct Target(*mut f32);

// SAFETY: tasks write places that no other task writes.
unsafe impl Sync for Target {}

impl Target {
    fn plane(&self, plane: usize, len: usize) -> *mut f32 {
        self.0.wrapping_add(plane * len)
    }
}

/// Some panels of one region.
struct RegionWork<'a> {
    pass: &'a Pass<'a>,
    region: &'a Region,
    panels: &'a [Panel],
    weights: &'a [f32],
    source: &'a [f32],
    target: *mut f32,
    block: &'a mut [f32],
}

impl Work for RegionWork<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { pass, region, .. } = self;
        let read = region.source.clone();
        let plane = plane_len(read.len());
        let channels_max = ((self.block.len() - LANES_MAX) / plane).clamp(1, pass.channels);
        for first in (0..pass.channels).step_by(channels_max) {
            let channels = channels_max.min(pass.channels - first);
            for channel in 0..channels {
                let from = (first + channel) * pass.source_plane;
                let from = &self.source[from + read.start..from + read.end];
                self.block[channel * plane..][..read.len()].copy_from_slice(from);
            }
            for panel in self.panels {
                let weights = panel.first * pass.channels * pass.elements + first * panel.rows;
                for group in &region.groups {
                    let job = Outputs {
                        taps: &group.taps,
                        channels,
                        // Spots count from the plane's start, the block from the region's.
                        source: self.block.as_ptr().wrapping_sub(read.start),
                        source_plane: plane,
                        weights: self.weights[weights..].as_ptr(),
                        channel_step: panel.rows,
                        weights_step: pass.channels * panel.rows,
                        target: self.target.wrapping_add(panel.first * pass.target_plane),
                        target_plane: pass.target_plane,
                        add: pass.add || first > 0,
                    };
                    // SAFETY: the plan's spots lie in the region, which the block holds with
                    // `LANES_MAX` behind it; the target's planes are as long as the plan says.
                    unsafe { tile::outputs::<S>(&job, panel.rows, &group.spots) }
                }
            }
        }
    }
}
