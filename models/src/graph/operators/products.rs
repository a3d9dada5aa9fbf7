//! Products with weights.

use super::node;
use crate::graph::context::Context;
use crate::graph::reader::Made;
use crate::graph::{GraphError, Op, ValueId};

pub(super) fn gemm(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if context.int("transA", 0) != 0 {
        return Err(context.problem("transA is not supported for training".to_owned()));
    }
    let transposed = context.int("transB", 0) != 0;
    let (x, weight, m) = product(context, transposed)?;
    let mut inputs = vec![x, weight];
    if context.has(2) {
        let bias = context.operand(2)?;
        let shape = context.shape(bias);
        let one = matches!(shape.dims.as_slice(), [] | [1] | [1, 1]);
        let fits = !shape.batched && (one || shape.dims == [m] || shape.dims == [1, m]);
        if !fits {
            return Err(context.misfit(format!("a bias of shape [{m}]"), shape));
        }
        inputs.push(bias);
    }
    let (alpha, beta) = (context.float("alpha", 1.0), context.float("beta", 1.0));
    Ok(node(Op::Gemm { alpha, beta, transposed }, inputs, vec![m]))
}

/// A product of features, or of each row of the last axis, with weights.
pub(super) fn matmul(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, mut dims) = context.activation(0)?;
    if let [_, .., d] = dims.as_mut_slice() {
        let (weight, extents) = context.weight(1, 2)?;
        if extents[0] != *d {
            let expected = format!("weights for {d} features");
            return Err(context.misfit(expected, context.shape(weight)));
        }
        *d = extents[1];
        return Ok(node(Op::MatMul, vec![x, weight], dims));
    }
    let (x, weight, m) = product(context, false)?;
    let op = Op::Gemm { alpha: 1.0, beta: 1.0, transposed: false };
    Ok(node(op, vec![x, weight], vec![m]))
}

/// The operands of `x [n, d]` times a weight, and the number of columns of the product.
fn product(
    context: &mut Context<'_, '_>,
    transposed: bool,
) -> Result<(ValueId, ValueId, usize), GraphError> {
    let (x, dims) = context.activation(0)?;
    let [d] = dims.as_slice() else {
        return Err(context.misfit("[n, d]", context.shape(x)));
    };
    let (weight, extents) = context.weight(1, 2)?;
    let (rows, columns) =
        if transposed { (extents[1], extents[0]) } else { (extents[0], extents[1]) };
    if rows != *d {
        let expected = format!("weights for {d} features");
        return Err(context.misfit(expected, context.shape(weight)));
    }
    Ok((x, weight, columns))
}
