//! Constants, copies and casts: nothing of them is left to be computed.

use std::borrow::Cow;

use crate::graph::GraphError;
use crate::graph::constants::{Extent, Numbers};
use crate::graph::context::Context;
use crate::graph::random::Mask;
use crate::graph::reader::{Made, Tensor};
use crate::onnx::{FLOAT, INT32, INT64, TensorProto, data_type_name};

/// Most elements of a tensor that is filled with one number.
const FILLED_MAX: usize = 1 << 20;

/// A copy of a tensor is trained apart from the original: exporters share equal initial values.
pub(super) fn identity(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(tensor) = context.tensor(0)? {
        context.define(tensor);
        return Ok(Made::Nothing);
    }
    if let Some(numbers) = context.numbers(0)? {
        context.define_numbers(numbers);
        return Ok(Made::Nothing);
    }
    context.named(0).map(Made::Same)
}

pub(super) fn constant(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let owned = |tensor: TensorProto| Some(Cow::Owned(tensor));
    let tensor = if let Some(attribute) = context.attribute("value") {
        attribute.t.as_ref().map(Cow::Borrowed)
    } else if let Some(attribute) = context.attribute("value_float") {
        owned(TensorProto::from_f32("", &[], &[attribute.f.unwrap_or(0.0)]))
    } else if let Some(attribute) = context.attribute("value_floats") {
        owned(TensorProto::from_f32("", &[attribute.floats.len()], &attribute.floats))
    } else if let Some(attribute) = context.attribute("value_ints") {
        owned(TensorProto::from_i64("", &attribute.ints))
    } else if let Some(attribute) = context.attribute("value_int") {
        let number = TensorProto::from_i64("", &[attribute.i.unwrap_or(0)]);
        owned(TensorProto { dims: Vec::new(), ..number })
    } else {
        None
    };
    let Some(tensor) = tensor else {
        let text = "a constant of this kind cannot be used in training: expected a tensor, \
                    floats or integers";
        return Err(context.problem(text.to_owned()));
    };
    context.define(Tensor::constant(tensor));
    Ok(Made::Nothing)
}

/// Floats stay floats and integers integers, whatever their width.
pub(super) fn cast(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let to = context.int("to", 0);
    let integers = to == i64::from(INT64) || to == i64::from(INT32);
    if let Some(numbers) = context.numbers(0)?
        && integers
    {
        context.define_numbers(numbers);
        return Ok(Made::Nothing);
    }
    let floats = context.numbers(0)?.is_none() && to == i64::from(FLOAT);
    match context.mask(0) {
        Some(mask) if floats => Ok(Made::Mask(mask)),
        _ if floats => identity(context),
        _ => {
            let to = i32::try_from(to).map_or_else(|_| to.to_string(), data_type_name);
            let text = format!("a cast to {to} cannot be trained: only floats and shapes can");
            Err(context.problem(text))
        }
    }
}

/// A cast to the type of another value: all that is trained are floats.
pub(super) fn cast_like(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    match context.mask(0) {
        Some(mask) => Ok(Made::Mask(mask)),
        None => identity(context),
    }
}

/// One number everywhere.
pub(super) fn constant_of_shape(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let extents = Numbers::list(context.extents(0)?);
    let value = context.attribute("value").and_then(|attribute| attribute.t.as_ref());
    let problem = |text: String| context.problem(format!("value: {text}"));
    match value {
        Some(tensor) if tensor.data_type != FLOAT => {
            let (_, values) = tensor.to_i64().map_err(problem)?;
            let number = Numbers::scalar(Extent::Number(values.first().copied().unwrap_or(0)));
            fill_numbers(context, &number, &extents)
        }
        Some(tensor) => {
            let (_, values) = tensor.to_f32().map_err(problem)?;
            fill(context, values.first().copied().unwrap_or(0.0), &extents)
        }
        None => fill(context, 0.0, &extents),
    }
}

/// One number repeated, or a tensor that has the shape already.
pub(super) fn expand(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let extents = Numbers::list(context.extents(1)?);
    if let Some(numbers) = context.numbers(0)? {
        if extents.values.is_empty() {
            context.define_numbers(numbers);
            return Ok(Made::Nothing);
        }
        return fill_numbers(context, &numbers, &extents);
    }
    let value = context.scalar(0).map_err(|_| {
        let text = "only one constant number can be expanded in training: let Add or Mul \
                    broadcast instead";
        context.problem(text.to_owned())
    })?;
    fill(context, value, &extents)
}

fn fill_numbers(
    context: &mut Context<'_, '_>,
    number: &Numbers,
    extents: &Numbers,
) -> Result<Made, GraphError> {
    if extents.values.contains(&Extent::Batch) {
        return Ok(Made::Mask(Mask::filled(extents)));
    }
    let dims = known(extents);
    let filled = match (dims, number.values.as_slice()) {
        (Some(dims), [value]) => Numbers::filled(dims, *value),
        (Some(dims), values) if dims == [values.len()] => Some(number.clone()),
        _ => None,
    };
    let Some(filled) = filled else {
        let text = "expected one integer that is repeated, and a small shape that is known";
        return Err(context.problem(text.to_owned()));
    };
    context.define_numbers(filled);
    Ok(Made::Nothing)
}

/// Extents, if none of them is the batch's.
fn known(extents: &Numbers) -> Option<Vec<usize>> {
    let known = extents.values.iter().map(|extent| match extent {
        Extent::Number(number) => usize::try_from(*number).ok(),
        Extent::Batch => None,
    });
    known.collect()
}

fn fill(context: &mut Context<'_, '_>, value: f32, extents: &Numbers) -> Result<Made, GraphError> {
    if extents.values.contains(&Extent::Batch) {
        return Ok(Made::Mask(Mask::filled(extents)));
    }
    let product = |a: usize, b: &usize| a.checked_mul(*b).filter(|len| *len <= FILLED_MAX);
    let dims = known(extents).unwrap_or_default();
    let Some(len) = dims.iter().try_fold(1, product) else {
        let text = format!("expected at most {FILLED_MAX} elements in a constant, found {dims:?}");
        return Err(context.problem(text));
    };
    let tensor = TensorProto::from_f32("", &dims, &vec![value; len]);
    context.define(Tensor::constant(Cow::Owned(tensor)));
    Ok(Made::Nothing)
}
