//! Buffers with their layouts while a graph is lowered, and where they lie in the end.

use std::ops::Range;

use super::program::{BufferId, Place, Program, Step};
use crate::kernels::blocked::{Kernel, Layout, memory::Memory};

/// Makes a kernel of the layouts of sources and target, once these are settled.
pub(super) type Draft = Box<dyn FnOnce(&[Layout], &Layout) -> Box<dyn Kernel>>;

/// `f32`s that buffers begin at a multiple of: a line of the cache.
const ALIGNMENT: usize = 16;

/// A program that is not settled.
#[derive(Default)]
pub(super) struct Plan {
    layouts: Vec<Layout>,
    /// Places of buffers that no step makes.
    fixed: Vec<Option<Place>>,
    steps: Vec<Planned>,
    /// Buffers that have the same border.
    alike: Vec<[BufferId; 2]>,
}

struct Planned {
    sources: Vec<BufferId>,
    target: BufferId,
    make: Draft,
}

impl Plan {
    pub(super) fn input(&mut self, layout: Layout) -> BufferId {
        self.add(layout, Some(Place::Input))
    }

    /// A buffer that a step makes.
    pub(super) fn buffer(&mut self, layout: Layout) -> BufferId {
        self.add(layout, None)
    }

    /// Numbers that lie without a border.
    pub(super) fn constant(&mut self, values: &[f32], layout: Layout) -> BufferId {
        let mut memory = Memory::zeros(layout.len().max(values.len()));
        memory.as_mut_slice()[..values.len()].copy_from_slice(values);
        self.add(layout, Some(Place::Constant(memory)))
    }

    fn add(&mut self, layout: Layout, place: Option<Place>) -> BufferId {
        self.layouts.push(layout);
        self.fixed.push(place);
        BufferId(self.layouts.len() - 1)
    }

    pub(super) fn step(&mut self, sources: Vec<BufferId>, target: BufferId, make: Draft) {
        self.steps.push(Planned { sources, target, make });
    }

    /// Channels and `[h, w]`.
    pub(super) fn extents(&self, id: BufferId) -> (usize, [usize; 2]) {
        (self.layouts[id.0].channels, self.layouts[id.0].size)
    }

    /// Lets a buffer have a border of this width at least.
    pub(super) fn grow(&mut self, id: BufferId, begin: [usize; 2], end: [usize; 2]) {
        let layout = &mut self.layouts[id.0];
        for axis in 0..2 {
            layout.begin[axis] = layout.begin[axis].max(begin[axis]);
            layout.end[axis] = layout.end[axis].max(end[axis]);
        }
    }

    /// Lets two buffers have the same border.
    pub(super) fn be_alike(&mut self, a: BufferId, b: BufferId) {
        self.alike.push([a, b]);
    }

    fn settle_borders(&mut self) {
        let alike = std::mem::take(&mut self.alike);
        loop {
            let before = self.layouts.clone();
            for [a, b] in &alike {
                for [from, to] in [[*a, *b], [*b, *a]] {
                    let Layout { begin, end, .. } = self.layouts[from.0];
                    self.grow(to, begin, end);
                }
            }
            if self.layouts == before {
                return;
            }
        }
    }

    /// The program with this output, a buffer without a border.
    pub(super) fn finish(
        mut self,
        output: BufferId,
        input_len: usize,
        output_len: usize,
    ) -> Program {
        self.settle_borders();
        let (ranges, memory) = self.ranges(output);
        let layouts = self.layouts;
        let steps: Vec<Step> = self
            .steps
            .into_iter()
            .map(|Planned { sources, target, make }| {
                let of_sources: Vec<Layout> =
                    sources.iter().map(|source| layouts[source.0]).collect();
                let layout = layouts[target.0];
                let kernel = make(&of_sources, &layout);
                let border = layout.has_border().then_some(layout);
                Step { kernel, sources, target, border }
            })
            .collect();
        let places = self.fixed.into_iter().zip(ranges);
        let places = places.map(|(fixed, range)| fixed.unwrap_or(Place::Memory(range))).collect();
        let scratch = steps.iter().map(|step| step.kernel.scratch()).max().unwrap_or(0);
        Program { steps, places, output, input_len, output_len, memory, scratch }
    }

    /// By buffer its part of the memory, and the length of that: buffers that are needed at the
    /// same time lie apart.
    fn ranges(&self, output: BufferId) -> (Vec<Range<usize>>, usize) {
        let mut last = vec![0; self.layouts.len()];
        for (at, step) in self.steps.iter().enumerate() {
            step.sources.iter().for_each(|source| last[source.0] = at);
            last[step.target.0] = last[step.target.0].max(at);
        }
        last[output.0] = self.steps.len();
        let mut ranges = vec![0..0; self.layouts.len()];
        let mut memory = 0;
        let mut living: Vec<BufferId> = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            living.retain(|id| last[id.0] >= at);
            let len = self.layouts[step.target.0].len().next_multiple_of(ALIGNMENT);
            let mut taken: Vec<&Range<usize>> = living.iter().map(|id| &ranges[id.0]).collect();
            taken.sort_by_key(|range| range.start);
            let mut start = 0;
            for range in taken {
                if range.start >= start + len {
                    break;
                }
                start = start.max(range.end);
            }
            ranges[step.target.0] = start..start + len;
            memory = memory.max(start + len);
            living.push(step.target);
        }
        (ranges, memory)
    }
}
