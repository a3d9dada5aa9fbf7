//! Dropout as exporters take it apart: random numbers, compared with the probability to keep,
//! cast to 0 and 1, divided by that probability, and multiplied with an activation.

use super::constants::{Extent, Numbers};
use super::context::Context;
use super::reader::{Item, Made};
use super::{GraphError, Op, Share, ValueId};

/// Numbers that are not known beforehand, for each example.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mask {
    /// Extents, the batch axis among them.
    extents: Vec<Extent>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// One number everywhere: only the extents matter.
    Filled,
    /// Random numbers of 0 to 1.
    Uniform,
    /// `factor` with probability `keep`, else 0.
    Kept { keep: f32, factor: f32 },
}

impl Mask {
    /// One number everywhere, with such extents.
    pub(super) fn filled(numbers: &Numbers) -> Self {
        Self { extents: numbers.values.clone(), stage: Stage::Filled }
    }
}

impl Context<'_, '_> {
    /// Input `index` as random numbers.
    pub(super) fn mask(&self, index: usize) -> Option<Mask> {
        let name = self.node.input.get(index)?;
        match self.reader.names.get(name.as_str()) {
            Some(Item::Mask(at)) => self.reader.masks.get(*at).cloned(),
            _ => None,
        }
    }
}

/// Random numbers of 0 to 1 of the extents of a value or of what is filled.
pub(super) fn uniform_like(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (low, high) = (context.float("low", 0.0), context.float("high", 1.0));
    if (low, high) != (0.0, 1.0) {
        return Err(context.problem(format!("{low} to {high}: expected random numbers of 0 to 1")));
    }
    let extents = if let Some(mask) = context.mask(0) {
        mask.extents
    } else {
        let (_, dims) = context.activation(0)?;
        let number = |dim: &usize| Extent::Number(i64::try_from(*dim).unwrap_or(i64::MAX));
        std::iter::once(Extent::Batch).chain(dims.iter().map(number)).collect()
    };
    Ok(Made::Mask(Mask { extents, stage: Stage::Uniform }))
}

/// Random numbers below a probability.
pub(super) fn less(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let Some(Mask { extents, stage: Stage::Uniform }) = context.mask(0) else {
        let text = "only random numbers can be compared in training, as dropout does";
        return Err(context.problem(text.to_owned()));
    };
    let keep = context.scalar(1)?;
    if !(keep > 0.0 && keep <= 1.0) {
        return Err(context.problem(format!("expected a probability above 0, found {keep}")));
    }
    Ok(Made::Mask(Mask { extents, stage: Stage::Kept { keep, factor: 1.0 } }))
}

/// A product or quotient of random numbers and a number, or a product with an activation, which
/// is a dropout.
pub(super) fn arithmetic(
    context: &mut Context<'_, '_>,
    operator: super::Arithmetic,
) -> Result<Option<Made>, GraphError> {
    use super::Arithmetic::{Add, Div, Mul, Sub};
    let (left, right) = (context.mask(0), context.mask(1));
    let (mask, at, other) = match (left, right) {
        (Some(mask), None) => (mask, 0, 1),
        (None, Some(mask)) if operator == Mul => (mask, 1, 0),
        (None, None) => return Ok(None),
        _ => return Err(misused(context)),
    };
    let Stage::Kept { keep, factor } = mask.stage else { return Err(misused(context)) };
    if let Ok(number) = context.scalar(other) {
        let factor = match operator {
            Div if at == 0 => factor / number,
            Mul => factor * number,
            Add | Sub | Div => return Err(misused(context)),
        };
        let stage = Stage::Kept { keep, factor };
        return Ok(Some(Made::Mask(Mask { extents: mask.extents, stage })));
    }
    if operator != Mul {
        return Err(misused(context));
    }
    let (x, dims) = context.activation(other)?;
    if (keep * factor - 1.0).abs() > 1e-3 {
        return Err(context.problem(format!(
            "a dropout that keeps {keep} has to multiply by {}, found {factor}",
            keep.recip()
        )));
    }
    let share = share(&mask.extents, &dims).ok_or_else(|| misused(context))?;
    let inputs: Vec<ValueId> = vec![x];
    let op = Op::Dropout { ratio: 1.0 - keep, share };
    Ok(Some(Made::Node { op, inputs, states: Vec::new(), dims }))
}

fn misused(context: &Context<'_, '_>) -> GraphError {
    let text = "random numbers can only be multiplied, as dropout does, with an activation: per \
                element, channel or example";
    context.problem(text.to_owned())
}

/// What is dropped together.
fn share(extents: &[Extent], dims: &[usize]) -> Option<Share> {
    let (Extent::Batch, rest) = extents.split_first()? else { return None };
    let fits = |extent: &Extent, dim: usize| match extent {
        Extent::Number(number) => usize::try_from(*number) == Ok(dim),
        Extent::Batch => false,
    };
    let ones = |rest: &[Extent]| rest.iter().all(|extent| fits(extent, 1));
    if rest.len() != dims.len() {
        None
    } else if rest.iter().zip(dims).all(|(extent, dim)| fits(extent, *dim)) {
        Some(Share::Element)
    } else if ones(rest) {
        Some(Share::Example)
    } else {
        (fits(&rest[0], dims[0]) && ones(&rest[1..])).then_some(Share::Channel)
    }
}
