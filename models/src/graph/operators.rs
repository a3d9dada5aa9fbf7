//! The operators that can be trained: how each ONNX node is read.

use std::borrow::Cow;

use super::reader::{Context, Made, Tensor};
use super::{GraphError, Op, Shape, ValueId, Window};
use crate::onnx::TensorProto;

type Reader = fn(&mut Context<'_, '_>) -> Result<Made, GraphError>;

/// The reader of an operator of ONNX's own domain, if it can be trained.
pub(super) fn reader(operator: &str) -> Option<Reader> {
    Some(match operator {
        "Add" => add,
        "AveragePool" => average_pool,
        "BatchNormalization" => batch_normalization,
        "Constant" => constant,
        "Conv" => conv,
        "Dropout" => dropout,
        "Flatten" => flatten,
        "Gemm" => gemm,
        "GlobalAveragePool" => global_average_pool,
        "Identity" => identity,
        "MatMul" => matmul,
        "MaxPool" => max_pool,
        "ReduceMean" => reduce_mean,
        "Relu" => relu,
        "Reshape" => reshape,
        "Softmax" | "LogSoftmax" => softmax,
        _ => return None,
    })
}

fn node(op: Op, inputs: Vec<ValueId>, dims: Vec<usize>) -> Made {
    Made::Node { op, inputs, states: Vec::new(), dims }
}

/// An activation of `[c, h, w]`.
fn picture(context: &mut Context<'_, '_>) -> Result<(ValueId, [usize; 3]), GraphError> {
    let (x, dims) = context.activation(0)?;
    match dims.as_slice() {
        [c, h, w] => Ok((x, [*c, *h, *w])),
        _ => Err(context.misfit("[n, c, h, w]", context.shape(x))),
    }
}

fn conv(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let (weight, extents) = context.weight(1, 4)?;
    let group = context.int("group", 1);
    let group = usize::try_from(group).ok().filter(|group| {
        *group >= 1 && c == extents[1].saturating_mul(*group) && extents[0] % group == 0
    });
    let Some(group) = group else {
        let expected = format!("weights for {c} channels in {} groups", context.int("group", 1));
        return Err(context.misfit(expected, context.shape(weight)));
    };
    let kernel = [extents[2], extents[3]];
    if !context.ints("kernel_shape").is_empty() && Window::kernel_shape(context)? != kernel {
        return Err(context.misfit("weights of the kernel_shape", context.shape(weight)));
    }
    let window = Window { ceil: false, ..Window::read(context, kernel, [h, w])? };
    let dims = window_output(context, &window, x, extents[0], [h, w])?;
    let mut inputs = vec![x, weight];
    if context.has(2) {
        inputs.push(context.vector(2, extents[0])?);
    }
    Ok(node(Op::Conv { window, group }, inputs, dims))
}

fn window_output(
    context: &Context<'_, '_>,
    window: &Window,
    x: ValueId,
    channels: usize,
    input: [usize; 2],
) -> Result<Vec<usize>, GraphError> {
    let Some([h, w]) = window.output(input) else {
        let [h, w] = window.kernel;
        let expected = format!("an input that the {h} x {w} kernel fits in");
        return Err(context.misfit(expected, context.shape(x)));
    };
    Ok(vec![channels, h, w])
}

fn max_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let window = Window::read(context, Window::kernel_shape(context)?, [h, w])?;
    if (0..2).any(|axis| window.begin[axis].max(window.end[axis]) >= window.kernel[axis]) {
        return Err(context.problem("pads must be smaller than the kernel".to_owned()));
    }
    let dims = window_output(context, &window, x, c, [h, w])?;
    Ok(node(Op::MaxPool(window), vec![x], dims))
}

fn average_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let window = Window::read(context, Window::kernel_shape(context)?, [h, w])?;
    if (0..2).any(|axis| window.begin[axis].max(window.end[axis]) >= window.kernel[axis]) {
        return Err(context.problem("pads must be smaller than the kernel".to_owned()));
    }
    let dims = window_output(context, &window, x, c, [h, w])?;
    let include_pad = context.int("count_include_pad", 0) != 0;
    Ok(node(Op::AveragePool { window, include_pad }, vec![x], dims))
}

fn global_average_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let ones = std::iter::repeat_n(1, dims.len() - 1);
    let dims = dims.iter().take(1).copied().chain(ones).collect();
    Ok(node(Op::GlobalAveragePool, vec![x], dims))
}

/// A mean over all spatial axes, which is global average pooling.
fn reduce_mean(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axes = if context.has(1) { context.integers(1)? } else { context.ints("axes").to_vec() };
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX) + 1;
    let mut axes: Vec<i64> =
        axes.iter().map(|axis| if *axis < 0 { *axis + rank } else { *axis }).collect();
    axes.sort_unstable();
    if rank < 3 || !axes.iter().copied().eq(2..rank) {
        let text = format!("axes {axes:?}: only a mean over all axes from 2 on can be trained");
        return Err(context.problem(text));
    }
    let kept = if context.int("keepdims", 1) == 0 { 0 } else { dims.len() - 1 };
    let dims = dims.iter().take(1).copied().chain(std::iter::repeat_n(1, kept)).collect();
    Ok(node(Op::GlobalAveragePool, vec![x], dims))
}

fn batch_normalization(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let channels = dims[0];
    let inputs = vec![x, context.vector(1, channels)?, context.vector(2, channels)?];
    let states = vec![context.state(3, channels)?, context.state(4, channels)?];
    let epsilon = context.float("epsilon", 1e-5);
    let momentum = context.float("momentum", 0.9);
    if !(epsilon >= 0.0 && (0.0..=1.0).contains(&momentum)) {
        let text = format!("epsilon {epsilon} and momentum {momentum} make no sense");
        return Err(context.problem(text));
    }
    Ok(Made::Node { op: Op::BatchNormalization { epsilon, momentum }, inputs, states, dims })
}

fn gemm(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if context.int("transA", 0) != 0 {
        return Err(context.problem("transA is not supported for training".to_owned()));
    }
    let transposed = context.int("transB", 0) != 0;
    let (x, weight, m) = product(context, transposed)?;
    let mut inputs = vec![x, weight];
    if context.has(2) {
        let bias = context.operand(2)?;
        let shape = context.shape(bias);
        let fits = !shape.batched && matches!(shape.dims.as_slice(), [] | [1] | [1, 1])
            || shape.dims == [m]
            || shape.dims == [1, m];
        if !fits {
            return Err(context.misfit(format!("a bias of shape [{m}]"), shape));
        }
        inputs.push(bias);
    }
    let (alpha, beta) = (context.float("alpha", 1.0), context.float("beta", 1.0));
    Ok(node(Op::Gemm { alpha, beta, transposed }, inputs, vec![m]))
}

fn matmul(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
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

fn add(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (inputs, dims) = broadcast(context)?;
    Ok(node(Op::Add, inputs, dims))
}

/// Two operands and the extents of the result of broadcasting them, as in numpy.
fn broadcast(context: &mut Context<'_, '_>) -> Result<(Vec<ValueId>, Vec<usize>), GraphError> {
    let (a, b) = (context.operand(0)?, context.operand(1)?);
    let (left, right) = (context.shape(a), context.shape(b));
    let batched = [left, right].into_iter().find(|shape| shape.batched);
    let rank = batched.map(|shape| shape.dims.len());
    let misfit = || {
        let expected = format!("a shape that fits {}", super::reader::describe(left));
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

fn relu(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    Ok(node(Op::Relu, vec![x], dims))
}

fn dropout(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
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
    Ok(node(Op::Dropout { ratio }, vec![x], dims))
}

fn flatten(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axis = context.int("axis", 1);
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX) + 1;
    if axis != 1 && axis + rank != 1 {
        return Err(context.problem(format!("axis {axis}: only 1 keeps examples apart")));
    }
    Ok(node(Op::Reshape, vec![x], vec![dims.iter().product()]))
}

fn reshape(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let target = context.integers(1)?;
    let elements: usize = dims.iter().product();
    let misfit = || {
        context.problem(format!(
            "shape {target:?} does not keep the {elements} elements of each example together"
        ))
    };
    let (batch, rest) = target.split_first().ok_or_else(misfit)?;
    let whole = usize::try_from(*batch).ok();
    let keeps = *batch == -1
        || (*batch == 0 && context.int("allowzero", 0) == 0)
        || whole.is_some_and(|whole| Some(whole) == context.fixed_batch());
    let mut extents = Vec::with_capacity(rest.len());
    for (at, extent) in rest.iter().enumerate() {
        extents.push(match extent {
            0 => dims.get(at).copied().ok_or_else(misfit)?,
            -1 if *batch != -1 => {
                let others = rest.iter().filter(|extent| **extent != -1);
                let product = others.map(|extent| usize::try_from(*extent).unwrap_or(0));
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

/// A copy of a tensor is trained apart from the original: exporters share equal initial values.
fn identity(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    if let Some(tensor) = context.tensor(0)? {
        context.define(tensor);
        return Ok(Made::Nothing);
    }
    context.operand(0).map(Made::Same)
}

fn constant(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
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

/// A softmax before the loss is dropped: the loss takes logits.
fn softmax(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let axis = context.int("axis", if context.opset() < 13 { 1 } else { -1 });
    let last = i64::try_from(dims.len()).unwrap_or(i64::MAX);
    if axis != 1 && !(last == 1 && axis == -1) {
        return Err(context.problem(format!("axis {axis}: expected the classes' axis 1")));
    }
    Ok(Made::Probabilities(x))
}
