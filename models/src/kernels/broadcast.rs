//! Operands that are broadcast: how they are read while the output is walked.

use crate::graph::Shape;

/// The output's extents in memory: `[channels][n][rest]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) channels: usize,
    pub(super) rest: usize,
}

/// How an operand is read while the output is walked.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) batched: bool,
    /// Whether it has a row of its own for each channel.
    pub(super) channels: bool,
    pub(super) rest: Rest,
    /// Elements of one row.
    pub(super) rest_len: usize,
}

/// Which element of an operand's row belongs to an element of the output's row.
#[derive(Debug)]
pub(super) enum Rest {
    Same,
    One,
    Table(Vec<usize>),
}

impl Rest {
    pub(super) fn index(&self, at: usize) -> usize {
        match self {
            Rest::Same => at,
            Rest::One => 0,
            Rest::Table(table) => table[at],
        }
    }
}

impl Operand {
    /// # Panics
    /// When the shape does not broadcast to the output's; the graph's reader has checked it.
    pub(super) fn new(shape: &Shape, output: &[usize]) -> Self {
        let dims = shape.aligned(output.len()).expect("the graph's reader aligned it");
        let rest_len = dims[1..].iter().product();
        let rest = if dims[1..] == output[1..] {
            Rest::Same
        } else if rest_len == 1 {
            Rest::One
        } else {
            Rest::Table(table(&dims[1..], &output[1..]))
        };
        let channels = dims[0] == output[0];
        Self { batched: shape.batched, channels, rest, rest_len }
    }

    /// Whether it has the output's shape.
    pub(super) fn is_whole(&self) -> bool {
        self.batched && self.channels && matches!(self.rest, Rest::Same)
    }

    pub(super) fn row_start(&self, channel: usize, example: usize, n: usize) -> usize {
        let channel = if self.channels { channel } else { 0 };
        let row = if self.batched { channel * n + example } else { channel };
        row * self.rest_len
    }

    pub(super) fn row<'a>(
        &self,
        values: &'a [f32],
        channel: usize,
        example: usize,
        n: usize,
    ) -> &'a [f32] {
        &values[self.row_start(channel, example, n)..][..self.rest_len]
    }
}

/// For each element of the output's row-major `output`, the element of `dims` broadcast to it.
fn table(dims: &[usize], output: &[usize]) -> Vec<usize> {
    let mut table = vec![0];
    for (extent, dim) in output.iter().zip(dims) {
        let step = |at: usize| if *dim == 1 { 0 } else { at };
        table = table
            .iter()
            .flat_map(|base| (0..*extent).map(move |at| base * dim + step(at)))
            .collect();
    }
    table
}
