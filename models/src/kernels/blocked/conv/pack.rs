//! Weights in the order in which tiles read them, and what they are multiplied by.

use super::{Layout, Memory, Window};
use crate::kernels::tile::Run;

/// Weights `[m, c/group, kh, kw]` and bias `[m]`, or none.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    pub(crate) values: &'a [f32],
    /// From one map's weights to the next one's, and from one channel's to the next one's;
    /// elements of a window lie together.
    pub(crate) steps: [usize; 2],
    /// Maps, channels of a group, elements of the window.
    pub(crate) extents: [usize; 3],
    pub(crate) bias: &'a [f32],
}

impl<'a> Weights<'a> {
    /// Weights of a convolution.
    pub(crate) fn new(values: &'a [f32], extents: [usize; 3], bias: &'a [f32]) -> Self {
        let [_, channels, elements] = extents;
        Self { values, steps: [channels * elements, elements], extents, bias }
    }

    /// Weights by group, panel and depth, and the bias. `panels` are numbers of vectors.
    pub(super) fn packed(
        &self,
        groups: usize,
        lanes: usize,
        source: &Layout,
        panels: &[usize],
    ) -> (Memory, Memory) {
        let [maps, channels, elements] = self.extents;
        let of_group = maps / groups;
        let columns = panels.iter().sum::<usize>() * lanes;
        let mut packed = Memory::zeros(groups * columns * channels * elements);
        let mut bias = Memory::zeros(groups * columns);
        let mut at = 0;
        let into = packed.as_mut_slice();
        for group in 0..groups {
            let mut first = 0;
            for panel in panels {
                let columns = panel * lanes;
                let count = columns.min(of_group - first);
                for (channel, element) in order(channels, elements, source.lanes) {
                    let from = (group * of_group + first) * self.steps[0]
                        + channel * self.steps[1]
                        + element;
                    let row = self.values[from..].iter().step_by(self.steps[0]);
                    into[at..at + count].iter_mut().zip(row).for_each(|(into, from)| *into = *from);
                    at += columns;
                }
                first += columns;
            }
        }
        if !self.bias.is_empty() {
            let groups = bias.as_mut_slice().chunks_mut(columns);
            for (into, from) in groups.zip(self.bias.chunks(of_group)) {
                into[..of_group].copy_from_slice(from);
            }
        }
        (packed, bias)
    }
}

/// Channel and element of all weights of a map, as runs go through them: channels in as many as
/// there are lanes, each with all elements of the window.
fn order(channels: usize, elements: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channels).step_by(lanes).flat_map(move |first| {
        (0..elements).flat_map(move |element| {
            (first..channels.min(first + lanes)).map(move |channel| (channel, element))
        })
    })
}

/// The input of a window from its corner on: runs of numbers side by side.
pub(super) fn runs(window: &Window, source: &Layout, channels: usize) -> Vec<Run> {
    let [height, width] = window.kernel;
    let mut runs: Vec<Run> = Vec::new();
    let mut row = 0;
    for (plane, first) in (0..channels).step_by(source.lanes).enumerate() {
        let len = source.lanes.min(channels - first);
        for element in 0..height * width {
            let (y, x) =
                (element / width * window.dilation[0], element % width * window.dilation[1]);
            let from = plane * source.plane() + y * source.row() + x * source.lanes;
            match runs.last_mut() {
                Some(last) if last.from + last.len == from => last.len += len,
                _ => runs.push(Run { from, row, len }),
            }
            row += len;
        }
    }
    runs
}

/// A run as runs of `len` at most.
pub(super) fn pieces(run: Run, len: usize) -> impl Iterator<Item = Run> {
    (0..run.len).step_by(len).map(move |at| Run {
        from: run.from + at,
        row: run.row + at,
        len: len.min(run.len - at),
    })
}

/// Runs in groups of `most` numbers, about.
pub(super) fn cut(runs: &[Run], most: usize) -> Vec<Vec<Run>> {
    let all: usize = runs.iter().map(|run| run.len).sum();
    let most = all.div_ceil(all.div_ceil(most).max(1));
    let mut groups: Vec<Vec<Run>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let mut run = *run;
        while run.len > 0 {
            if room == 0 {
                groups.push(Vec::new());
                room = most;
            }
            let len = run.len.min(room);
            if let Some(group) = groups.last_mut() {
                group.push(Run { len, ..run });
            }
            room -= len;
            run = Run { from: run.from + len, row: run.row + len, len: run.len - len };
        }
    }
    groups
}

/// Where the first window begins: before the picture by its padding.
pub(super) fn corner(window: &Window, source: &Layout) -> usize {
    let [top, left] = [0, 1].map(|axis| source.begin[axis] - window.begin[axis]);
    top * source.row() + left * source.lanes
}

/// Whether pixels of source and target lie in one row, each of the target below its own.
pub(super) fn is_flat(window: &Window, source: &Layout, target: &Layout) -> bool {
    window.kernel == [1; 2]
        && window.stride == [1; 2]
        && source.size == target.size
        && source.row() == source.size[1] * source.lanes
        && target.row() == target.size[1] * target.lanes
        && window.begin == [0; 2]
        && window.end == [0; 2]
}
