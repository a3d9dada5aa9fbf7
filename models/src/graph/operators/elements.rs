//! Operators on one element at a time, normalisation and dropout.

use super::{node, numbers};
use crate::graph::context::Context;
use crate::graph::reader::{Made, describe};
use crate::graph::{Activation, Arithmetic, GraphError, Op, Shape, Share, ValueId, random};

/// An operator on two operands, which are broadcast as in numpy.
pub(super) fn arithmetic(
    context: &mut Context<'_, '_>,
    operator: Arithmetic,
) -> Result<Made, GraphError> {
    if let (Some(a), Some(b)) = (context.numbers(0)?, context.numbers(1)?) {
        return numbers::arithmetic(context, operator, &a, &b);
    }
    if let Some(made) = random::arithmetic(context, operator)? {
        return Ok(made);
    }
    let (inputs, dims) = broadcast(context)?;
    Ok(node(Op::Arithmetic(operator), inputs, dims))
}

/// Two operands and the extents of the result of broadcasting them, as in numpy.
fn broadcast(context: &mut Context<'_, '_>) -> Result<(Vec<ValueId>, Vec<usize>), GraphError> {
    let (a, b) = (context.operand(0)?, context.operand(1)?);
    let (left, right) = (context.shape(a), context.shape(b));
    let batched = [left, right].into_iter().find(|shape| shape.batched);
    let rank = batched.map(|shape| shape.dims.len());
    let misfit = || {
        let expected = format!("a shape that fits {}", describe(left));
        context.misfit(expected, right)
    };
    let aligned = |shape: &Shape| rank.and_then(|rank| shape.aligned(rank)).ok_or_else(misfit);
    let mut dims = Vec::new();
    for pair in aligned(left)?.into_iter().zip(aligned(right)?) {
        dims.push(match pair {
            (l, r) if l == r || r == 1 => l,
            (1, r) => r,
            _ => return Err(misfit()),
        });
    }
    Ok((vec![a, b], dims))
}

/// A function of each element.
pub(super) fn activation(
    context: &mut Context<'_, '_>,
    activation: Activation,
) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    Ok(node(Op::Activation(activation), vec![x], dims))
}

/// Bounds are attributes before operator set 11 and inputs since; one left out bounds nothing.
pub(super) fn clip(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let bound = |index: usize, name: &str, without: f32| {
        if context.has(index) { context.scalar(index) } else { Ok(context.float(name, without)) }
    };
    let least = bound(1, "min", f32::NEG_INFINITY)?;
    let most = bound(2, "max", f32::INFINITY)?;
    if least.is_nan() || most.is_nan() || least > most {
        let text = format!("bounds {least} and {most}: expected the lower one first");
        return Err(context.problem(text));
    }
    activation(context, Activation::Clip { least, most })
}

pub(super) fn hard_sigmoid(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (slope, level) = (context.float("alpha", 0.2), context.float("beta", 0.5));
    activation(context, Activation::HardSigmoid { slope, level })
}

pub(super) fn leaky_relu(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let slope = context.float("alpha", 0.01);
    activation(context, Activation::LeakyRelu { slope })
}

pub(super) fn batch_normalization(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let channels = dims[0];
    let inputs = vec![x, context.vector(1, channels)?, context.vector(2, channels)?];
    let states = vec![context.state(3, channels)?, context.state(4, channels)?];
    if states[0] == states[1] {
        return Err(context.problem("mean and variance are one initializer".to_owned()));
    }
    let epsilon = context.float("epsilon", 1e-5);
    let momentum = context.float("momentum", 0.9);
    if !(epsilon >= 0.0 && (0.0..=1.0).contains(&momentum)) {
        let text = format!("epsilon {epsilon} and momentum {momentum} make no sense");
        return Err(context.problem(text));
    }
    Ok(Made::Node { op: Op::BatchNormalization { epsilon, momentum }, inputs, states, dims })
}

pub(super) fn dropout(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let ratio = if context.opset() < 12 {
        context.float("ratio", 0.5)
    } else if context.has(1) {
        context.scalar(1)?
    } else {
        0.5
    };
    if !(0.0..1.0).contains(&ratio) {
        return Err(context.problem(format!("ratio {ratio}: expected 0 to below 1")));
    }
    Ok(node(Op::Dropout { ratio, share: Share::Element }, vec![x], dims))
}

/// The last one of a model is left to the loss, which takes logits.
pub(super) fn sigmoid(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (logits, _) = context.activation(0)?;
    Ok(Made::Squashed { logits, op: Op::Activation(Activation::Sigmoid) })
}

/// The last one of a model is left to the loss, which takes logits. Before operator set 13 it went
/// over all axes from the given one on.
pub(super) fn softmax(context: &mut Context<'_, '_>, log: bool) -> Result<Made, GraphError> {
    let (logits, dims) = context.activation(0)?;
    let old = context.opset() < 13;
    let given = context.int("axis", if old { 1 } else { -1 });
    let axis = context.axes(&[given], dims.len() + 1)?[0];
    let Some(axis) = axis.checked_sub(1) else {
        return Err(context.problem("axis 0: examples are kept apart".to_owned()));
    };
    if old && dims[axis + 1..].iter().any(|extent| *extent != 1) {
        let text = format!("axis {given} and all behind it: export with operator set 13 or newer");
        return Err(context.problem(text));
    }
    Ok(Made::Squashed { logits, op: Op::Softmax { axis, log } })
}

/// `(x - offset) scale` of each feature, with constants, as scikit-learn's scalers are written.
pub(super) fn scaler(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let [features] = dims.as_slice() else {
        return Err(context.misfit("[n, features]", context.shape(x)));
    };
    let mut constant = |name: &str, without: f32| {
        let given = context.attribute(name).map(|attribute| attribute.floats.clone());
        let values = given.unwrap_or_else(|| vec![without]);
        if values.len() != 1 && values.len() != *features {
            let text = format!("{name}: expected {features} numbers, found {}", values.len());
            return Err(context.problem(text));
        }
        context.push_constant(vec![values.len()], values)
    };
    let (offset, scale) = (constant("offset", 0.0)?, constant("scale", 1.0)?);
    let moved = context.push(Op::Arithmetic(Arithmetic::Sub), vec![x, offset], &dims)?;
    Ok(node(Op::Arithmetic(Arithmetic::Mul), vec![moved, scale], dims))
}
