//! Operands that are broadcast: how they are read while the output is walked.

use crate::graph::Shape;

/// The output's extents in memory: `[channels][rest][n]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) channels: usize,
    pub(super) rest: usize,
}

/// An operand's part in a stretch of the output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Factor<'a> {
    /// One element for each of the output's.
    Each(&'a [f32]),
    /// One element for all of them.
    One(f32),
}

/// How an operand is read while the output is walked.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) batched: bool,
    /// Whether it has elements of its own for each channel.
    pub(super) channels: bool,
    pub(super) rest: Rest,
    /// Elements of one channel.
    pub(super) rest_len: usize,
}

/// Which element of an operand's channel belongs to an element of the output's.
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

    /// Whether it is one number for each channel, or one for all.
    pub(super) fn is_channels(&self) -> bool {
        !self.batched && self.rest_len == 1
    }

    /// Its element for an element of the output's channel.
    pub(super) fn element(&self, channel: usize, at: usize) -> usize {
        let channel = if self.channels { channel } else { 0 };
        channel * self.rest_len + self.rest.index(at)
    }

    /// Its part in one element of all `n` examples.
    pub(super) fn factor<'a>(
        &self,
        values: &'a [f32],
        channel: usize,
        at: usize,
        n: usize,
    ) -> Factor<'a> {
        let element = self.element(channel, at);
        if self.batched {
            Factor::Each(&values[element * n..(element + 1) * n])
        } else {
            Factor::One(values[element])
        }
    }

    /// Its part in a whole channel of `len` elements, where it is whole or a number per channel.
    pub(super) fn channel<'a>(&self, values: &'a [f32], channel: usize, len: usize) -> Factor<'a> {
        if self.batched {
            Factor::Each(&values[channel * len..(channel + 1) * len])
        } else {
            Factor::One(values[if self.channels { channel } else { 0 }])
        }
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
