//! Sums and means over axes.

use super::node;
use crate::graph::context::Context;
use crate::graph::reader::Made;
use crate::graph::{GraphError, Op};

/// A sum or mean over axes; a mean over all spatial axes is global average pooling.
pub(super) fn reduce(context: &mut Context<'_, '_>, mean: bool) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let given = context.ints_or_input("axes", 1)?.unwrap_or_default();
    if given.is_empty() && context.int("noop_with_empty_axes", 0) != 0 {
        return super::folding::identity(context);
    }
    let mut axes = context.axes(&given, dims.len() + 1)?;
    axes.sort_unstable();
    axes.dedup();
    if axes.len() != given.len() || axes.first().is_none_or(|axis| *axis == 0) {
        let text = format!("axes {given:?}: expected axes from 1 on, as examples are kept apart");
        return Err(context.problem(text));
    }
    let axes: Vec<usize> = axes.iter().map(|axis| axis - 1).collect();
    let keep = context.int("keepdims", 1) != 0;
    let out: Vec<usize> = (0..dims.len())
        .filter(|axis| keep || !axes.contains(axis))
        .map(|axis| if axes.contains(&axis) { 1 } else { dims[axis] })
        .collect();
    if out.is_empty() {
        let text = "no axis but the batch's would be left: set keepdims to 1";
        return Err(context.problem(text.to_owned()));
    }
    let pooling = mean && axes.iter().copied().eq(1..dims.len());
    let op = if pooling { Op::GlobalAveragePool } else { Op::Reduce { axes, mean } };
    Ok(node(op, vec![x], out))
}
