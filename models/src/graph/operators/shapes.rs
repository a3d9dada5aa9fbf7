//! Operators that change shapes only.

use std::borrow::Cow;

use super::{node, numbers};
use crate::graph::constants::{Extent, source_of};
use crate::graph::context::Context;
use crate::graph::reader::{Made, Tensor, describe};
use crate::graph::{Activation, Arithmetic, GraphError, Op, ValueId, Window};
use crate::onnx::TensorProto;

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
    if let Some(known) = context.numbers(0)? {
        return numbers::reshape(context, known);
    }
    if let Some(tensor) = context.tensor(0)? {
        return reshape_tensor(context, &tensor);
    }
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

/// Drops axes of extent 1, of a value or of numbers that are known beforehand.
pub(super) fn squeeze(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(known) = context.numbers(0)? {
        return numbers::squeeze(context, known);
    }
    let (x, dims) = context.activation(0)?;
    let Some(axes) = context.ints_or_input("axes", 1)? else {
        return Err(context.problem("expected axes: the batch may be of size 1".to_owned()));
    };
    let axes = context.axes(&axes, dims.len() + 1)?;
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
    if let Some(known) = context.numbers(0)? {
        return numbers::unsqueeze(context, known);
    }
    let axes = context.ints_or_input("axes", 1)?.unwrap_or_default();
    let (x, mut dims) = context.activation(0)?;
    let mut axes = context.axes(&axes, dims.len() + 1 + axes.len())?;
    axes.sort_unstable();
    for axis in axes {
        if axis == 0 || axis > dims.len() + 1 {
            return Err(context.problem("the batch axis has to stay the first".to_owned()));
        }
        dims.insert(axis - 1, 1);
    }
    Ok(node(Op::Reshape, vec![x], dims))
}

/// Axes in another order, of a value, a tensor of the file, or numbers that are known beforehand.
pub(super) fn transpose(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(known) = context.numbers(0)? {
        let axes = permutation(context, known.dims.len())?;
        context.define_numbers(known.transposed(&axes));
        return Ok(Made::Nothing);
    }
    if let Some(tensor) = context.tensor(0)? {
        return transpose_tensor(context, &tensor);
    }
    let (x, dims) = context.activation(0)?;
    let axes = permutation(context, dims.len() + 1)?;
    if axes[0] != 0 {
        let text = format!("perm {axes:?}: expected every axis once, the batch's first");
        return Err(context.problem(text));
    }
    let axes: Vec<usize> = axes[1..].iter().map(|axis| axis - 1).collect();
    let dims = axes.iter().map(|axis| dims[*axis]).collect();
    Ok(node(Op::Transpose { axes }, vec![x], dims))
}

/// The attribute `perm`; all axes backwards without it.
fn permutation(context: &Context<'_, '_>, rank: usize) -> Result<Vec<usize>, GraphError> {
    let axes = context.axes(context.ints("perm"), rank)?;
    if axes.is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if sorted.into_iter().eq(0..rank) {
        return Ok(axes);
    }
    Err(context.problem(format!("perm {axes:?}: expected each of {rank} axes once")))
}

/// The transposed tensor is trained in the place of the original.
fn transpose_tensor<'m>(
    context: &mut Context<'_, 'm>,
    tensor: &Tensor<'m>,
) -> Result<Made, GraphError> {
    let (dims, values) = floats(context, tensor)?;
    let axes = permutation(context, dims.len())?;
    let moved: Vec<usize> = axes.iter().map(|axis| dims[*axis]).collect();
    let values: Vec<f32> = source_of(&dims, &axes).into_iter().map(|at| values[at]).collect();
    let proto = Cow::Owned(TensorProto::from_f32("", &moved, &values));
    context.define(Tensor { proto, constant: tensor.constant });
    Ok(Made::Nothing)
}

/// The tensor of another shape is trained in the place of the original.
fn reshape_tensor<'m>(
    context: &mut Context<'_, 'm>,
    tensor: &Tensor<'m>,
) -> Result<Made, GraphError> {
    let (dims, values) = floats(context, tensor)?;
    let target = context.integers(1)?;
    let len = values.len();
    let copied = |(at, extent): (usize, i64)| match extent {
        0 => dims.get(at).and_then(|extent| i64::try_from(*extent).ok()).unwrap_or(0),
        extent => extent,
    };
    let target: Vec<i64> = target.into_iter().enumerate().map(copied).collect();
    let Some(dims) = numbers::extents_for(&target, len) else {
        return Err(context.problem(format!("shape {target:?} does not hold {len} numbers")));
    };
    let proto = Cow::Owned(TensorProto::from_f32("", &dims, &values));
    context.define(Tensor { proto, constant: tensor.constant });
    Ok(Made::Nothing)
}

fn floats(
    context: &Context<'_, '_>,
    tensor: &Tensor<'_>,
) -> Result<(Vec<usize>, Vec<f32>), GraphError> {
    let name = &context.node.input[0];
    tensor.proto.to_f32().map_err(|text| context.problem(format!("input {name:?}: {text}")))
}

/// `1 - s` beside `s`, the sigmoid of one logit: a softmax of minus and plus half the logit.
fn two_classes(context: &mut Context<'_, '_>) -> Result<Option<Made>, GraphError> {
    if context.inputs() != 2 || !matches!(context.int("axis", 1), 1 | -1) {
        return Ok(None);
    }
    let (other, sigmoid) = (context.operand(0)?, context.operand(1)?);
    let maker = |id: ValueId| context.reader.nodes.iter().rev().find(|node| node.output == id);
    let (Some(less), Some(squash)) = (maker(other), maker(sigmoid)) else { return Ok(None) };
    let one = less.inputs[0];
    let fits = less.op == Op::Arithmetic(Arithmetic::Sub)
        && less.inputs[1] == sigmoid
        && squash.op == Op::Activation(Activation::Sigmoid)
        && context.reader.values[one.0].initial == [1.0]
        && context.shape(sigmoid).dims == [1];
    let logit = squash.inputs[0];
    if !fits {
        return Ok(None);
    }
    let halves = context.push_constant(vec![2], vec![-0.5, 0.5])?;
    let logits = context.push(Op::Arithmetic(Arithmetic::Mul), vec![logit, halves], &[2])?;
    Ok(Some(Made::Squashed { logits, op: Op::Softmax { axis: 0, log: false } }))
}

/// `value` before and behind axes, of whole examples only.
pub(super) fn pad(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let mode = context.attribute("mode").and_then(|attribute| attribute.s.as_deref());
    if !matches!(mode.unwrap_or(b"constant"), b"constant" | b"") {
        let mode = String::from_utf8_lossy(mode.unwrap_or_default()).into_owned();
        let text = format!("mode {mode:?} cannot be trained: pad with a constant");
        return Err(context.problem(text));
    }
    let rank = dims.len() + 1;
    let given = context.ints_or_input("pads", 1)?.unwrap_or_default();
    let axes = if context.has(3) {
        context.axes(&context.integers(3)?, rank)?
    } else {
        (0..rank).collect()
    };
    let count = axes.len();
    let (mut begin, mut end) = (vec![0; rank], vec![0; rank]);
    let wide = |pad: &i64| usize::try_from(*pad).ok().filter(|pad| *pad <= Window::EXTENT_MAX);
    let pads: Option<Vec<usize>> = given.iter().map(wide).collect();
    let pads = pads.filter(|pads| pads.len() == 2 * count);
    let Some(pads) = pads else {
        let text = format!("pads {given:?}: expected {} numbers from 0 on", 2 * count);
        return Err(context.problem(text));
    };
    for (at, axis) in axes.into_iter().enumerate() {
        (begin[axis], end[axis]) = (pads[at], pads[at + count]);
    }
    if begin[0] != 0 || end[0] != 0 {
        return Err(context.problem("pads: examples cannot be added".to_owned()));
    }
    let value = if context.has(2) { context.scalar(2)? } else { context.float("value", 0.0) };
    let (begin, end) = (begin[1..].to_vec(), end[1..].to_vec());
    let out = dims.iter().zip(begin.iter().zip(&end)).map(|(dim, (b, e))| dim + b + e).collect();
    Ok(node(Op::Pad { begin, end, value }, vec![x], out))
}

/// Values behind each other, or numbers that are known beforehand.
pub(super) fn concat(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(first) = context.numbers(0)? {
        return numbers::concat(context, first);
    }
    if let Some(made) = two_classes(context)? {
        return Ok(made);
    }
    let (x, mut dims) = context.activation(0)?;
    let axis = context.axes(&[context.int("axis", 1)], dims.len() + 1)?[0];
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
