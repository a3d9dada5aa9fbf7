//! Constants and the arithmetic on them that exporters write around shapes: computed while
//! reading, with the batch size as a symbol.

use std::borrow::Cow;

use crate::graph::constants::{Extent, Numbers};
use crate::graph::context::Context;
use crate::graph::reader::{Made, Tensor};
use crate::graph::{Arithmetic, GraphError};
use crate::onnx::TensorProto;

/// Most numbers that are joined: far above what a shape has.
const NUMBERS_MAX: usize = 1 << 12;

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
    context.operand(0).map(Made::Same)
}

pub(super) fn constant(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let owned = |tensor: TensorProto| Some(Cow::Owned(tensor));
    let float = |name: &str| context.attribute(name);
    let tensor = if let Some(attribute) = context.attribute("value") {
        attribute.t.as_ref().map(Cow::Borrowed)
    } else if let Some(attribute) = float("value_float") {
        owned(TensorProto::from_f32("", &[], &[attribute.f.unwrap_or(0.0)]))
    } else if let Some(attribute) = float("value_floats") {
        owned(TensorProto::from_f32("", &[attribute.floats.len()], &attribute.floats))
    } else if let Some(attribute) = context.attribute("value_ints") {
        owned(TensorProto::from_i64("", &attribute.ints))
    } else {
        None
    };
    let Some(tensor) = tensor else {
        return Err(context.problem("expected a constant tensor, float or integers".to_owned()));
    };
    context.define(Tensor::constant(tensor));
    Ok(Made::Nothing)
}

/// The extents of a value, from `start` up to `end` where these are given.
pub(super) fn shape(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let id = context.operand(0)?;
    let shape = context.shape(id);
    let batch = shape.batched.then_some(Extent::Batch);
    let dims = shape.dims.iter().map(|dim| Extent::Number(i64::try_from(*dim).unwrap_or(i64::MAX)));
    let values: Vec<Extent> = batch.into_iter().chain(dims).collect();
    let rank = i64::try_from(values.len()).unwrap_or(i64::MAX);
    let place = |name: &str, default: i64| place(context.int(name, default), rank);
    let (start, end) = (place("start", 0), place("end", rank));
    let values = values.get(start..end).unwrap_or_default().to_vec();
    context.define_numbers(Numbers { scalar: false, values });
    Ok(Made::Nothing)
}

/// A place counted from the front, within `0..=len`.
fn place(at: i64, len: i64) -> usize {
    let at = if at < 0 { at.saturating_add(len) } else { at };
    usize::try_from(at.clamp(0, len)).unwrap_or(0)
}

/// Numbers that are known beforehand, where nothing else is supported.
fn known(context: &Context<'_, '_>) -> Result<Numbers, GraphError> {
    context.numbers(0)?.ok_or_else(|| {
        let text = "only constants and shapes can be taken apart in training";
        context.problem(text.to_owned())
    })
}

pub(super) fn gather(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let from = known(context)?;
    let Some(indices) = context.numbers(1)? else {
        return Err(context.problem("expected constant indices".to_owned()));
    };
    let len = i64::try_from(from.values.len()).unwrap_or(i64::MAX);
    let take = |index: i64| {
        let index = if index < 0 { index + len } else { index };
        let value = usize::try_from(index).ok().and_then(|index| from.values.get(index));
        value.copied().ok_or_else(|| context.problem(format!("index {index} of {len} numbers")))
    };
    let indices_of: Vec<i64> = context.integers(1)?;
    let values = indices_of.into_iter().map(take).collect::<Result<_, _>>()?;
    context.define_numbers(Numbers { scalar: indices.scalar, values });
    Ok(Made::Nothing)
}

/// Numbers from `starts` up to `ends`, one after the other.
pub(super) fn slice(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let from = known(context)?;
    let starts = context.ints_or_input("starts", 1)?.unwrap_or_default();
    let ends = context.ints_or_input("ends", 2)?.unwrap_or_default();
    let steps = if context.has(4) { context.integers(4)? } else { vec![1] };
    let ([start], [end], [1]) = (starts.as_slice(), ends.as_slice(), steps.as_slice()) else {
        return Err(context.problem("expected one start and end with the step 1".to_owned()));
    };
    let len = i64::try_from(from.values.len()).unwrap_or(i64::MAX);
    let values = from.values.get(place(*start, len)..place(*end, len));
    let values = values.unwrap_or_default().to_vec();
    context.define_numbers(Numbers { scalar: false, values });
    Ok(Made::Nothing)
}

/// Floats stay floats and integers integers, whatever their width.
pub(super) fn cast(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    use crate::onnx::{FLOAT, INT32, INT64, data_type_name};
    let to = context.int("to", 0);
    if let Some(numbers) = context.numbers(0)? {
        if to == i64::from(INT64) || to == i64::from(INT32) {
            context.define_numbers(numbers);
            return Ok(Made::Nothing);
        }
    } else if to == i64::from(FLOAT) {
        return identity(context);
    }
    let to = i32::try_from(to).map_or_else(|_| to.to_string(), data_type_name);
    Err(context.problem(format!("a cast to {to} is not supported for training")))
}

/// Numbers behind each other.
pub(super) fn concat(
    context: &mut Context<'_, '_>,
    mut joined: Numbers,
) -> Result<Made, GraphError> {
    for index in 1..context.inputs() {
        joined.values.extend(context.extents(index)?);
        if joined.values.len() > NUMBERS_MAX {
            return Err(context.problem(format!("more than {NUMBERS_MAX} constant integers")));
        }
    }
    joined.scalar = false;
    context.define_numbers(joined);
    Ok(Made::Nothing)
}

/// Number by number, with one number repeated as often as needed.
pub(super) fn arithmetic(
    context: &mut Context<'_, '_>,
    operator: Arithmetic,
    a: &Numbers,
    b: &Numbers,
) -> Result<Made, GraphError> {
    let (left, right) = (a.values.len(), b.values.len());
    if left != right && left != 1 && right != 1 {
        return Err(context.problem(format!("{left} and {right} numbers do not go together")));
    }
    let len = if left == 1 { right } else { left };
    let pair = |at: usize| {
        let (a, b) =
            (a.values[if left == 1 { 0 } else { at }], b.values[if right == 1 { 0 } else { at }]);
        a.combine(operator, b).ok_or_else(|| {
            context.problem(format!("{a} and {b}: the result is not known beforehand"))
        })
    };
    let values = (0..len).map(pair).collect::<Result<_, _>>()?;
    context.define_numbers(Numbers { scalar: a.scalar && b.scalar, values });
    Ok(Made::Nothing)
}
