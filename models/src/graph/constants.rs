//! Integers that are known while a graph is read: shapes, axes, and what is computed from them.

use std::fmt;

use super::Arithmetic;

/// Most integers of one tensor: far above what shapes and paddings have.
pub(super) const NUMBERS_MAX: usize = 1 << 12;

/// A tensor of integers, in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) dims: Vec<usize>,
    pub(super) values: Vec<Extent>,
}

/// One integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The number of examples.
    Batch,
    Number(i64),
}

impl Numbers {
    /// With one axis.
    pub(super) fn list(values: Vec<Extent>) -> Self {
        Self { dims: vec![values.len()], values }
    }

    pub(super) fn scalar(value: Extent) -> Self {
        Self { dims: Vec::new(), values: vec![value] }
    }

    /// The same number everywhere; `None` when there would be too many.
    pub(super) fn filled(dims: Vec<usize>, value: Extent) -> Option<Self> {
        let product = |a: usize, b: &usize| a.checked_mul(*b).filter(|len| *len <= NUMBERS_MAX);
        let len = dims.iter().try_fold(1, product)?;
        Some(Self { dims, values: vec![value; len] })
    }

    /// Axes in another order, `axes` naming each once.
    pub(super) fn transposed(&self, axes: &[usize]) -> Self {
        let dims: Vec<usize> = axes.iter().map(|axis| self.dims[*axis]).collect();
        let values = source_of(&self.dims, axes).into_iter().map(|at| self.values[at]).collect();
        Self { dims, values }
    }

    /// Number by number, with one number repeated as often as needed; `None` when the shapes do
    /// not fit or a result is not known.
    pub(super) fn combine(&self, operator: Arithmetic, other: &Self) -> Option<Self> {
        let dims = match (self.values.len(), other.values.len()) {
            (_, 1) if self.dims.len() >= other.dims.len() => &self.dims,
            (1, _) => &other.dims,
            _ if self.dims == other.dims => &self.dims,
            _ => return None,
        };
        let at = |numbers: &Self, at: usize| {
            numbers.values[if numbers.values.len() == 1 { 0 } else { at }]
        };
        let len = self.values.len().max(other.values.len());
        let pair = |index| at(self, index).combine(operator, at(other, index));
        let values = (0..len).map(pair).collect::<Option<_>>()?;
        Some(Self { dims: dims.clone(), values })
    }
}

/// For each element of a tensor whose axis `i` is axis `axes[i]` of another with extents `from`,
/// the place in that other.
pub(super) fn source_of(from: &[usize], axes: &[usize]) -> Vec<usize> {
    let mut source = vec![0];
    for axis in axes {
        let step: usize = from[axis + 1..].iter().product();
        source = source
            .iter()
            .flat_map(|base| (0..from[*axis]).map(move |at| base + at * step))
            .collect();
    }
    source
}

impl Extent {
    /// The result of an operator; `None` when it depends on the batch size, divides by 0 or
    /// overflows.
    fn combine(self, operator: Arithmetic, other: Self) -> Option<Self> {
        match (self, operator, other) {
            (Self::Number(a), _, Self::Number(b)) => match operator {
                Arithmetic::Add => a.checked_add(b),
                Arithmetic::Sub => a.checked_sub(b),
                Arithmetic::Mul => a.checked_mul(b),
                Arithmetic::Div => a.checked_div(b),
            }
            .map(Self::Number),
            (Self::Batch, Arithmetic::Mul | Arithmetic::Div, Self::Number(1))
            | (Self::Number(1), Arithmetic::Mul, Self::Batch)
            | (Self::Number(0), Arithmetic::Add, Self::Batch)
            | (Self::Batch, Arithmetic::Add | Arithmetic::Sub, Self::Number(0)) => {
                Some(Self::Batch)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch => f.write_str("n"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}
