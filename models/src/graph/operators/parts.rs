//! Parts of values.

use super::{node, numbers};
use crate::graph::context::Context;
use crate::graph::reader::{Item, Made};
use crate::graph::{GraphError, Node, Op, Origin, Shape, ValueId};

/// What lies from `starts` up to `ends` along axes; of numbers that are known beforehand too.
pub(super) fn slice(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(known) = context.numbers(0)? {
        return numbers::slice(context, known);
    }
    let (x, dims) = context.activation(0)?;
    let starts = context.ints_or_input("starts", 1)?.unwrap_or_default();
    let ends = context.ints_or_input("ends", 2)?.unwrap_or_default();
    let axes = context.ints_or_input("axes", 3)?;
    let axes = axes.unwrap_or_else(|| (0..).take(starts.len()).collect());
    let axes = context.axes(&axes, dims.len() + 1)?;
    let steps = if context.has(4) { context.integers(4)? } else { vec![1; axes.len()] };
    let fits = starts.len() == axes.len() && ends.len() == axes.len() && steps.len() == axes.len();
    if !fits || axes.contains(&0) || steps.iter().any(|step| *step != 1) {
        let text = "expected a start and an end for each axis but the batch's, with the step 1";
        return Err(context.problem(text.to_owned()));
    }
    let (mut begin, mut out) = (vec![0; dims.len()], dims.clone());
    for (axis, (start, end)) in axes.into_iter().zip(starts.into_iter().zip(ends)) {
        let extent = i64::try_from(dims[axis - 1]).unwrap_or(i64::MAX);
        let (start, end) = (numbers::place(start, extent), numbers::place(end, extent));
        (begin[axis - 1], out[axis - 1]) = (start, end.saturating_sub(start));
    }
    Ok(node(Op::Crop { begin }, vec![x], out))
}

/// Parts behind each other along an axis, as large as is said or equal.
pub(super) fn split(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axis = context.axes(&[context.int("axis", 0)], dims.len() + 1)?[0];
    let Some(axis) = axis.checked_sub(1) else {
        return Err(context.problem("axis 0: examples are kept apart".to_owned()));
    };
    let names: Vec<_> = context.node.output.iter().map(String::as_str).collect();
    let equal = || {
        let extent = dims[axis].div_ceil(names.len());
        (0..names.len()).map(|at| extent.min(dims[axis].saturating_sub(at * extent))).collect()
    };
    let sizes: Vec<usize> = match context.ints_or_input("split", 1)? {
        Some(given) => given.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect(),
        None => equal(),
    };
    if sizes.len() != names.len() || sizes.iter().sum::<usize>() != dims[axis] {
        let text = format!("parts {sizes:?}: expected {} that fill {}", names.len(), dims[axis]);
        return Err(context.problem(text));
    }
    let mut start = 0;
    let mut part = |size: usize| {
        let (mut begin, mut out) = (vec![0; dims.len()], dims.clone());
        (begin[axis], out[axis]) = (start, size);
        start += size;
        (Op::Crop { begin }, out)
    };
    let (first, first_dims) = part(sizes[0]);
    for (name, size) in names.iter().zip(sizes).skip(1) {
        let (op, dims) = part(size);
        add(context, name, op, x, &dims)?;
    }
    Ok(node(first, vec![x], first_dims))
}

/// A node for an output behind the first.
fn add<'m>(
    context: &mut Context<'_, 'm>,
    output: &'m str,
    op: Op,
    x: ValueId,
    dims: &[usize],
) -> Result<(), GraphError> {
    let name = context.label.clone();
    if output.is_empty() {
        return Ok(());
    }
    if context.reader.names.contains_key(output) {
        return Err(context.problem(format!("output {output:?} is already there")));
    }
    let id = context.reader.add_value(&name, output, Shape::batched(dims), Origin::Node)?;
    let (inputs, states) = (vec![x], Vec::new());
    context.reader.nodes.push(Node { name, op, inputs, states, output: id });
    context.reader.names.insert(output, Item::Value(id));
    Ok(())
}
