//! Integers that are known while a graph is read: shapes, axes, and what is computed from them.

use std::fmt;

use super::Arithmetic;

/// Integers of a tensor with at most one axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Whether there is no axis, and so one value.
    pub(super) scalar: bool,
    pub(super) values: Vec<Extent>,
}

/// One integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The number of examples.
    Batch,
    Number(i64),
}

impl Extent {
    /// The result of an operator; `None` when it depends on the batch size, divides by 0 or
    /// overflows.
    pub(super) fn combine(self, operator: Arithmetic, other: Self) -> Option<Self> {
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
