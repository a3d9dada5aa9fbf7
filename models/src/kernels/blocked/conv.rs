//! Convolution and products with weights.

#![expect(unsafe_code, reason = "tasks write parts of one target; tiles take addresses")]

use super::function::Finish;
use super::memory::Memory;
use super::rows::{Stretch, best, parts};
use super::tile::{self, Sums};
use super::{Call, Function, Kernel, Layout, Target, each_task, threads};
use crate::graph::Window;
use crate::kernels::simd::{Instructions, Simd, Work};
use crate::kernels::tile::Run;

mod pack;

pub(crate) use pack::Weights;

/// `f32`s of a panel's weights that are summed up before the next places: they stay in a core's
/// first caches.
const WEIGHTS: usize = 1 << 14;

/// `f32`s of the source that are read before the next panel: they stay in a core's second cache.
const SOURCE: usize = 1 << 16;

/// Most `f32`s of a source whose windows are put side by side.
const GATHERED: usize = 1 << 17;

/// Tasks for each thread, so that all are done at about the same time.
const TASKS: usize = 4;

/// 2-D convolution, with what is added and the function that follow it.
/// Shapes: `x [c, h, w]`, `w [m, c/group, kh, kw]`, `bias [m]`, residual as the target ->
/// `[m, oh, ow]`.
/// Source: ONNX operator `Conv`, opset 22.
#[derive(Debug)]
pub(crate) struct Conv {
    instructions: Instructions,
    function: Function,
    groups: Vec<Group>,
    panels: Vec<Panel>,
    /// `[group][panel][depth][vectors][lanes]`
    weights: Memory,
    /// `[group][vectors][lanes]`
    bias: Memory,
    /// What is summed, cut so that a panel's weights stay in the cache.
    depths: Vec<Vec<Run>>,
    lines: Lines,
    gather: Option<Gather>,
    target_plane: usize,
    source_len: usize,
    target_len: usize,
}

/// Where a group's channels begin in source, target, weights and bias.
#[derive(Debug)]
struct Group {
    source: usize,
    target: usize,
    weights: usize,
    bias: usize,
}

/// Vectors of output channels that one tile makes.
#[derive(Debug)]
struct Panel {
    first: usize,
    vectors: usize,
    /// Where its weights begin in those of its group.
    weights: usize,
}

/// Lines of pixels next to each other; a tile is a part of one.
#[derive(Debug)]
struct Lines {
    /// Where lines begin in source and target.
    starts: Vec<[usize; 2]>,
    stretches: Vec<Stretch>,
    /// From one pixel's source to the next one's.
    step: usize,
    /// By pixel of a line its place in the target from the line's start on.
    places: Vec<usize>,
    /// Tiles before the next panel takes its turn.
    chunk: usize,
}

/// Windows put side by side: `[runs][pixels][lanes]`.
#[derive(Debug)]
struct Gather {
    /// Where the window of each pixel begins.
    pixels: Vec<usize>,
    /// By run of the window where it lies from there on, and how long it is.
    runs: Vec<Run>,
    lanes: usize,
}

/// What a convolution is made of.
#[derive(Debug)]
pub(crate) struct Definition<'a> {
    pub(crate) window: Window,
    pub(crate) groups: usize,
    pub(crate) source: Layout,
    pub(crate) target: Layout,
    pub(crate) weights: Weights<'a>,
    pub(crate) function: Function,
}

impl Definition<'_> {
    /// Whether tiles can do it: groups begin with a vector.
    pub(crate) fn fits(groups: usize, channels: usize, maps: usize, lanes: [usize; 2]) -> bool {
        groups == 1
            || (channels / groups).is_multiple_of(lanes[0])
                && (maps / groups).is_multiple_of(lanes[1])
    }
}

impl Conv {
    pub(crate) fn new(definition: &Definition<'_>) -> Self {
        let Definition { window, groups, source, target, function, .. } = definition;
        let instructions = Instructions::best();
        let (channels, maps) = (source.channels / groups, target.channels / groups);
        let vectors = maps.div_ceil(target.lanes);
        let runs = pack::runs(window, source, channels);
        let depth = channels * window.kernel[0] * window.kernel[1];
        let tiles = instructions.tiles();
        let whole = pack::is_flat(window, source, target);
        let [height, width] = target.size;
        let pixels = height * width;
        let by_lines = best(tiles, vectors, height, width);
        let at_once = best(tiles, vectors, 1, pixels);
        let gathered = !whole
            && *groups == 1
            && source.lanes > 1
            && pixels.saturating_mul(depth) <= GATHERED
            && at_once.1 + 2 * (pixels as u64) < by_lines.1;
        let panel_width = if whole || gathered { at_once.0 } else { by_lines.0 };
        let mut first_weight = 0;
        let panels: Vec<Panel> = parts(vectors, panel_width)
            .map(|part| {
                let weights = first_weight;
                first_weight += depth * part.pixels * target.lanes;
                Panel { first: part.first, vectors: part.pixels, weights }
            })
            .collect();
        let widths: Vec<usize> = panels.iter().map(|panel| panel.vectors).collect();
        let (weights, bias) = definition.weights.packed(*groups, target.lanes, source, &widths);
        let group = |group: usize| Group {
            source: group * channels / source.lanes * source.plane(),
            target: group * maps / target.lanes * target.plane(),
            weights: group * first_weight,
            bias: group * vectors * target.lanes,
        };
        let most = tiles[panel_width - 1];
        let (lines, runs, gather) = if gathered {
            let (gather, runs) = Gather::new(window, source, target, &runs);
            (Lines::gathered(target, most, source.lanes), runs, Some(gather))
        } else {
            (Lines::new(window, source, target, most, whole), runs, None)
        };
        let per_tile = source.len() / (lines.starts.len() * lines.stretches.len()).max(1);
        let lines = Lines { chunk: (SOURCE / per_tile.max(1)).max(4), ..lines };
        let deep = (WEIGHTS / (panel_width * target.lanes)).max(source.lanes);
        let conv = Self {
            instructions,
            function: *function,
            groups: (0..*groups).map(group).collect(),
            panels,
            weights,
            bias,
            depths: pack::cut(&runs, deep),
            lines,
            gather,
            target_plane: target.plane(),
            source_len: source.len(),
            target_len: target.len(),
        };
        conv.check();
        conv
    }

    /// # Panics
    /// When a tile would reach beyond source or target.
    fn check(&self) {
        let lines = &self.lines;
        let last = |axis: usize| lines.starts.iter().map(|start| start[axis]).max().unwrap_or(0);
        let behind = self.depths.iter().flatten().map(|run| run.from + run.len).max().unwrap_or(0);
        let pixels = lines.places.len().saturating_sub(1);
        let source = last(0) + pixels * lines.step + behind;
        let places = lines.places.iter().max().unwrap_or(&0);
        let vectors: usize = self.panels.iter().map(|panel| panel.vectors).sum();
        let vector = self.instructions.lanes();
        let target = last(1) + places + vectors.saturating_sub(1) * self.target_plane + vector;
        let (source_len, gathered) = match &self.gather {
            Some(gather) => (gather.len(), gather.end()),
            None => (self.source_len, 0),
        };
        assert!(gathered <= self.source_len, "windows lie in the source");
        for group in &self.groups {
            assert!(group.source + source <= source_len, "inputs lie in the source");
            assert!(group.target + target <= self.target_len, "outputs lie in the target");
        }
    }
}

impl Lines {
    /// Rows of the target, or all of it as one line.
    fn new(window: &Window, source: &Layout, target: &Layout, most: usize, whole: bool) -> Self {
        let [height, width] = target.size;
        let (height, width) = if whole { (1, height * width) } else { (height, width) };
        let corner = pack::corner(window, source);
        let start = |y: usize| {
            [corner + y * window.stride[0] * source.row(), target.origin() + y * target.row()]
        };
        Self {
            starts: (0..height).map(start).collect(),
            stretches: parts(width, most).collect(),
            step: window.stride[1] * source.lanes,
            places: (0..width).map(|x| x * target.lanes).collect(),
            chunk: 0,
        }
    }

    /// One line of all pixels, whose windows lie side by side.
    fn gathered(target: &Layout, most: usize, lanes: usize) -> Self {
        let [height, width] = target.size;
        let place = |pixel: usize| {
            target.origin() + pixel / width * target.row() + pixel % width * target.lanes
        };
        Self {
            starts: vec![[0; 2]],
            stretches: parts(height * width, most).collect(),
            step: lanes,
            places: (0..height * width).map(place).collect(),
            chunk: 0,
        }
    }

    fn tiles(&self) -> usize {
        self.starts.len() * self.stretches.len()
    }
}

impl Gather {
    /// How windows are put side by side, and the runs of what lies so.
    fn new(window: &Window, source: &Layout, target: &Layout, runs: &[Run]) -> (Self, Vec<Run>) {
        let [height, width] = target.size;
        let corner = pack::corner(window, source);
        let pixel = |pixel: usize| {
            let (y, x) = (pixel / width * window.stride[0], pixel % width * window.stride[1]);
            corner + y * source.row() + x * source.lanes
        };
        let pixels: Vec<usize> = (0..height * width).map(pixel).collect();
        let lanes = source.lanes;
        let runs: Vec<Run> = runs.iter().flat_map(|run| pack::pieces(*run, lanes)).collect();
        let side_by_side =
            |(at, run): (usize, &Run)| Run { from: at * pixels.len() * lanes, ..*run };
        let gathered = runs.iter().enumerate().map(side_by_side).collect();
        (Self { pixels, runs, lanes }, gathered)
    }

    fn len(&self) -> usize {
        self.runs.len() * self.pixels.len() * self.lanes
    }

    /// Behind the last number that is read.
    fn end(&self) -> usize {
        let run = self.runs.iter().map(|run| run.from + run.len).max().unwrap_or(0);
        self.pixels.iter().max().map_or(0, |pixel| pixel + run)
    }

    fn gather(&self, source: &[f32], into: &mut [f32]) {
        let runs = into.chunks_exact_mut(self.pixels.len() * self.lanes).zip(&self.runs);
        for (into, run) in runs {
            for (into, pixel) in into.chunks_exact_mut(self.lanes).zip(&self.pixels) {
                into[..run.len].copy_from_slice(&source[pixel + run.from..][..run.len]);
            }
        }
    }
}

impl Kernel for Conv {
    fn scratch(&self) -> usize {
        self.gather.as_ref().map_or(0, Gather::len)
    }

    fn run(&self, call: Call<'_, '_>) {
        let Call { sources, target, scratch } = call;
        let source = &sources[0][..self.source_len];
        let source = match &self.gather {
            Some(gather) => {
                let len = gather.len();
                gather.gather(source, &mut scratch[..len]);
                &scratch[..len]
            }
            None => source,
        };
        let residual = sources.get(1).map(|residual| &residual[..self.target_len]);
        let target = Target::of(&mut target[..self.target_len]);
        let tiles = self.lines.tiles();
        let threads = threads();
        // One thread goes through all panels for some places; more of them share both.
        let least = if threads > 1 { threads * TASKS } else { 1 };
        let chunk = self.lines.chunk.min(tiles.div_ceil(threads));
        let chunks = tiles.div_ceil(chunk);
        let panel_parts = least.div_ceil(chunks * self.groups.len()).min(self.panels.len());
        let tasks = self.groups.len() * chunks * panel_parts;
        each_task(tasks, |task| {
            let (panels, rest) = (task % panel_parts, task / panel_parts);
            let (chunk, group) = (rest % chunks, rest / chunks);
            let cut = |part: usize| self.panels.len() * part / panel_parts;
            self.instructions.run(Task {
                conv: self,
                group: &self.groups[group],
                panels: &self.panels[cut(panels)..cut(panels + 1)],
                tiles: tiles * chunk / chunks..tiles * (chunk + 1) / chunks,
                source,
                residual,
                target,
            });
        });
    }
}

/// Some panels of some places of a group.
struct Task<'a> {
    conv: &'a Conv,
    group: &'a Group,
    panels: &'a [Panel],
    tiles: std::ops::Range<usize>,
    source: &'a [f32],
    residual: Option<&'a [f32]>,
    target: Target,
}

impl Work for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let conv = self.conv;
        for (depth, runs) in conv.depths.iter().enumerate() {
            for panel in self.panels {
                for tile in self.tiles.clone() {
                    // SAFETY: the caller's promise.
                    unsafe { self.tile::<S>(depth, runs, panel, tile) }
                }
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, depth: usize, runs: &[Run], panel: &Panel, tile: usize) {
        let Self { conv, group, .. } = self;
        let lines = &conv.lines;
        let (line, part) = (tile / lines.stretches.len(), tile % lines.stretches.len());
        let [source, target] = lines.starts[line];
        let Stretch { first, pixels } = lines.stretches[part];
        let target = group.target + target + panel.first * conv.target_plane;
        let is_last = depth + 1 == conv.depths.len();
        let (least, most, rest) =
            if is_last { conv.function.parts() } else { Function::NONE.parts() };
        let weights = conv.weights.as_slice()[group.weights + panel.weights..].as_ptr();
        let bias = conv.bias.as_slice()[group.bias + panel.first * S::LANES..].as_ptr();
        let residual = self.residual.filter(|_| is_last);
        let places = &lines.places[first..first + pixels];
        let job = Sums {
            runs,
            source: self.source[group.source + source + first * lines.step..].as_ptr(),
            step: lines.step,
            weights,
            bias: if depth == 0 { bias } else { std::ptr::null() },
            residual: residual.map_or(std::ptr::null(), |residual| residual[target..].as_ptr()),
            target: self.target.at(target),
            places: places.as_ptr(),
            plane: conv.target_plane,
            least,
            most,
        };
        // SAFETY: runs, lines and panels were made for source, target and weights of these
        // lengths, which were checked; tasks have places of their own.
        unsafe { tile::sums::<S>(&job, pixels, panel.vectors) }
        if let Some(function) = rest {
            let finish = Finish {
                function,
                target: job.target,
                places,
                planes: panel.vectors,
                plane: conv.target_plane,
            };
            // SAFETY: as above.
            unsafe { S::apart(finish) }
        }
    }
}
