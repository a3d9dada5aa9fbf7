//! Operators that change shapes only.

use super::{folding, node};
use crate::graph::constants::Extent;
use crate::graph::context::Context;
use crate::graph::reader::{Made, describe};
use crate::graph::{GraphError, Op};

pub(super) fn flatten(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axis = context.int("axis", 1);
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX) + 1;
    if axis != 1 && axis + rank != 1 {
        return Err(context.problem(format!("axis {axis}: only 1 keeps examples apart")));
    }
    Ok(node(Op::Reshape, vec![x], vec![dims.iter().product()]))
}

/// A batch axis of the target is -1, 0, the size of the export, or the size of a batch that was
/// read from a shape.
pub(super) fn reshape(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let target = context.extents(1)?;
    let elements: usize = dims.iter().product();
    let misfit = || {
        let shown: Vec<String> = target.iter().map(Extent::to_string).collect();
        context.problem(format!(
            "shape [{}] does not keep the {elements} elements of each example together",
            shown.join(", ")
        ))
    };
    let (batch, rest) = target.split_first().ok_or_else(misfit)?;
    let zero_copies = context.int("allowzero", 0) == 0;
    let keeps = match batch {
        Extent::Batch | Extent::Number(-1) => true,
        Extent::Number(0) => zero_copies,
        Extent::Number(number) => {
            usize::try_from(*number).is_ok_and(|size| Some(size) == context.fixed_batch())
        }
    };
    let known = |extent: &Extent| match extent {
        Extent::Number(number) => Ok(*number),
        Extent::Batch => Err(misfit()),
    };
    let rest = rest.iter().map(known).collect::<Result<Vec<i64>, _>>()?;
    let mut extents = Vec::with_capacity(rest.len());
    for (at, extent) in rest.iter().enumerate() {
        extents.push(match extent {
            0 if zero_copies => dims.get(at).copied().ok_or_else(misfit)?,
            -1 if *batch != Extent::Number(-1) => {
                let others = rest.iter().enumerate().filter(|(other, _)| *other != at);
                let product = others.map(|(other, extent)| match extent {
                    0 if zero_copies => dims.get(other).copied().unwrap_or(0),
                    extent => usize::try_from(*extent).unwrap_or(0),
                });
                elements.checked_div(product.product()).ok_or_else(misfit)?
            }
            extent => usize::try_from(*extent).map_err(|_| misfit())?,
        });
    }
    let product = |a: usize, b: &usize| a.checked_mul(*b);
    if !keeps || extents.is_empty() || extents.iter().try_fold(1, product) != Some(elements) {
        return Err(misfit());
    }
    Ok(node(Op::Reshape, vec![x], extents))
}

/// Axes of an attribute or input, counted from the front, of a value with `rank` of them.
fn counted(context: &Context<'_, '_>, axes: &[i64], rank: usize) -> Result<Vec<usize>, GraphError> {
    let all = i64::try_from(rank).unwrap_or(i64::MAX);
    let count = |axis: &i64| {
        let from_front = if *axis < 0 { axis + all } else { *axis };
        usize::try_from(from_front).ok().filter(|axis| *axis < rank)
    };
    let counted: Option<Vec<usize>> = axes.iter().map(count).collect();
    counted.ok_or_else(|| context.problem(format!("axes {axes:?}: there are {rank}")))
}

/// Drops axes of extent 1, of a value or of numbers that are known beforehand.
pub(super) fn squeeze(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(mut numbers) = context.numbers(0)? {
        if numbers.scalar || numbers.values.len() != 1 {
            return Err(context.problem("only one number can lose its axis".to_owned()));
        }
        numbers.scalar = true;
        context.define_numbers(numbers);
        return Ok(Made::Nothing);
    }
    let (x, dims) = context.activation(0)?;
    let Some(axes) = context.ints_or_input("axes", 1)? else {
        return Err(context.problem("expected axes: the batch may be of size 1".to_owned()));
    };
    let axes = counted(context, &axes, dims.len() + 1)?;
    if axes.iter().any(|axis| *axis == 0 || dims[axis - 1] != 1) {
        let text = format!("axes {axes:?} to have the extent 1");
        return Err(context.misfit(text, context.shape(x)));
    }
    let kept = |(at, _): &(usize, &usize)| !axes.contains(&(at + 1));
    let kept: Vec<usize> = dims.iter().enumerate().filter(kept).map(|(_, dim)| *dim).collect();
    if kept.is_empty() {
        return Err(context.problem("no axis but the batch's would be left".to_owned()));
    }
    Ok(node(Op::Reshape, vec![x], kept))
}

/// Adds axes of extent 1, to a value or to numbers that are known beforehand.
pub(super) fn unsqueeze(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let axes = context.ints_or_input("axes", 1)?.unwrap_or_default();
    if let Some(mut numbers) = context.numbers(0)? {
        if !numbers.scalar || axes.len() != 1 {
            return Err(context.problem("only one number can get an axis".to_owned()));
        }
        numbers.scalar = false;
        context.define_numbers(numbers);
        return Ok(Made::Nothing);
    }
    let (x, mut dims) = context.activation(0)?;
    let mut axes = counted(context, &axes, dims.len() + 1 + axes.len())?;
    axes.sort_unstable();
    for axis in axes {
        if axis == 0 || axis > dims.len() + 1 {
            return Err(context.problem("the batch axis has to stay the first".to_owned()));
        }
        dims.insert(axis - 1, 1);
    }
    Ok(node(Op::Reshape, vec![x], dims))
}

pub(super) fn transpose(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axes = counted(context, context.ints("perm"), dims.len() + 1)?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..=dims.len()) || axes[0] != 0 {
        let text = format!("perm {axes:?}: expected every axis once, the batch's first");
        return Err(context.problem(text));
    }
    let axes: Vec<usize> = axes[1..].iter().map(|axis| axis - 1).collect();
    let dims = axes.iter().map(|axis| dims[*axis]).collect();
    Ok(node(Op::Transpose { axes }, vec![x], dims))
}

/// Values behind each other, or numbers that are known beforehand.
pub(super) fn concat(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(first) = context.numbers(0)? {
        return folding::concat(context, first);
    }
    let (x, mut dims) = context.activation(0)?;
    let axis = counted(context, &[context.int("axis", 1)], dims.len() + 1)?[0];
    let Some(axis) = axis.checked_sub(1) else {
        return Err(context.problem("axis 0: examples cannot be joined".to_owned()));
    };
    let mut inputs = vec![x];
    for index in 1..context.inputs() {
        let (other, others) = context.activation(index)?;
        let fits = others.len() == dims.len()
            && (0..dims.len()).all(|at| at == axis || others[at] == dims[at]);
        if !fits {
            let expected = format!("an input like {}", describe(context.shape(x)));
            return Err(context.misfit(expected, context.shape(other)));
        }
        let joined = dims[axis].checked_add(others[axis]);
        dims[axis] = joined.ok_or_else(|| context.problem("it is too long".to_owned()))?;
        inputs.push(other);
    }
    Ok(node(Op::Concat { axis }, inputs, dims))
}
