//! The arithmetic that exporters write around shapes: computed while reading, with the batch size
//! as a symbol.

use crate::graph::constants::{Extent, NUMBERS_MAX, Numbers};
use crate::graph::context::Context;
use crate::graph::reader::Made;
use crate::graph::{Arithmetic, GraphError};

/// The extents of a value, from `start` up to `end` where these are given.
pub(super) fn shape(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let number = |dim: usize| Extent::Number(i64::try_from(dim).unwrap_or(i64::MAX));
    let values: Vec<Extent> = if let Some(numbers) = context.numbers(0)? {
        numbers.dims.into_iter().map(number).collect()
    } else if let Some(tensor) = context.tensor(0)? {
        let dims = &tensor.proto.dims;
        dims.iter().map(|dim| Extent::Number(*dim)).collect()
    } else {
        let id = context.operand(0)?;
        let shape = context.shape(id);
        let batch = shape.batched.then_some(Extent::Batch);
        batch.into_iter().chain(shape.dims.iter().copied().map(number)).collect()
    };
    let rank = i64::try_from(values.len()).unwrap_or(i64::MAX);
    let place = |name: &str, default: i64| place(context.int(name, default), rank);
    let (start, end) = (place("start", 0), place("end", rank));
    let values = values.get(start..end).unwrap_or_default().to_vec();
    context.define_numbers(Numbers::list(values));
    Ok(Made::Nothing)
}

/// A place counted from the front, within `0..=len`.
pub(super) fn place(at: i64, len: i64) -> usize {
    let at = if at < 0 { at.saturating_add(len) } else { at };
    usize::try_from(at.clamp(0, len)).unwrap_or(0)
}

pub(super) fn gather(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let Some(from) = context.numbers(0)? else {
        let text = "only constants and shapes can be taken apart by indices in training";
        return Err(context.problem(text.to_owned()));
    };
    let Some(indices) = context.numbers(1)? else {
        return Err(context.problem("expected constant indices".to_owned()));
    };
    if from.dims.len() != 1 {
        let text = format!("expected numbers with one axis, found {:?}", from.dims);
        return Err(context.problem(text));
    }
    let len = i64::try_from(from.values.len()).unwrap_or(i64::MAX);
    let take = |index: i64| {
        let index = if index < 0 { index + len } else { index };
        let value = usize::try_from(index).ok().and_then(|index| from.values.get(index));
        value.copied().ok_or_else(|| context.problem(format!("index {index} of {len} numbers")))
    };
    let indices_of: Vec<i64> = context.integers(1)?;
    let values = indices_of.into_iter().map(take).collect::<Result<_, _>>()?;
    context.define_numbers(Numbers { dims: indices.dims, values });
    Ok(Made::Nothing)
}

/// Numbers from `starts` to `ends` along an axis, `steps` apart.
pub(super) fn slice(context: &mut Context<'_, '_>, from: Numbers) -> Result<Made, GraphError> {
    let starts = context.ints_or_input("starts", 1)?.unwrap_or_default();
    let ends = context.ints_or_input("ends", 2)?.unwrap_or_default();
    let along = context.ints_or_input("axes", 3)?.unwrap_or_else(|| vec![0]);
    let steps = if context.has(4) { context.integers(4)? } else { vec![1] };
    let along = context.axes(&along, from.dims.len())?;
    let (&[start], &[end], &[axis], &[step]) =
        (starts.as_slice(), ends.as_slice(), along.as_slice(), steps.as_slice())
    else {
        return Err(context.problem("expected one start, end, axis and step".to_owned()));
    };
    let extent = i64::try_from(from.dims[axis]).unwrap_or(i64::MAX);
    let front = |at: i64| if at < 0 { at.saturating_add(extent) } else { at };
    let kept: Vec<usize> = match step {
        1.. => {
            let (start, end) = (front(start).clamp(0, extent), front(end).clamp(0, extent));
            (start..end).step_by(usize::try_from(step).unwrap_or(usize::MAX)).collect::<Vec<_>>()
        }
        0 => return Err(context.problem("the step is 0".to_owned())),
        _ => {
            let (start, end) =
                (front(start).clamp(-1, extent - 1), front(end).clamp(-1, extent - 1));
            let step = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
            (end + 1..=start).rev().step_by(step).collect()
        }
    }
    .into_iter()
    .filter_map(|at| usize::try_from(at).ok())
    .collect();
    let inner: usize = from.dims[axis + 1..].iter().product();
    let block = from.dims[axis] * inner;
    let mut values = Vec::new();
    for outer in from.values.chunks(block.max(1)) {
        values.extend(kept.iter().flat_map(|at| &outer[at * inner..][..inner]));
    }
    let mut dims = from.dims;
    dims[axis] = kept.len();
    context.define_numbers(Numbers { dims, values });
    Ok(Made::Nothing)
}

/// Numbers behind each other.
pub(super) fn concat(context: &mut Context<'_, '_>, first: Numbers) -> Result<Made, GraphError> {
    let mut values = first.values;
    for index in 1..context.inputs() {
        values.extend(context.extents(index)?);
        if values.len() > NUMBERS_MAX {
            return Err(context.problem(format!("more than {NUMBERS_MAX} constant integers")));
        }
    }
    context.define_numbers(Numbers::list(values));
    Ok(Made::Nothing)
}

/// Number by number, with one number repeated as often as needed.
pub(super) fn arithmetic(
    context: &mut Context<'_, '_>,
    operator: Arithmetic,
    a: &Numbers,
    b: &Numbers,
) -> Result<Made, GraphError> {
    let Some(numbers) = a.combine(operator, b) else {
        let show = |numbers: &Numbers| -> String {
            let shown: Vec<String> = numbers.values.iter().take(8).map(Extent::to_string).collect();
            shown.join(", ")
        };
        let text = format!("[{}] and [{}]: the result is not known beforehand", show(a), show(b));
        return Err(context.problem(text));
    };
    context.define_numbers(numbers);
    Ok(Made::Nothing)
}

/// The same numbers under another shape.
pub(super) fn reshape(context: &mut Context<'_, '_>, from: Numbers) -> Result<Made, GraphError> {
    let target = context.integers(1)?;
    let len = from.values.len();
    let Some(dims) = extents_for(&target, len) else {
        return Err(context.problem(format!("shape {target:?} does not hold {len} numbers")));
    };
    context.define_numbers(Numbers { dims, values: from.values });
    Ok(Made::Nothing)
}

/// The extents that a shape says for so many elements, with -1 worked out; `None` when it does not
/// fit.
pub(super) fn extents_for(target: &[i64], len: usize) -> Option<Vec<usize>> {
    let product = |a: usize, b: usize| a.checked_mul(b);
    let known = target.iter().filter_map(|extent| usize::try_from(*extent).ok());
    let fill = len.checked_div(known.clone().try_fold(1, product)?);
    let extents = target.iter().map(|extent| match extent {
        -1 => fill,
        extent => usize::try_from(*extent).ok(),
    });
    let dims: Vec<usize> = extents.collect::<Option<_>>()?;
    (dims.iter().copied().try_fold(1, product) == Some(len)).then_some(dims)
}

/// Drops axes of extent 1.
pub(super) fn squeeze(context: &mut Context<'_, '_>, from: Numbers) -> Result<Made, GraphError> {
    let axes = match context.ints_or_input("axes", 1)? {
        Some(axes) => context.axes(&axes, from.dims.len())?,
        None => (0..from.dims.len()).filter(|axis| from.dims[*axis] == 1).collect(),
    };
    if axes.iter().any(|axis| from.dims[*axis] != 1) {
        let text = format!("axes {axes:?} of {:?} have to have the extent 1", from.dims);
        return Err(context.problem(text));
    }
    let kept = from.dims.iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
    let dims = kept.map(|(_, extent)| *extent).collect();
    context.define_numbers(Numbers { dims, values: from.values });
    Ok(Made::Nothing)
}

/// Adds axes of extent 1.
pub(super) fn unsqueeze(context: &mut Context<'_, '_>, from: Numbers) -> Result<Made, GraphError> {
    let axes = context.ints_or_input("axes", 1)?.unwrap_or_default();
    let mut axes = context.axes(&axes, from.dims.len() + axes.len())?;
    axes.sort_unstable();
    let mut dims = from.dims;
    for axis in axes {
        if axis > dims.len() {
            return Err(context.problem(format!("axis {axis} is named twice")));
        }
        dims.insert(axis, 1);
    }
    context.define_numbers(Numbers { dims, values: from.values });
    Ok(Made::Nothing)
}
