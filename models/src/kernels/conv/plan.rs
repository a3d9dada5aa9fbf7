//! Which inputs each output of a convolution is made of, in an order that tiles can walk.

use std::ops::Range;

use crate::graph::Window;
use crate::kernels::tile::{Spot, Tap};

/// For each index along one axis of what is computed: elements of the window and the indices that
/// they see along the same axis of what is read, by rising index.
#[derive(Debug)]
pub(super) struct Axis {
    seen: Vec<Vec<Seen>>,
}

/// An element of the window along one axis, and the index that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) element: usize,
    pub(super) index: usize,
}

impl Axis {
    /// Outputs made of inputs.
    pub(super) fn outputs(window: &Window, axis: usize, input: usize, output: usize) -> Self {
        let see = |place: usize| {
            let see = |element: usize| {
                let padded = place * window.stride[axis] + element * window.dilation[axis];
                let index = padded.checked_sub(window.begin[axis]).filter(|at| *at < input)?;
                Some(Seen { element, index })
            };
            (0..window.kernel[axis]).filter_map(see).collect()
        };
        Self { seen: (0..output).map(see).collect() }
    }

    /// Gradients by inputs made of gradients by outputs.
    pub(super) fn gradients(window: &Window, axis: usize, input: usize, output: usize) -> Self {
        let stride = window.stride[axis];
        let see = |index: usize| {
            let see = |element: usize| {
                let padded = index + window.begin[axis];
                let place = padded.checked_sub(element * window.dilation[axis])?;
                let whole = place.is_multiple_of(stride) && place / stride < output;
                whole.then_some(Seen { element, index: place / stride })
            };
            (0..window.kernel[axis]).rev().filter_map(see).collect()
        };
        Self { seen: (0..input).map(see).collect() }
    }

    /// The indices that `of` sees.
    fn range(&self, of: Range<usize>) -> Range<usize> {
        let seen = self.seen[of].iter().flatten().map(|seen| seen.index);
        let (least, most) = seen
            .fold((usize::MAX, 0), |(least, most), index| (least.min(index), most.max(index + 1)));
        least.min(most)..most
    }

    /// Most indices that one index sees, from the first to the last.
    pub(super) fn span_max(&self) -> usize {
        (0..self.seen.len()).map(|index| self.range(index..index + 1).len()).max().unwrap_or(0)
    }
}

/// Spots that are made in the same way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) taps: Vec<Tap>,
    pub(super) spots: Vec<Spot>,
}

/// Rows that are computed together from the same block of what is read.
#[derive(Debug)]
pub(super) struct Region {
    /// `f32`s of a plane that are read.
    pub(super) source: Range<usize>,
    pub(super) groups: Vec<Group>,
}

/// The plan of one pass, for a number of examples.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) examples: usize,
    pub(super) regions: Vec<Region>,
}

/// `(from, to, len)` in `f32`s.
type Stretch = (usize, usize, usize);

/// Columns next to each other that are made in the same way.
struct Span {
    from: usize,
    to: usize,
    columns: usize,
}

/// Columns that are made in the same way: elements with offsets in columns.
struct Class {
    taps: Vec<(usize, usize)>,
    spans: Vec<Span>,
}

/// Extents of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) examples: usize,
    /// Columns of what is read.
    pub(super) width: usize,
    /// Columns of the window.
    pub(super) kernel_width: usize,
    pub(super) lanes: usize,
    /// `f32`s of a plane that a region should read at most.
    pub(super) source_max: usize,
}

impl Plan {
    pub(super) fn new(rows: &Axis, columns: &Axis, extents: Extents) -> Self {
        let row_len = extents.width * extents.examples;
        let classes = classes(columns);
        let mut regions = Vec::new();
        let mut first = 0;
        while first < rows.seen.len() {
            let mut end = first + 1;
            while end < rows.seen.len()
                && rows.range(first..end + 1).len() * row_len <= extents.source_max
            {
                end += 1;
            }
            regions.push(region(rows, first..end, &classes, columns.seen.len(), extents));
            first = end;
        }
        Self { examples: extents.examples, regions }
    }
}

fn classes(columns: &Axis) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    for (to, seen) in columns.seen.iter().enumerate() {
        let from = seen.first().map_or(0, |seen| seen.index);
        let taps: Vec<_> = seen.iter().map(|seen| (seen.element, seen.index - from)).collect();
        let span = Span { from, to, columns: 1 };
        match classes.iter_mut().find(|class| class.taps == taps) {
            None => classes.push(Class { taps, spans: vec![span] }),
            Some(class) => match class.spans.last_mut() {
                Some(last) if joins(last.from, last.to, last.columns, from, to) => {
                    last.columns += 1;
                }
                _ => class.spans.push(span),
            },
        }
    }
    classes
}

fn joins(last_from: usize, last_to: usize, len: usize, from: usize, to: usize) -> bool {
    last_from + len == from && last_to + len == to
}

fn region(
    rows: &Axis,
    range: Range<usize>,
    classes: &[Class],
    target_width: usize,
    extents: Extents,
) -> Region {
    let (n, row_len) = (extents.examples, extents.width * extents.examples);
    let mut ways: Vec<(Vec<Tap>, Vec<Stretch>)> = Vec::new();
    for row in range.clone() {
        let seen = &rows.seen[row];
        let base = seen.first().map_or(0, |seen| seen.index);
        for class in classes {
            let tap = |seen: &Seen, (element, offset): (usize, usize)| Tap {
                element: seen.element * extents.kernel_width + element,
                offset: (seen.index - base) * row_len + offset * n,
            };
            let taps: Vec<Tap> = seen
                .iter()
                .flat_map(|seen| class.taps.iter().map(move |column| tap(seen, *column)))
                .collect();
            let at = ways.iter().position(|(other, _)| *other == taps).unwrap_or_else(|| {
                ways.push((taps, Vec::new()));
                ways.len() - 1
            });
            for span in &class.spans {
                let from = base * row_len + span.from * n;
                let (to, len) = ((row * target_width + span.to) * n, span.columns * n);
                match ways[at].1.last_mut() {
                    Some((last_from, last_to, last_len))
                        if joins(*last_from, *last_to, *last_len, from, to) =>
                    {
                        *last_len += len;
                    }
                    _ => ways[at].1.push((from, to, len)),
                }
            }
        }
    }
    let source = rows.range(range);
    let groups = ways.into_iter().map(|(taps, stretches)| {
        let spots = stretches.iter().flat_map(|stretch| spots(*stretch, extents.lanes));
        Group { taps, spots: spots.collect() }
    });
    Region { source: source.start * row_len..source.end * row_len, groups: groups.collect() }
}

fn spots((from, to, len): Stretch, lanes: usize) -> impl Iterator<Item = Spot> {
    (0..len).step_by(lanes).map(move |at| Spot {
        from: from + at,
        to: to + at,
        lanes: lanes.min(len - at),
    })
}
