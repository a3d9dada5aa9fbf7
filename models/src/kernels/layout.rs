//! Where elements of examples lie in memory, for kernels that move single elements.

/// A value's order in memory, `[c][n][rest]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Elements of an example per step of its first axis.
    rest: usize,
}

impl Layout {
    /// Of values whose examples have such extents.
    pub(super) fn new(dims: &[usize]) -> Self {
        Self { rest: dims[1..].iter().product() }
    }

    /// Places of an element, counted in row-major order, of each of `n` examples.
    pub(super) fn places(self, element: usize, n: usize) -> impl Iterator<Item = usize> + Clone {
        let start = element / self.rest * n * self.rest + element % self.rest;
        (0..n).map(move |example| start + example * self.rest)
    }
}
